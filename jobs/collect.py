"""Decisions and feedback that serving logged → the session-log table, which `jobs/ingest.py` reads. Serving does this
itself in the background where its config names a `session_table`; this job is for logs of machines that are gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recfuse.runtime.console import start, table
from recfuse.serving.config import CollectConfig

if TYPE_CHECKING:
    from recfuse.serving.mover import MoveAccount


def main(config: CollectConfig, now: float | None = None) -> MoveAccount:
    """Runs the job; `now` (seconds since 1970) is the clock's where it is None."""
    from recfuse.serving.collect import collect

    account = collect(config, now)
    table(f"Session log in {config.output}", ["what", "count"], [
        *((name.replace("_", " "), f"{value:,}") for name, value in vars(account).items() if isinstance(value, int)),
        *((f"feedback of {name}, which the table lacks", f"{events:,}")
          for name, events in sorted(account.unknown_behaviours.items())),
        *((f"segment {segment}, which waits", why) for segment, why in sorted(account.unreadable.items()))])
    return account


def command() -> None:
    """Runs the job as the command line says."""
    main(start(CollectConfig, description=__doc__))


if __name__ == "__main__":
    command()
