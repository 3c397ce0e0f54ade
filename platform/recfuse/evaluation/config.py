"""What a user may say about an off-policy evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field, model_validator

from recfuse.behaviours import Stage
from recfuse.config import Config, require
from recfuse.evaluation.answers import MIN_ESS, MIN_EVENTS, EstimateOptions
from recfuse.logs.reading import ReadingConfig
from recfuse.stats.intervals import LEVEL


class Targets(Config):
    """What a change of the served model must bring, and what it must not cost; relative to the model before it."""

    goals: Mapping[str, float] = Field({}, description=(
        "Each of these measures must surely change by more than its number, such as `watch_time: 0`."))
    floors: Mapping[str, float] = Field({}, description=(
        "None of these measures may fall below its relative change, such as `like: -0.01`."))
    unproven: tuple[str, ...] = Field((), description=(
        "The floors of these measures need only not be surely broken; all others must surely be kept before a model is "
        "promoted."))
    effect: float = Field(0.02, gt=0, description=(
        "Intervals are tightest about the size of test that finds this relative effect; decide it before the first "
        "look."))
    level: float = Field(LEVEL, gt=0, lt=1, description=(
        "Intervals hold the truth with this probability, at all looks at once."))
    min_users: int = Field(100, ge=2, description="Of an arm with fewer users nothing is claimed.")
    min_events: float = Field(MIN_EVENTS, ge=0, description=(
        "Of a measure with a smaller effective number of events in an arm nothing is claimed."))
    ratio_level: float = Field(0.001, gt=0, lt=1, description=(
        "There is no verdict where the arms' numbers of users are less likely than this."))
    max_strays: float = Field(0.01, ge=0, le=1, description=(
        "There is no verdict where a larger share of decisions was not made by the model of the user's arm."))

    @model_validator(mode="after")
    def _check(self) -> Targets:
        for name, floor in self.floors.items():
            require(-1 <= floor <= 0, f"floors.{name}", floor, "a relative change in [-1, 0]")
        for name, goal in self.goals.items():
            require(goal >= 0, f"goals.{name}", goal, "a relative change ≥ 0")
        strangers = sorted(set(self.unproven) - set(self.floors))
        require(not strangers, "unproven", strangers, "names of floors")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Every measure with a goal or a floor, once."""
        return tuple(dict.fromkeys([*self.goals, *self.floors]))


class AbConfig(Config):
    """A log of what was served, the two models whose users are compared, and by what."""

    logs: str = Field("runs/session_logs", min_length=1, description=(
        "Session table of serving, or session logs, on any filesystem; `recfuse collect` writes it."))
    vocabulary: str = Field("", description="YAML file of the vocabulary; empty takes the one that lies in the log.")
    models: str = Field("runs/models", description=(
        "The current.json of this directory says what base, canary and share are where they are not named."))
    part: Literal["fusion", "scenes"] = Field("fusion", description="Policies are compared, or scorers.")
    base: str = Field("", description="Version of the model of everybody else; empty takes the served one.")
    canary: str = Field("", description="Version of the model of a share of the users; empty takes the served canary.")
    share: float = Field(0.0, ge=0, lt=1, description="The canary's share of the users; 0 takes the served one.")
    since: str = Field("", description=(
        "The test began at this ISO time (UTC where no zone is named); empty takes the canary's first decision."))
    until: str = Field("", description="Decisions before this ISO time count; empty takes all.")
    known_until: str = Field("", description=(
        "What users did before this ISO time makes the comparison surer; empty takes the beginning of the test."))
    known_days: float = Field(14.0, ge=0, description="So many days before it count; 0 adjusts for nothing.")
    gap_minutes: float = Field(30.0, gt=0, description=(
        "Where `session_id` is absent, a pause of more minutes than this ends a session."))
    targets: Targets = Field(default_factory=Targets, description="Goals and floors, and how sure they must be.")

    @model_validator(mode="after")
    def _check(self) -> AbConfig:
        for name in ("since", "until", "known_until"):
            text = getattr(self, name)
            require(not text or parse_time(text) is not None, name, text, "an ISO time, as 2022-05-04T00:00")
        require(not self.base or self.base != self.canary, "canary", self.canary, "another model than base")
        return self


class CheckConfig(ReadingConfig):
    """A session log, and which effect is to be seen in it."""

    logs: str = Field("runs/session_logs", min_length=1, description=(
        "Session logs, a Delta table or samples, on any filesystem."))
    effect: float = Field(0.02, gt=0, description="A relative difference of a behaviour that is to be seen.")
    step: float = Field(1.0, gt=0, description=(
        "The off-policy estimate is of a policy whose mean lies so many logged σ from the logged mean."))
    level: float = Field(LEVEL, gt=0, lt=1, description="Intervals hold the truth with this probability.")


class EvaluateConfig(Config):
    """A trained policy, the held-out session logs that it is judged on, and how."""

    fusion: str = Field("runs/fusion", description="A fusion bundle, or a directory that holds one, is the policy in "
                                                   "question.")
    holdout: str = Field("runs/simulation/holdout", description="Session logs, a Delta table or samples, on any "
                                                                "filesystem, that the policy was not trained on.")
    reading: ReadingConfig = Field(default_factory=ReadingConfig, description="These rules say how the held-out rows "
                                                                              "are understood; take those of ingest.")
    after: str = Field("", description="Only held-out sessions that began at this ISO time or later count, as "
                                       "2022-05-04T00:00 (UTC where no zone is named); empty takes all.")
    stage: Literal["", Stage] = Field("", description="Only held-out requests of this stage count, under the policy of "
                                                      "it; empty takes each by the policy of its stage.")
    new_users: bool = Field(False, description="Only held-out requests of users whom the samples lack count.")
    samples: str = Field("runs/samples", description="What the policy was trained on: critics are fitted to it, and "
                                                     "held-out rows that it holds are an error; empty for none.")
    output: str = Field("runs/report", description="This directory gets metrics.json, and report.html from the job.")
    cap: float | None = Field(None, gt=0, allow_inf_nan=True, description=(
        "An importance weight is cut at this ratio of two densities; absent, at one that the log supports."))
    explore: bool = Field(True, description="The policy is judged with its exploration, as serving plays it; otherwise "
                                            "its mean action, of which critics alone say something.")
    min_ess: float = Field(MIN_ESS, ge=0, description="Below this effective sample size an estimator gives its reason "
                                                      "instead of a number.")
    session_discount: float = Field(1.0, ge=0, le=1, description="γ of a session's value; 1 is what a session brings "
                                                                 "in total.")
    critic_rows: int = Field(100_000, ge=1, description="The critics are fitted to this many samples, the first ones.")
    streaming: bool = Field(False, description="For session logs beyond memory, NCIS and IS go over all requests by "
                                               "Ray Data, all else over the first critic_rows.")
    level: float = Field(LEVEL, gt=0, lt=1, description="Intervals hold the truth with this probability.")
    seed: int = Field(0, description="The seed of the bootstrap over users, and of drawn actions.")

    @model_validator(mode="after")
    def _check_splits(self) -> EvaluateConfig:
        require(not self.after or parse_time(self.after) is not None, "after", self.after,
                "an ISO time, as 2022-05-04T00:00")
        return self

    @property
    def options(self) -> EstimateOptions:
        """Of every estimator."""
        return EstimateOptions(min_ess=self.min_ess, level=self.level, seed=self.seed)


def parse_time(text: str) -> datetime | None:
    """An ISO time, UTC where it names no zone; None where it is none."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
