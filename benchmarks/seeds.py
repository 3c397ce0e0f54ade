"""A repetition per seed, each with a seed of its own for everything, and the table after every one."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from recfuse.runtime.cluster import cluster

Result = TypeVar("Result")


class Seeds(Protocol):
    """What a config says of its repetitions."""

    @property
    def seeds(self) -> int:
        """How many."""
        ...

    @property
    def first_seed(self) -> int:
        """Of the first; the others follow."""
        ...


Config = TypeVar("Config", bound=Seeds)


def repeat(config: Config, repetition: Callable[[Config, int], Result],
           show: Callable[[str, list[Result]], None]) -> list[Result]:
    """Runs `repetition` for every seed on one local Ray; prints what there is after each, its time, and the config."""
    results: list[Result] = []
    with cluster():
        for seed in range(config.first_seed, config.first_seed + config.seeds):
            begin = time.monotonic()
            results.append(repetition(config, seed))
            show(f"after seed {seed}", results)
            print(f"seed {seed}: {time.monotonic() - begin:.0f} s", flush=True)
    print(f"{os.cpu_count()} cores; {config}")
    return results
