"""The main job end to end: exposures → scorer → world → samples → policy → A/B test → bundles → answers → report.

Every step is a job of its own (`python jobs/NAME.py`); here they run one after the other on one Ray. A rerun takes up
what is finished. The screen has a line a step; what the jobs say is in the output's log.txt.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from recfuse.config import Config
from recfuse.runtime.console import print_config, start
from recfuse.simulation.config import CemConfig

if TYPE_CHECKING:
    from recfuse.runtime.outputs import Output

LOG = "log.txt"
STEPS = 8


class DemoConfig(Config):
    """Config of the demo."""

    former: ClassVar[Mapping[str, str]] = {"logs": "exposures"}

    exposures: str = Field(
        "", description="Exposures: a directory with KuaiRand files is read; `shop` is a generator; empty takes the "
        "embedded simulator's.")
    output: str = Field("runs/demo", description="Everything that is made lies beneath this directory.")
    persons: int = Field(18_000, description="The simulated session logs hold so many people, and the A/B test does, "
                         "from 1,000 to 15,000.", ge=1)
    requests: int = Field(200, description="So many HTTP requests are timed at each endpoint.", ge=1)
    cem: CemConfig = Field(CemConfig(), description="The cross-entropy method searches the simulator so.")
    portable: bool = Field(False, description="Nothing is rounded to bfloat16 by itself, so that processors with and "
                           "without it agree; `make demo PORTABLE=1` also asks for the same instructions.")
    verbose: bool = Field(False, description="Everything that goes to log.txt is shown on the screen as well.")


def main(config: DemoConfig) -> Path:
    """Runs the whole flow and returns the path of the report."""
    from recfuse.jobs._flow import flow
    from recfuse.runtime.cluster import cluster
    from recfuse.runtime.screen import screened

    with claimed(config.output) as output:
        output.replace(LOG, "")  # Another run's lines are not this one's.
        with screened(Path(config.output) / LOG, STEPS, config.verbose) as screen:
            screen.say(f"{config.exposures or 'the embedded simulator'} → {config.output}; a rerun takes up what is "
                       f"finished; everything that is said: {screen.path}\n")
            print_config(config)
            with cluster():
                return flow(config, output, screen)


@contextmanager
def claimed(directory: str) -> Iterator[Output]:
    """Inside, the directory is this run's alone.

    Raises:
        InvalidFieldError: another run writes to it, or it has a file of a name that no demo wrote.
    """
    from recfuse.jobs._flow import SERVING
    from recfuse.runtime.outputs import claim

    with claim(directory, "demo") as output:
        for name in (SERVING, LOG):
            output.require_replaceable(name)
        yield output


def command() -> None:
    """The program; Ctrl-C ends it with 130."""
    try:
        main(start(DemoConfig, description=__doc__, show=False))
    except KeyboardInterrupt:
        print("\ninterrupted; a rerun takes up what is finished", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    command()
