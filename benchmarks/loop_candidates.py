"""Candidates whose effects are known, because the simulator tells them: better, equal, and worse on likes alone.

Each is one vector of fusion weights for everybody. Better and worse are searched in the simulator itself, from the base
weights: as much watch time as can be had with the likes kept, and as few likes as can be had with the watch time kept.
The equal one multiplies weights and exploration alike, so that it ranks as the base does, draw by draw.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recfuse.fusion.policies import FixedGaussian
from recfuse.learning.cem import cem
from recfuse.simulation.arms import Arm
from recfuse.simulation.cem import rollout_objective
from recfuse.simulation.experiment import ab_test
from recfuse.simulation.rollout import live_with
from recfuse.simulation.sessions import SessionEngine
from recfuse.simulation.world import World
from recfuse.stats.experiment import AbResult

Array = NDArray[np.float64]
BETTER, EQUAL, WORSE = "better", "equal", "worse on likes"
_SCALE = 1.25  # of the equal candidate's weights and exploration
_MARGIN = 0.25  # of watch time that the worse candidate brings more, of which exploration takes a part again
_SHORTFALL = 10.0  # what lacks to a bound costs so many times its share


@dataclass(frozen=True)
class Search:
    """How long is searched: persons of a vector, vectors of a population, populations, and the first spread."""

    persons: int = 300
    population: int = 24
    iterations: int = 8
    spread: float = 0.5
    seed: int = 0


def candidates(world: World, base: FixedGaussian, search: Search, file: Path) -> dict[str, FixedGaussian]:
    """Name → policy, in the order in which they are rolled out: the one that is promoted comes last.

    Args:
        file: keeps what was found, for later runs of the same search in the same world.
    """
    identity = [world.config.to_dict(), float(world.logits.mean()), base.mu.tolist(), asdict(search)]
    known = json.loads(file.read_text()) if file.exists() else {}
    if known.get("identity") != json.loads(json.dumps(identity)):
        known = {"identity": identity, "found": {
            name: policy.mu.tolist() for name, policy in _searched(world, base, search).items()}}
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(known))
    found = {name: FixedGaussian(vector, base.sigma) for name, vector in known["found"].items()}
    return {EQUAL: FixedGaussian(_SCALE * base.mu, _SCALE * base.sigma), **found}


def _searched(world: World, base: FixedGaussian, search: Search) -> dict[str, FixedGaussian]:
    better = rollout_objective(world, persons=search.persons, seed=search.seed, measure="watch_time",
                               floors={"like": 0.0, "click": 0.0}, logged=base)
    return {WORSE: _found(fewer_likes(world, base, search), base, search), BETTER: _found(better, base, search)}


def fewer_likes(world: World, base: FixedGaussian, search: Search) -> Callable[[Array], Array]:
    """An objective for CEM: [P, M] vectors → [P], the share of likes that goes, where watch time stays."""
    engine, some = SessionEngine(world, search.seed), np.arange(search.persons)
    watch, like = world.columns(("watch_time", "like"))

    def means(vectors: Array) -> Array:
        total = live_with(engine, np.repeat(vectors, len(some), axis=0), np.tile(some, len(vectors)))
        return np.asarray(total.feedback.reshape(len(vectors), len(some), -1).mean(1))

    own = means(base.mu[None].astype(np.float64))[0]

    def objective(vectors: Array) -> Array:
        change = means(vectors) / np.maximum(own, 1e-12) - 1
        return np.asarray(-change[:, like] - _SHORTFALL * np.maximum(_MARGIN - change[:, watch], 0))

    return objective


def effects(world: World, base: FixedGaussian, chosen: Mapping[str, FixedGaussian], persons: int,
            seed: int) -> AbResult:
    """The truth: every person lives once under each policy, exploring as served, with the same luck."""
    arms = [Arm("base", base, explore=True), *(Arm(name, policy, explore=True) for name, policy in chosen.items())]
    return ab_test(world, arms, persons=persons, seed=seed, paired=True)


def _found(objective: Callable[[Array], Array], base: FixedGaussian, search: Search) -> FixedGaussian:
    found = cem(objective, base.mu, search.spread, population=search.population, iterations=search.iterations,
                seed=search.seed)
    return FixedGaussian(found.vector, base.sigma)
