"""How much personal fusion weights can gain in a simulated world over one vector for everybody.

CEM searches one vector for all users; then, started there, one vector per user, each judged on that user's own lives.
Both search inside the simulator. The test is on lives that neither search saw, and no vector explores. A policy that
reads a state, and learns from logs, cannot be expected to gain more over CEM than this.

And what there is to gain in interactions: CEM searches one vector for each of `measures`, which is then compared with
the one for watch time.

    python -m benchmarks.headroom --simulation runs/real/simulation
    python -m benchmarks.headroom --simulation runs/real/simulation --users 0 --measures like forward
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from recfuse.config import Config, require
from recfuse.fusion.policies import FixedGaussian
from recfuse.runtime.console import Progress, start, table
from recfuse.simulation.arms import Arm
from recfuse.simulation.cem import CemConfig, search
from recfuse.simulation.experiment import ab_test
from recfuse.simulation.output import logged_policy
from recfuse.simulation.responses import FEED
from recfuse.simulation.rollout import live_with
from recfuse.simulation.sessions import SessionEngine
from recfuse.simulation.world import World
from recfuse.stats.intervals import Interval, paired_difference

SHOWN = ("watch_time", "requests", "forward", "follow", "comment", "like")


class HeadroomConfig(Config):
    """What is searched in the simulator, and how long."""

    simulation: str = Field("runs/demo/simulation", description="This is the output of the job `simulate`.")
    users: int = Field(
        400, description="So many users of the world, evenly spaced, get a vector each; 0 leaves this out.", ge=0)
    measures: tuple[str, ...] = Field((), description="One vector is searched for each of these behaviours.")
    persons: int = Field(
        3_000, description="A vector for a behaviour of `measures` is judged by so many lives, since those are rare.",
        ge=1)
    test_persons: int = Field(
        60_000, description="The vectors are compared with the one for watch time on so many lives.", ge=1)
    population: int = Field(24, description="An iteration of a user's search judges so many vectors.", ge=2)
    elite: int = Field(5, description="The next population is drawn around the best so many vectors.", ge=1)
    iterations: int = Field(12, description="A user's search draws so many populations.", ge=1)
    lives: int = Field(32, description="A user lives so often under every vector of a population.", ge=1)
    test_lives: int = Field(100, description="A user lives so often under every vector of the test.", ge=1)
    spread: float = Field(1.0, description="A first population has this standard deviation.", gt=0)
    shrink: float = Field(
        0.8, description="The standard deviation shrinks by this factor from one population to the next.", gt=0, le=1)
    seed: int = Field(0, description="The seed of populations and luck.", ge=0)

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        require(set(self.measures) <= set(FEED.feedback), "measures", self.measures, ", ".join(FEED.feedback))
        require(self.elite < self.population, "elite", self.elite, f"1 to population - 1 = {self.population - 1}")
        return self


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
    """Prints, and returns, measure → the vector searched for it over the one for watch time, in all measures."""
    arms = [Arm("watch_time", FixedGaussian(search(world, logged, CemConfig(seed=config.seed)).vector, 1.0))]
    for name in config.measures:
        result = search(world, logged, CemConfig(persons=config.persons, seed=config.seed), name)
        arms.append(Arm(f"for {name}", FixedGaussian(result.vector, 1.0)))
    # Everybody lives under every vector, with the same luck.
    test = ab_test(world, arms, persons=config.test_persons, seed=config.seed + 1, paired=True)
    effects = {arm.name: arm.effect for arm in test.arms[1:]}
    place = [FEED.measures.index(name) for name in SHOWN]
    table(f"One vector searched for a measure over one searched for watch time, per user, {config.test_persons:,} "
          "persons, the same lives", ["searched", *SHOWN], [
              (name, *(f"{of.estimate[k]:+.1%} [{of.low[k]:+.1%}, {of.high[k]:+.1%}]" for k in place))
              for name, of in effects.items()])
    return effects


def personal(world: World, logged: FixedGaussian, config: HeadroomConfig) -> None:
    """Prints what one vector for everybody gains over the logged mean, and one vector a user over that."""
    users = np.unique(np.linspace(0, world.users - 1, config.users).astype(np.int64))
    shared = search(world, logged, CemConfig(seed=config.seed)).vector
    everybody = np.broadcast_to(shared, (len(users), len(shared)))
    per_user = search_per_user(world, users, everybody, config)
    vectors = np.stack([np.broadcast_to(logged.mu, everybody.shape), everybody, per_user])
    by_mean, by_shared, by_user = watch_time(world, vectors, users, config.test_lives, config.seed + 1)
    for name, treated, base in (("one vector over the logged mean", by_shared, by_mean),
                                ("personal over one vector", by_user, by_shared)):
        change = paired_difference(treated[:, None], base[:, None], seed=config.seed)
        print(f"watch time, {name}: {change.estimate[0]:+.1%} [{change.low[0]:+.1%}, {change.high[0]:+.1%}]")
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
        total += lived.feedback[:, FEED.feedback.index("watch_time")].reshape(total.shape)
    return total / lives


if __name__ == "__main__":
    main(start(HeadroomConfig, description=__doc__))
