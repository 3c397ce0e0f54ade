"""A simulated world → fusion policy, learned by actor-critic from what the current policy brings there."""

from __future__ import annotations

from typing import TYPE_CHECKING

from recfuse.learning.options import choose_algorithm
from recfuse.runtime.console import start, table
from recfuse.simulation.config import TrainOnlineConfig

if TYPE_CHECKING:
    from recfuse.simulation.online import TrainOnlineResult


def main(config: TrainOnlineConfig) -> TrainOnlineResult:
    """Runs the job on the current Ray, or on a local one."""
    from recfuse.runtime.cluster import cluster
    from recfuse.simulation.online import train_online

    with cluster():
        result = train_online(config)
    table(f"Fusion policy in {result.bundle}, after {len(result.history)} iterations",
          ["feedback per request", "first", "last"],
          [(name, f"{first:.4g}", f"{last:.4g}") for name, first, last in result.change])
    return result


def command() -> None:
    """Runs the job as the command line says."""
    main(start(TrainOnlineConfig, description=__doc__, choose=choose_algorithm))


if __name__ == "__main__":
    command()
