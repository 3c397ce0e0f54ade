"""The loop by itself, several times around: what persons brought in every round, beside a world where nothing is
deployed."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from benchmarks.loop_clients import Life, Local
from benchmarks.loop_trial import Outcome, Trial
from recfuse.fusion.policies import FixedGaussian
from recfuse.rollout.config import Plan
from recfuse.rollout.store import Store
from recfuse.simulation.world import World


class Rounds(Protocol):
    """What a config says of its rounds."""

    work: str
    rounds: int
    persons: int
    warm_days: float
    look_days: float
    stage_days: float
    connections: int
    training: str
    first_seed: int

    @property
    def plan(self) -> Plan:
        """Of every rollout."""
        ...


def rounds(config: Rounds, world: World, base: FixedGaussian) -> tuple[Sequence[str], list[tuple[str, ...]]]:
    """Heads and a line per round: the candidate that the loop learned, what became of it, and what persons brought."""
    directory = Path(config.work).absolute() / f"rounds-{config.first_seed}"
    shutil.rmtree(directory, ignore_errors=True)
    warm, longest = round(config.warm_days / config.look_days), round(config.stage_days / config.look_days) + 2
    pieces = warm + config.rounds * (warm + len(config.plan.shares) * longest)
    trial = Trial(directory, world, base, persons=config.persons, look=config.look_days, pieces=pieces,
                  seed=config.first_seed, plan=config.plan, training=config.training)
    found = []
    with trial.served(config.connections):
        for number in range(1, config.rounds + 1):
            found.append(_round(trial, f"round {number}", warm))
            print(f"{found[-1].name}: {found[-1].state} after {found[-1].last - found[-1].first} looks: "
                  f"{found[-1].why}", flush=True)
    other = Life(trial.engine, config.persons, config.look_days, pieces)
    other.until(trial.piece * config.look_days, Local(trial.engine, base))
    columns = world.columns(world.vocabulary.behaviour_names)
    return ("round", "candidate", "shares", "days", *world.vocabulary.behaviour_names), [
        (each.name, each.state, " → ".join(step.removeprefix("canary at ") for step in each.path[1:]),
         f"{(each.last - each.first) * config.look_days:g}",
         *beside(trial.life.brought, other.brought, slice(each.first, each.last), columns)) for each in found]


def _round(trial: Trial, name: str, pieces: int) -> Outcome:
    """Serves for so many pieces of time, then lets the loop learn a candidate, and roll it out to its end."""
    first, known = trial.piece, len(Store(trial.models).audit())
    trial.live(pieces)
    trial.cycle()
    while len(Store(trial.models).audit()) > known and trial.state.state == "canary":
        trial.live()
        trial.cycle()
    if len(Store(trial.models).audit()) == known:
        return Outcome(name, "none was made", (), trial.said, 0.0, first, trial.piece)
    return trial.outcome(name, first, known)


def beside(served: NDArray[np.float64], nothing: NDArray[np.float64], pieces: slice,
           columns: Sequence[int]) -> list[str]:
    """Of each column: what all persons brought in these pieces of time, and its change to the other world."""
    here, there = (of[pieces][:, list(columns)].sum(0) for of in (served, nothing))
    return [f"{value:,.0f} ({value / other - 1:+.1%})" if other else f"{value:,.0f}"
            for value, other in zip(here.tolist(), there.tolist(), strict=True)]
