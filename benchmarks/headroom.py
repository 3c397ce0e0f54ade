"""How much personal fusion weights can gain in a simulated world over one vector for everybody.

CEM searches one vector for all users; then, started there, one vector per user, each judged on that user's own lives.
Both search inside the simulator. The test is on lives that neither search saw. A policy that reads a state, and learns
from logs, cannot be expected to gain more over CEM than this.

And what there is to gain in interactions: CEM searches one vector for each of `measures`, which is then compared with
the one for watch time.

    python -m benchmarks.headroom --simulation runs/real/simulation
    python -m benchmarks.headroom --simulation runs/real/simulation --users 0 --measures like forward
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recfuse.config import require
from recfuse.fusion.policies import FixedGaussian
from recfuse.runtime.console import Progress, start, table
from recfuse.simulation.arms import Arm
from recfuse.simulation.cem import CemConfig, search
from recfuse.simulation.experiment import MEASURES, ab_test
from recfuse.simulation.output import logged_policy
from recfuse.simulation.rollout import live_with
from recfuse.simulation.sessions import SessionEngine
from recfuse.simulation.world import FEEDBACK, World
from recfuse.stats.intervals import Interval, paired_difference

SHOWN = ("watch_time", "requests", "forward", "follow", "comment", "like")


@dataclass(frozen=True, kw_only=True)
class HeadroomConfig:
    """Attributes:
        simulation: output of the job `simulate`.
        users: of the world, evenly spaced, who get a vector of their own; 0 leaves it out.
        measures: behaviours to search one vector for; persons: lives per vector of that search, since they are rare;
            test_persons: in the comparison with the vector for watch time.
        population, elite, iterations: of the search for a user's vector.
        lives: simulated for each user and vector of a population; test_lives: of each user in the test.
        spread: standard deviation of a first population; it shrinks by `shrink` from one to the next.
    """

    simulation: str = "runs/demo/simulation"
    users: int = 400
    measures: tuple[str, ...] = ()
    persons: int = 3_000
    test_persons: int = 60_000
    population: int = 24
    elite: int = 5
    iterations: int = 12
    lives: int = 32
    test_lives: int = 100
    spread: float = 1.0
    shrink: float = 0.8
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("iterations", "lives", "test_lives", "persons", "test_persons"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer ≥ 1")
        require(self.users >= 0, "users", self.users, "an integer ≥ 0")
        require(set(self.measures) <= set(FEEDBACK), "measures", self.measures, ", ".join(FEEDBACK))
        require(1 <= self.elite < self.population, "elite", self.elite, f"1 to population - 1 = {self.population - 1}")


def main(config: HeadroomConfig) -> None:
    """Searches, tests and prints."""
    world = World.load(Path(config.simulation) / "world")
    logged = logged_policy(Path(config.simulation), world)
    if config.users:
        personal(world, logged, config)
    if config.measures:
        interactions(world, logged, config)
    print(f"{os.cpu_count()} cores; {config}")


def interactions(world: World, logged: FixedGaussian, config: HeadroomConfig) -> dict[str, Interval]:
    """Prints, and returns, measure → the vector searched for it over the one for watch time, in all of MEASURES."""
    watched = Arm("watch_time", FixedGaussian(search(world, logged, CemConfig(seed=config.seed)).vector, 1.0))
    arms = [watched]
    for name in config.measures:
        found = search(world, logged, CemConfig(persons=config.persons, seed=config.seed), name)
        arms.append(Arm(f"for {name}", FixedGaussian(found.vector, 1.0)))
    # Everybody lives under every vector, with the same luck.
    result = ab_test(world, arms, persons=config.test_persons, seed=config.seed + 1, paired=True)
    found = {arm.name: arm.effect for arm in result.arms[1:]}
    place = [MEASURES.index(name) for name in SHOWN]
    table(f"One vector searched for a measure over one searched for watch time, per user, {config.test_persons:,} "
          "persons, the same lives", ["searched", *SHOWN], [
              (name, *(f"{of.estimate[k]:+.1%} [{of.low[k]:+.1%}, {of.high[k]:+.1%}]" for k in place))
              for name, of in found.items()])
    return found


def personal(world: World, logged: FixedGaussian, config: HeadroomConfig) -> None:
    """Prints what one vector for everybody gains over the logged mean, and one vector a user over that."""
    users = np.unique(np.linspace(0, world.users - 1, config.users).astype(np.int64))
    shared = search(world, logged, CemConfig(seed=config.seed)).vector
    everybody = np.broadcast_to(shared, (len(users), len(shared)))
    own_vectors = search_per_user(world, users, everybody, config)
    vectors = np.stack([np.broadcast_to(logged.mu, everybody.shape), everybody, own_vectors])
    base, cem, own = watch_time(world, vectors, users, config.test_lives, config.seed + 1)
    for name, mine, against in (("one vector over the logged mean", cem, base), ("personal over one vector", own, cem)):
        found = paired_difference(mine[:, None], against[:, None], seed=config.seed)
        print(f"watch time, {name}: {found.estimate[0]:+.1%} [{found.low[0]:+.1%}, {found.high[0]:+.1%}]")
    print(f"{len(users)} users, {config.test_lives} lives each")


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
