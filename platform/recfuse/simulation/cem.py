"""The baseline of the cross-entropy method: one fusion vector for everybody, searched in the simulator itself."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recfuse.config import require
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.learning.cem import CemResult, cem
from recfuse.simulation.arms import explored_alike
from recfuse.simulation.config import CemConfig
from recfuse.simulation.output import logged_policy, require_json, run_of, write_json
from recfuse.simulation.rollout import live_with
from recfuse.simulation.sessions import SessionEngine
from recfuse.simulation.world import World

logger = logging.getLogger("recfuse")
CEM_FILE = "cem.json"
# A share of the logged policy's behaviour that lacks to a floor costs so many times that share of the measure.
_SHORTFALL = 10.0
Array = NDArray[np.float64]
Scores = Callable[[Array], Array]


def rollout_objective(world: World, *, persons: int, seed: int, measure: str = "",
                      floors: Mapping[str, float] | None = None, logged: FixedGaussian | None = None) -> Scores:
    """An objective for CEM: [P, M] fusion vectors → [P] means per person, all vectors with the same luck.

    Args:
        measure: of the world's feedback; empty for its long-term behaviour, as watch time.
        floors: behaviour → the least change relative to the logged policy's mean; what lacks to one costs ten times its
            share. With floors the objective is the change of the measure, relative to the same.
    """
    names, measure = world.feedback, measure or world.responses.primary
    for name in (measure, *(floors or {})):
        require(name in names, "measure" if name == measure else "floors", name, ", ".join(names))
    engine, some = SessionEngine(world, seed), np.arange(persons)

    def means(vectors: Array) -> Array:
        total = live_with(engine, np.repeat(vectors, persons, axis=0), np.tile(some, len(vectors)))
        return np.asarray(total.feedback.reshape(len(vectors), persons, -1).mean(1))

    column = names.index(measure)
    if not floors:
        return lambda vectors: means(vectors)[:, column]
    assert logged is not None
    base = means(logged.mu[None].astype(np.float64))[0]
    places, least = world.columns(floors), np.array(list(floors.values()))

    def objective(vectors: Array) -> Array:
        change = means(vectors) / np.maximum(base, 1e-12) - 1
        return np.asarray(change[:, column] - _SHORTFALL * np.maximum(least - change[:, places], 0).sum(1))

    return objective


def search(world: World, logged: FixedGaussian, config: CemConfig, measure: str = "") -> CemResult:
    """CEM on the world's amount, or another column of its feedback, started at the logged policy's mean.

    Of several searches the vector that is best on lives that none of them saw; how far apart they are is logged, since
    a search is as noisy as its lives are few.
    """
    found = []
    for seed in range(config.seed, config.seed + config.searches):
        objective = rollout_objective(world, persons=config.persons, seed=seed, measure=measure, floors=config.floors,
                                      logged=logged)
        found.append(cem(objective, logged.mu, config.spread, population=config.population,
                         iterations=config.iterations, seed=seed))
    if len(found) == 1:
        return found[0]
    judge = rollout_objective(world, persons=4 * config.persons, seed=config.seed + config.searches, measure=measure,
                              floors=config.floors, logged=logged)
    scores = judge(np.stack([result.vector for result in found]))
    logger.info("CEM: %d searches have %s on other lives", len(found), ", ".join(f"{score:.5g}" for score in scores))
    return found[int(scores.argmax())]


def cem_bundle(world: World, simulation: Path, config: CemConfig, output: Path) -> Path:
    """CEM's vector as a fusion bundle, which explores as the logged policy does; searched once per world and config.

    Args:
        simulation: output of the job `simulate`; output: gets the bundle, and `cem.json`, which says whose it is.
    """
    run = run_of(simulation)
    identity = {"simulation": run, "config": config.to_dict()}
    saved = require_json(output / CEM_FILE, "identity")
    if saved.get("identity") == identity and (output / saved["bundle"]).is_dir():
        return output / str(saved["bundle"])
    logged = logged_policy(simulation, world)
    result = search(world, logged, config)
    bundle = export_policy(output, explored_alike(result.vector, logged), world.vocabulary,
                           training=identity, data_fingerprint=run,
                           metrics={"elite_score": [entry.elite_score for entry in result.history]})
    write_json(output / CEM_FILE, {"identity": identity, "bundle": bundle.name}, "identity")
    return bundle
