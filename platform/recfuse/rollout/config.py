"""What a user may say about a rollout."""

from __future__ import annotations

import itertools
from typing import Literal

from pydantic import Field, model_validator

from recfuse.config import NOT_BLANK, Config, require
from recfuse.evaluation.config import Targets

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
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


class LoopConfig(Config):
    """The loop by itself: collect → ingest → train → gate → canary → verdict, again and again."""

    every: str = Field("1h", pattern=r"^\d+(\.\d+)?[smhd]$", description=(
        "Cycles begin this time apart: a number and s, m, h or d."))
    cycles: int = Field(0, ge=0, description="So many cycles are run; 0 goes on until it is stopped.")
    models: str = Field("runs/models", min_length=1, description=(
        "Serving watches this directory; the rollout's state lies in it."))
    decision_log: str = Field("runs/decisions", description=(
        "Serving appends to this directory, and the loop collects it; empty where serving moves the log itself."))
    window_minutes: float = Field(60.0, ge=0, description=(
        "Feedback counts so many minutes after its request; younger requests wait for a later cycle."))
    output: str = Field("runs/loop", pattern=NOT_BLANK, description=(
        "The loop's state and the samples and policies of its cycles lie in this directory."))
    keep: int = Field(5, ge=2, description="So many of the last cycles keep their samples and policies.")
    training: str = Field("", description="YAML file of `recfuse train`; empty trains with its defaults.")
    judging: float = Field(0.2, gt=0, lt=.5, description=(
        "The requests of this share of the users judge a candidate offline, and do not train it."))
    plan: Plan = Field(default_factory=Plan, description="A candidate comes to the users by this plan.")

    @property
    def seconds(self) -> float:
        """From the beginning of a cycle to that of the next."""
        return float(self.every[:-1]) * _SECONDS[self.every[-1]]
