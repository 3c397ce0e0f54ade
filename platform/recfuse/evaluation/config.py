"""What a user may say about an off-policy evaluation."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import Field, model_validator

from recfuse.config import Config, require
from recfuse.evaluation.answers import MIN_ESS, EstimateOptions
from recfuse.logs.reading import ReadingConfig
from recfuse.stats.intervals import LEVEL


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
