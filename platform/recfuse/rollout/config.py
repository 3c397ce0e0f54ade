"""What a user may say about a rollout."""

from __future__ import annotations

import itertools
from typing import Literal

from pydantic import Field, model_validator

from recfuse.config import Config, require
from recfuse.evaluation.config import Targets

Doing = Literal["start", "status", "judge", "promote", "rollback"]


class Plan(Config):
    """How a candidate comes to all users; it is kept with the rollout, so that it stays what it was at the start."""

    logs: str = Field("runs/session_logs", min_length=1, description=(
        "Session table of serving, on any filesystem, in which the candidate's users are looked for."))
    shares: tuple[float, ...] = Field((.01, .05, .2, .5), description=(
        "The candidate serves these shares of the users, one after the other, before it serves all."))
    stage_hours: float = Field(24.0, ge=0, description="A share lasts so many hours at least.")
    stage_days: float = Field(14.0, gt=0, description=(
        "A candidate that a share of the users has had for so many days without a decision is rolled back."))
    proven_share: float = Field(.2, gt=0, lt=1, description=(
        "No larger share than this gets a candidate before its floors are surely kept."))
    settle_seconds: float = Field(60.0, ge=0, description=(
        "Decisions of so many seconds after a change of the share do not count, until every replica has followed."))
    known_days: float = Field(14.0, ge=0, description=(
        "What users did so many days before the rollout makes the comparison surer; 0 adjusts for nothing."))
    targets: Targets = Field(default_factory=Targets, description="Goals and floors, and how sure they must be.")

    @model_validator(mode="after")
    def _check(self) -> Plan:
        require(bool(self.shares) and all(0 < share < 1 for share in self.shares), "shares", self.shares,
                "numbers in (0, 1)")
        require(all(one < other for one, other in itertools.pairwise(self.shares)), "shares", self.shares,
                "numbers that grow")
        return self


class RolloutConfig(Config):
    """What is done about a rollout: `recfuse rollout start|status|judge|promote|rollback`."""

    action: Doing = Field("status", description=(
        "`start` gates a candidate and begins its canary, `judge` takes one look, `promote` and `rollback` decide."))
    models: str = Field("runs/models", description="Serving watches this directory; the rollout's state lies in it.")
    candidate: str = Field("", description=(
        "A bundle, or the newest of this directory of bundles, is the candidate of `start`."))
    part: Literal["fusion", "scenes"] = Field("fusion", description="The candidate is a policy, or a scorer.")
    reason: str = Field("", description="Why, in a sentence, for the audit; `promote` and `rollback` ask for it.")
    who: str = Field("", description="Who decides, for the audit; empty takes the user of the machine.")
    holdout: str = Field("", description=(
        "Session logs or samples that judge a candidate policy offline; empty checks the bundle alone."))
    samples: str = Field("", description="What the candidate was trained on, which must not hold rows of holdout.")
    plan: Plan = Field(default_factory=Plan, description="`start` takes this plan.")

    @model_validator(mode="after")
    def _check(self) -> RolloutConfig:
        require(self.action != "start" or bool(self.candidate), "candidate", "", "a bundle, or a directory of bundles")
        require(self.action not in ("promote", "rollback") or bool(self.reason.strip()), "reason", self.reason,
                "a sentence")
        return self
