"""One pass of the mover over a decision log, for logs of machines that are gone."""

from __future__ import annotations

from pathlib import Path

from recfuse.config import require
from recfuse.serving.config import CollectConfig
from recfuse.serving.mover import MoveAccount, Mover, only_mover, served_vocabulary
from recfuse.serving.session_table import PROGRESS_FILE


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
