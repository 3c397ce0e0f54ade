"""What a user may say about how a log is read, and where its samples go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field, model_validator

from recfuse.config import Config, require
from recfuse.logs.account import QUARANTINE_LIMIT
from recfuse.runtime.limits import wait_limit

Cut = Literal["leave_out", "bootstrap"]


@dataclass(frozen=True, kw_only=True)
class SessionRule:
    """What cuts sessions.

    Attributes:
        gap_seconds: without `session_id`, a longer pause ends a session.
        log_end: time of the log's last request, in microseconds since 1970. A session whose last request lies less than
            the gap before it, and is not marked `last`, may have gone on. None: the log ends after everything.
        cut: of such a session, the last request is left out of the samples, because nobody knows what followed; or it
            bootstraps from the value of its own state.
    """

    gap_seconds: float = 1800.0
    log_end: int | None = None
    cut: Cut = "leave_out"


class ReadingConfig(Config):
    """How the rows of a log are understood; the same for every job that reads it."""

    vocabulary: str = Field("", description="YAML file of the vocabulary; empty takes the one that lies in the log.")
    gap_minutes: float = Field(
        30.0, description="Where `session_id` is absent, a pause of more minutes than this ends a session.", gt=0)
    order_column: str = Field(
        "", description="Column of integers that orders requests of equal time; empty takes `position`.")
    density: Literal["required", "optional"] = Field(
        "required", description="`required` quarantines rows that have neither the density of their action nor a "
                                "Gaussian to compute it from; `optional` keeps them and the learner estimates it.")
    cut: Cut = Field(
        "leave_out", description="The last request of a session that the end of the log cuts is left out, or it "
                                 "bootstraps from its own state.")
    quarantine_limit: float = Field(
        QUARANTINE_LIMIT, ge=0, le=1, description="A job ends with an error after it has written where a larger share "
                                                  "of rows is quarantined.")

    def rule(self, end: int | None) -> SessionRule:
        """What cuts sessions, of a log that ends at this time (microseconds since 1970)."""
        return SessionRule(gap_seconds=self.gap_minutes * 60, log_end=end, cut=self.cut)


class IngestConfig(ReadingConfig):
    """What to ingest and where to put it."""

    logs: str = Field(
        "runs/session_logs", description="Directory or Delta table of the session logs, on any filesystem that pyarrow "
                                         "knows (a path, s3://, gs://, hdfs://).", min_length=1)
    wait_limit: float = wait_limit()
    output: str = Field(
        "runs/samples", description="Directory of the samples, on any filesystem that pyarrow knows; `quarantine` lies "
                                    "beneath it.", min_length=1)

    @model_validator(mode="after")
    def _check_output(self) -> IngestConfig:
        require(self.output != self.logs, "output", self.output, "a directory other than logs")
        return self
