"""The baseline of the cross-entropy method: one fusion vector for everybody, searched in the simulator itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from recfuse.config import Config, require
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.learning.cem import CemResult, cem
from recfuse.simulation.output import logged_policy, require_json, run_of, write_json
from recfuse.simulation.rollout import live_with
from recfuse.simulation.sessions import SessionEngine
from recfuse.simulation.world import FEEDBACK, World

CEM_FILE = "cem.json"
Scores = Callable[[NDArray[np.float64]], NDArray[np.float64]]


class CemConfig(Config):
    """How the cross-entropy method searches for one fusion vector in the simulator."""

    persons: int = Field(800, description="Every vector is judged by the lives of so many simulated persons.", ge=1)
    population: int = Field(16, description="An iteration of the search judges so many vectors.", ge=2)
    iterations: int = Field(8, description="The search draws so many populations.", ge=1)
    spread: float = Field(
        0.7, description="The first population has this standard deviation around the logged policy's mean.", gt=0)
    sigma: float = Field(0.5, description="The exported policy explores with this standard deviation.", gt=0)
    seed: int = Field(5, description="The seed of the populations and of the persons' luck.", ge=0)


def rollout_objective(world: World, *, persons: int, seed: int, measure: str = "watch_time") -> Scores:
    """An objective for CEM: [P, M] fusion vectors → [P] means per person, all vectors with the same luck."""
    require(measure in FEEDBACK, "measure", measure, ", ".join(FEEDBACK))
    engine, column = SessionEngine(world, seed), FEEDBACK.index(measure)
    some = np.arange(persons)

    def objective(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        total = live_with(engine, np.repeat(vectors, persons, axis=0), np.tile(some, len(vectors)))
        means: NDArray[np.float64] = total.feedback[:, column].reshape(len(vectors), persons).mean(1)
        return means

    return objective


def search(world: World, logged: FixedGaussian, config: CemConfig, measure: str = "watch_time") -> CemResult:
    """CEM on watch time, or another behaviour of FEEDBACK, started at the logged policy's mean."""
    objective = rollout_objective(world, persons=config.persons, seed=config.seed, measure=measure)
    return cem(objective, logged.mu, config.spread, population=config.population, iterations=config.iterations,
               seed=config.seed)


def cem_bundle(world: World, simulation: Path, config: CemConfig, output: Path) -> Path:
    """CEM's vector as a fusion bundle; searched once per world and config.

    Args:
        simulation: output of the job `simulate`; output: gets the bundle, and `cem.json`, which says whose it is.
    """
    run = run_of(simulation)
    identity = {"simulation": run, "config": config.to_dict()}
    saved = require_json(output / CEM_FILE, "identity")
    if saved.get("identity") == identity and (output / saved["bundle"]).is_dir():
        return output / str(saved["bundle"])
    result = search(world, logged_policy(simulation, world), config)
    bundle = export_policy(output, FixedGaussian(result.vector, config.sigma), world.vocabulary,
                           training=identity, data_fingerprint=run,
                           metrics={"elite_score": [entry.elite_score for entry in result.history]})
    write_json(output / CEM_FILE, {"identity": identity, "bundle": bundle.name}, "identity")
    return bundle
