"""Session logs → samples, with an account of every row: in = kept + quarantined."""

from __future__ import annotations

from recfuse.logs.ingest import IngestConfig, IngestResult, ingest
from recfuse.runtime.cluster import cluster
from recfuse.runtime.console import start, table


def main(config: IngestConfig) -> IngestResult:
    """Runs the job on the current Ray, or on a local one."""
    with cluster():
        result = ingest(config)
    account = result.account
    table(f"Samples in {result.samples} ({result.sessions:,} sessions)", ["rows", "count"], [
        ("in", f"{account.rows_in:,}"),
        ("kept", f"{account.kept:,}"),
        *((f"quarantined: {reason}", f"{rows:,}") for reason, rows in sorted(account.quarantined.items())),
        *((f"unreadable file {file}: {why}", "unknown") for file, why in sorted(account.unreadable_files.items())),
    ])
    return result


if __name__ == "__main__":
    main(start(IngestConfig, description=__doc__))
