"""What a person decides on a page: checked, carried out by the rollout, and in its audit with who and why."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, StringConstraints
from starlette.requests import Request

from recfuse.rollout.config import RolloutConfig
from recfuse.rollout.store import Store
from recfuse.serving.config import ServingConfig
from recfuse.serving.console.runs import find_bundle
from recfuse.serving.formats import JSON, RefusedError

ACTIONS = ("promote", "rollback", "share", "serve")
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
Line = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)]


class Decision(BaseModel):
    """A decision and its reason."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: Annotated[Line, Field(min_length=1)] = Field(description="why, in a sentence")
    who: Line = Field("", description="a person's name; empty is `console`")
    candidate: Line = Field("", description="of the rollout that the page showed")
    share: float = Field(0.0, ge=0, le=1, description="of the users, for `share`")
    bundle: Line = Field("", description="of a run, for `serve`")


def require_own_page(request: Request, asks_for_token: bool) -> None:
    """Refuses what another site's page sends through a person's browser.

    Such a page cannot send JSON without being asked for its origin, and has another one. Without tokens, a name that
    leads here by a foreign DNS would be a way in, so that only names of this machine are.

    Raises:
        RefusedError: the request does not come from a page of this server.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise RefusedError(415, "content-type", kind, JSON)
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != host:
        raise RefusedError(403, "origin", origin, "a page of this server")
    if not asks_for_token and urlsplit(f"//{host}").hostname not in _LOOPBACK:
        raise RefusedError(403, "host", host, f"{', '.join(_LOOPBACK)}; elsewhere decisions need a token "
                                              "(RECFUSE_TOKENS)")


def act(action: str, decision: Decision, config: ServingConfig) -> str:
    """Carries a decision out, and says what came of it.

    Raises:
        RefusedError: no such action, or the rollout is another one than the page showed.
        InvalidFieldError: the state of the rollout does not allow it.
        BundleError: the bundle or the pointer does not verify.
    """
    if action not in ACTIONS:
        raise RefusedError(404, "action", action, ", ".join(ACTIONS))
    # They read logs and judge candidates: seconds of imports, which a server needs when somebody decides.
    from recfuse.rollout import by_hand, rollout

    who = decision.who or "console"
    if action == "serve":
        bundle = find_bundle(config.runs, decision.bundle)
        after = by_hand.serve(config.models, bundle, decision.reason, who)
        return f"{after.candidate} serves everybody"
    _require_shown(config.models, decision)
    if action == "share":
        after = by_hand.set_share(config.models, decision.share, decision.reason, who)
    elif action == "promote":
        after = rollout.promote(RolloutConfig(action=action, models=config.models, reason=decision.reason, who=who))
    else:
        after = rollout.roll_back(RolloutConfig(action="rollback", models=config.models, reason=decision.reason,
                                                who=who))
    return f"{after.candidate} is {after.words}"


def _require_shown(models: str, decision: Decision) -> None:
    """Refuses a decision on a page that is out of date."""
    rollout = Store(models).read()
    if rollout is not None and rollout.candidate != decision.candidate:
        raise RefusedError(409, "candidate", decision.candidate, f"{rollout.candidate}, which is under way now; load "
                                                                 "the page again")
