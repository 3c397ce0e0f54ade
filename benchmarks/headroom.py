"""How much personal fusion weights can gain in a simulated world over one vector for everybody.

CEM searches one vector for all users; then, started there, one vector per user, each judged on that user's own lives.
Both search inside the simulator. The test is on lives that neither search saw. A policy that reads a state, and learns
from logs, cannot be expected to gain more over CEM than this.

    python -m benchmarks.headroom --simulation runs/real/simulation
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recfuse.console import Progress, start
from recfuse.errors import require
from recfuse.evaluation.intervals import paired_difference
from recfuse.simulation.ab_test import CemConfig, search
from recfuse.simulation.environment import SessionEngine
from recfuse.simulation.rollout import live_with
from recfuse.simulation.simulate import logged_policy
from recfuse.simulation.world import FEEDBACK, World


@dataclass(frozen=True, kw_only=True)
class HeadroomConfig:
    """Attributes:
        simulation: output of the job `simulate`.
        users: of the world, evenly spaced, who get a vector of their own.
        population, elite, iterations: of the search for a user's vector.
        lives: simulated for each user and vector of a population; test_lives: of each user in the test.
        spread: standard deviation of a first population; it shrinks by `shrink` from one to the next.
    """

    simulation: str = "runs/demo/simulation"
    users: int = 400
    population: int = 24
    elite: int = 5
    iterations: int = 12
    lives: int = 32
    test_lives: int = 100
    spread: float = 1.0
    shrink: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("users", "iterations", "lives", "test_lives"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer ≥ 1")
        require(1 <= self.elite < self.population, "elite", self.elite, f"1 to population - 1 = {self.population - 1}")


def main(config: HeadroomConfig) -> None:
    """Searches, tests and prints."""
    world = World.load(Path(config.simulation) / "world")
    logged = logged_policy(Path(config.simulation), world)
    users = np.unique(np.linspace(0, world.users - 1, config.users).astype(np.int64))
    shared = search(world, logged, CemConfig(seed=config.seed)).vector
    everybody = np.broadcast_to(shared, (len(users), len(shared)))
    personal = search_per_user(world, users, everybody, config)
    vectors = np.stack([np.broadcast_to(logged.mu, everybody.shape), everybody, personal])
    base, cem, own = watch_time(world, vectors, users, config.test_lives, config.seed + 1)
    for name, mine, against in (("one vector over the logged mean", cem, base), ("personal over one vector", own, cem)):
        found = paired_difference(mine[:, None], against[:, None], seed=config.seed)
        print(f"watch time, {name}: {found.estimate[0]:+.1%} [{found.low[0]:+.1%}, {found.high[0]:+.1%}]")
    print(f"{len(users)} users, {config.test_lives} lives each; {os.cpu_count()} cores; {config}")


def search_per_user(world: World, users: NDArray[np.int64], begin: NDArray[np.float64],
                    config: HeadroomConfig) -> NDArray[np.float64]:
    """A cross-entropy search for each user at once: [users, M] → [users, M]."""
    rng, mean, spread = np.random.default_rng(config.seed), begin.copy(), config.spread
    progress = Progress("personal vectors", config.iterations, "iterations")
    for iteration in range(config.iterations):
        candidates = mean + spread * rng.normal(size=(config.population, *mean.shape))
        candidates[0] = mean
        scores = watch_time(world, candidates, users, config.lives, config.seed + 2 + iteration)
        best = np.argsort(-scores, axis=0)[:config.elite]
        mean = np.take_along_axis(candidates, best[..., None], 0).mean(0)
        spread *= config.shrink
        progress.advance(1)
    progress.finish()
    return mean


def watch_time(world: World, vectors: NDArray[np.float64], users: NDArray[np.int64], lives: int,
               seed: int) -> NDArray[np.float64]:
    """Mean watch time over the horizon in seconds, [V, users], of vectors [V, users, M]; the same luck for all."""
    engine, total = SessionEngine(world, seed), np.zeros(vectors.shape[:2])
    weights = vectors.reshape(-1, vectors.shape[-1])
    for life in range(lives):
        lived = live_with(engine, weights, np.tile(users + life * world.users, len(vectors)))
        total += lived.feedback[:, FEEDBACK.index("watch_time")].reshape(total.shape)
    return total / lives


if __name__ == "__main__":
    main(start(HeadroomConfig, description=__doc__))
