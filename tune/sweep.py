"""A sweep: one trial per choice of a search space, judged on users that did not train; the frontier, and a report.

    python -m tune.sweep --config tune/config/fusion.yaml [--dry-run]

A rerun repeats no finished trial.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

from recfuse.learning.options import choose_algorithm
from recfuse.runtime.console import start
from recfuse.tune.settings import SweepConfig

if TYPE_CHECKING:
    from recfuse.tune.conclusion import SweepResult


def main(config: SweepConfig) -> SweepResult:
    """Runs what is left of the sweep on the current Ray, or on a local one, and writes the report."""
    from recfuse.runtime.cluster import cluster
    from recfuse.runtime.outputs import claim
    from recfuse.tune.trials import sweep

    with contextlib.nullcontext() if config.dry_run else claim(config.output, "sweep") as claimed, cluster():
        if claimed is not None:
            claimed.join()
        return sweep(config, Path(config.output))


def command() -> None:
    """Runs the sweep as the command line says."""
    main(start(SweepConfig, description=__doc__, choose=choose_algorithm))


if __name__ == "__main__":
    command()
