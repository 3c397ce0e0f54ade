"""Exposures → the multi-scene scorer: its bundle, and its metrics on the last day.

The days before the test day train, in the rows of the scorer's share; the others are the simulator's response model's.
Hyper-parameters are chosen with `--test-day` on an earlier day, never on the last one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from recfuse.runtime.console import start, table
from recfuse.scenes.config import TrainScenesConfig

if TYPE_CHECKING:
    from recfuse.scenes.result import TrainScenesResult


def main(config: TrainScenesConfig) -> TrainScenesResult:
    """Runs the job on the current Ray, or on a local one; a finished run of the same config and data is reused."""
    from recfuse.scenes.train_scenes import train_scenes
    from recfuse.simulation.sources import read_source

    source = read_source(config.exposures, config.layout, config.orphan, config.registry)
    result = train_scenes(config, source.exposures, source.registry, source.features)
    for title, columns, lines in result.tables():
        table(title, columns, lines)
    source.exposures.account.require(config.quarantine_limit, "exposures")
    return result


def command() -> None:
    """Runs the job as the command line says."""
    main(start(TrainScenesConfig, description=__doc__))


if __name__ == "__main__":
    command()
