"""Decisions and feedback that serving logged → the session-log table, which `jobs/ingest.py` reads. Serving does this
itself in the background where its config names a `session_table`; this job is for logs of machines that are gone."""

from __future__ import annotations

from dataclasses import dataclass

from recfuse.config import require
from recfuse.runtime.console import start, table
from serving.mover import MoveAccount, Mover, only_mover, served_vocabulary


@dataclass(frozen=True, kw_only=True)
class CollectConfig:
    """Config of the job.

    Attributes:
        decision_log: the directory that serving appends to.
        models: the directory that serving watches; the log's vocabulary is that of its fusion bundle.
        output: directory or URL of the session log; a rerun adds what has come since.
        window_minutes: how long after its request feedback counts; younger requests wait for a later run.
    """

    decision_log: str = "runs/demo/decisions"
    models: str = "runs/demo/models"
    output: str = "runs/demo/served_logs"
    window_minutes: float = 60.0

    def __post_init__(self) -> None:
        require(self.output != self.decision_log, "output", self.output, "a directory other than decision_log")
        require(self.window_minutes >= 0, "window_minutes", self.window_minutes, "a number ≥ 0")


def main(config: CollectConfig, now: float | None = None) -> MoveAccount:
    """Runs the job; `now` (seconds since 1970) is the clock's where it is None."""
    vocabulary = served_vocabulary(config.models)
    with only_mover(config.decision_log, wait=False):
        account = Mover(config.decision_log, config.output, vocabulary,
                        window_seconds=config.window_minutes * 60).move(now)
    table(f"Session log in {config.output}", ["what", "count"],
          [(name.replace("_", " "), f"{value:,}") for name, value in vars(account).items() if name != "oldest"])
    return account


if __name__ == "__main__":
    main(start(CollectConfig, description=__doc__))
