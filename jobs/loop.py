"""The loop by itself: collect → ingest → train → gate → canary → verdict, every hour; killed anywhere it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from recfuse.config import require
from recfuse.rollout.config import LoopConfig
from recfuse.runtime.console import start, table

if TYPE_CHECKING:
    from recfuse.rollout.cycle import Cycle, Cycles


def main(config: LoopConfig) -> Cycle | None:
    """Runs the cycles and returns the last one, None where there was none.

    Raises:
        InvalidFieldError: nothing is served from `models`, no goal is named, or another loop runs in `output`.
    """
    from recfuse.rollout.store import Store
    from recfuse.runtime.locations import locate
    from recfuse.runtime.outputs import locked

    cycle = None
    require(bool(config.plan.targets.goals), "plan.targets.goals", {}, "at least one goal, which promotes")
    Store(config.models)  # What is no models directory is refused before anything is written.
    Path(config.output).mkdir(parents=True, exist_ok=True)
    with locked(locate(config.output, "output"), "output", config.output):
        for cycle in cycles_of(config).every(config.seconds, config.cycles):
            table(f"Cycle {cycle.number}", ["step", "what came of it"], list(cycle.done.items()))
    return cycle


def cycles_of(config: LoopConfig, clock: Callable[[], float] = time.time) -> Cycles:
    """The cycles of a config, with the jobs as their steps, by a clock in seconds since 1970."""
    from recfuse.jobs._loop import Steps
    from recfuse.rollout.cycle import Cycles

    steps = Steps(config, clock)
    return Cycles(Path(config.output), steps.all(), steps.wants_candidate, config.keep)


def command() -> None:
    """The job's command line."""
    main(start(LoopConfig, description=__doc__))


if __name__ == "__main__":
    command()
