"""Session logs → samples, with an account of every row: in = kept + quarantined."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recfuse.logs.config import IngestConfig
from recfuse.runtime.console import start, table

if TYPE_CHECKING:
    from recfuse.logs.ingest import IngestResult


def main(config: IngestConfig) -> IngestResult:
    """Runs the job on the current Ray, or on a local one."""
    from recfuse.logs.ingest import prepared
    from recfuse.runtime.cluster import cluster
    from recfuse.runtime.waiting import Watch

    with prepared(config) as work, cluster(), Watch("ingest", config.wait_limit):
        result = work.write()
    account = result.account
    table(f"Samples in {result.samples} ({result.sessions:,} sessions)", ["rows", "count"], [
        ("in", f"{account.rows_in:,}"),
        ("kept", f"{account.kept:,}"),
        *((f"quarantined: {reason}", f"{rows:,}") for reason, rows in sorted(account.quarantined.items())),
        *((f"unreadable file {file}: {why}", "unknown") for file, why in sorted(account.unreadable_files.items())),
        *((words, f"{rows:,}") for words, rows in (
            ("left out: last requests of sessions that the end of the log cuts", account.left_out),
            ("sessions that the end of the log cuts", account.truncated),
            ("kept, but their action was not drawn", account.not_drawn),
            ("kept at the time of the request before, in the order of their ids", account.ties)) if rows),
    ])
    for note in account.notes:
        print(note)
    account.require(config.quarantine_limit, "logs")
    return result


def command() -> None:
    """Runs the job as the command line says."""
    main(start(IngestConfig, description=__doc__))


if __name__ == "__main__":
    command()
