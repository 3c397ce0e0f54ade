"""One pass of the mover over a decision log, for logs of machines that are gone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from recfuse.config import Config, require
from recfuse.runtime.locations import locate
from serving.mover import MoveAccount, Mover, only_mover, served_vocabulary
from serving.session_table import PROGRESS_FILE


class CollectConfig(Config):
    """Config of the job."""

    decision_log: str = Field("runs/demo/decisions", description="Serving appends to this directory.")
    models: str = Field("runs/demo/models", description=(
        "Serving watches this directory; the log's vocabulary is that of its fusion bundle."))
    output: str = Field("runs/demo/served_logs", description=(
        "The session log goes to this directory or URL; a rerun adds what has come since."))
    window_minutes: float = Field(60.0, ge=0, description=(
        "Feedback counts so many minutes after its request; younger requests wait for a later run."))
    unnamed: Literal["keep", "refuse"] = Field("keep", description=(
        "Decisions without `vocabulary_hash`, of which no bundle and no file beside the log tells the vocabulary, are "
        "kept as the served model's, or refused."))

    @model_validator(mode="after")
    def _check(self) -> CollectConfig:
        same = locate(self.output, "output").root == locate(self.decision_log, "decision_log").root
        require(not same, "output", self.output, "a directory other than decision_log")
        return self


def collect(config: CollectConfig, now: float | None = None) -> MoveAccount:
    """Moves what has waited long enough; `now` (seconds since 1970) is the clock's where it is None.

    Raises:
        InvalidFieldError: there is no such log or model, or somebody else moves the log.
    """
    log = Path(config.decision_log)
    require(not log.is_dir() or any(log.glob("*.jsonl")) or (log / PROGRESS_FILE).exists(), "decision_log",
            config.decision_log, "a directory that serving logs to; there is no *.jsonl in it")
    vocabulary = served_vocabulary(config.models)
    with only_mover(config.decision_log, wait=False):
        mover = Mover(config.decision_log, config.output, vocabulary, window_seconds=config.window_minutes * 60,
                      models=config.models, refuse_unnamed=config.unnamed == "refuse")
        return mover.move(now)
