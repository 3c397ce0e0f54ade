"""What people decide beside the verdicts: another share for a canary, and a model for everybody without one. Both are
steps of the rollout, in its audit, and can be rolled back."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from recfuse.bundle import copy_bundle, read_bundle
from recfuse.bundle.pointer import read_pointer
from recfuse.config import InvalidFieldError, require
from recfuse.evaluation.config import Targets
from recfuse.rollout.config import Plan
from recfuse.rollout.store import UNDER_WAY, Rollout, Store


def set_share(models: str, share: float, reason: str, who: str, now: float | None = None) -> Rollout:
    """Gives a canary another share of its plan; what is served from then on is a test of its own.

    Raises:
        InvalidFieldError: no canary is under way, the plan has no such share, or no reason is given.
    """
    store = Store(models)
    _require_reason(reason)
    with store.locked():
        rollout = store.read()
        if rollout is None or rollout.state != "canary":
            raise InvalidFieldError("share", share, "this while a canary is under way")
        others = [each for each in rollout.plan.shares if each != rollout.share]
        require(share in others, "share", share, f"another one of the plan: {', '.join(map('{:g}'.format, others))}")
        # The next look ends a rollout whose pointer somebody else has moved.
        moved = rollout.moved(read_pointer(store.models))
        require(not moved, "current.json", moved, "as the rollout left it; somebody else has changed it")
        at = time.time() if now is None else now
        after = replace(rollout, stage=rollout.plan.shares.index(share), stage_began=at, verdict=None)
        row = store.row(who, at, rollout.candidate, f"{rollout.words} → {after.words}", reason,
                        (rollout.verdict or {}).get("figures", {}))
        return store.step(replace(after, row=row))


def serve(models: str, bundle: str | Path, reason: str, who: str, now: float | None = None) -> Rollout:
    """Serves a policy to everybody at once, as one that was promoted.

    Raises:
        InvalidFieldError: a candidate is under way, the policy is served already or does not pass the gate's checks of
            a bundle, or no reason is given.
        BundleError: the bundle does not verify.
    """
    from recfuse.evaluation.gate import gate_policy, to_figures  # torch, and seconds

    store = Store(models)
    _require_reason(reason)
    candidate = read_bundle(copy_bundle(bundle, store.models, "fusion"), "fusion")
    with store.locked():
        before, pointer = store.read(), read_pointer(store.models)
        under_way = before is not None and before.state in UNDER_WAY
        require(not under_way, "bundle", candidate.version,
                f"none while {before.candidate if before else ''} is under way; roll it back, or promote it")
        if pointer.fusion is None or pointer.fusion == candidate.version:
            raise InvalidFieldError("bundle", candidate.version, "another policy than the served one")
        require(pointer.fusion_canary is None, "bundle", candidate.version,
                f"none while {pointer.fusion_canary} is a canary of current.json")
        gate = gate_policy(candidate, read_bundle(store.models / pointer.fusion, "fusion"), None, Targets())
        require(gate.failure is None, "bundle", candidate.version, f"one that passes the gate; {gate.words}")
        at, plan = time.time() if now is None else now, Plan() if before is None else before.plan
        row = store.row(who, at, candidate.version, "by hand → promoted", reason,
                        {"base": pointer.fusion, **to_figures(gate)})
        return store.step(Rollout(candidate.version, pointer.fusion, "fusion", "promoted", len(plan.shares) - 1, at, at,
                                  plan, row))


def _require_reason(reason: str) -> None:
    require(bool(reason.strip()), "reason", reason, "a sentence")
