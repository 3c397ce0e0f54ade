"""Policies against each other in a simulated world: what the job `ab_test` runs and writes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recfuse.config import require
from recfuse.runtime.outputs import claim
from recfuse.simulation.arms import read_arm
from recfuse.simulation.cem import cem_bundle
from recfuse.simulation.config import CEM, MEAN, AbTestConfig, Who
from recfuse.simulation.experiment import aa_test, ab_test, reach
from recfuse.simulation.output import WORLD, held_out_share, require_json, write_json
from recfuse.simulation.persons import held_out
from recfuse.simulation.world import World
from recfuse.stats.experiment import AaResult, AbResult

METRICS = "metrics.json"


@dataclass(frozen=True)
class AbTestResult:
    """The result of the job; `cem_bundle` is None where CEM took no part, `aa` where no A/A test was asked for.

    `reach`: arm → how far exploration turns its rankings (`recfuse.simulation.experiment.reach`). `primary`: what was
    looked at.
    """

    result: AbResult
    metrics: Path
    cem_bundle: Path | None
    reach: dict[str, float]
    primary: str
    aa: AaResult | None = None


def run_ab_test(config: AbTestConfig) -> AbTestResult:
    """Runs the test of the config and writes `metrics.json`. CEM's search is taken up from an earlier run.

    Raises:
        InvalidFieldError: what the config names cannot be read or tested, or another job writes to the output.
    """
    with claim(config.output, "ab_test"):
        return _run(config)


def _run(config: AbTestConfig) -> AbTestResult:
    simulation, output = Path(config.simulation), Path(config.output)
    world = World.load(simulation / WORLD)
    config = config.replace(primary=config.primary or world.responses.primary)
    require_json(output / METRICS, "arms")
    # Whatever is refused is refused before CEM searches.
    searched = [text for text in config.policies if text in (CEM, CEM + MEAN)]
    arms, bundle = {text: read_arm(text, simulation, world, config.explore) for text in config.policies
                    if text not in searched}, None
    users = _users(world, simulation, config.users)
    if searched:
        bundle = cem_bundle(world, simulation, config.cem, output)
        arms |= {text: read_arm(f"{text}={bundle}", simulation, world, config.explore) for text in searched}
    aa = None
    if config.aa_runs:
        aa = aa_test(world, arms[config.policies[0]], runs=config.aa_runs, persons=config.aa_persons, seed=config.seed,
                     users=users, correction=config.correction, level=config.level)
    result = ab_test(world, [arms[text] for text in config.policies], persons=config.persons, seed=config.seed,
                     shares=config.shares or None, users=users, paired=config.paired,
                     looks=config.looks if config.interval == "always_valid" else 0, primary=config.primary,
                     correction=config.correction, level=config.level)
    far = {arms[text].name: reach(world, arms[text]) for text in config.policies}
    write_json(output / METRICS, to_json(result, config, far, aa), "arms")
    return AbTestResult(result, output / METRICS, bundle, far, config.primary, aa)


def _users(world: World, simulation: Path, who: Who) -> NDArray[np.bool_] | None:
    if who == "everyone":
        return None
    out = held_out(world, held_out_share(simulation))
    require(who == "logged" or bool(out.any()), "users", who, "a simulation with held_out_users > 0")
    return out if who == "held_out" else ~out


def to_json(result: AbResult, config: AbTestConfig, far: dict[str, float],
            aa: AaResult | None = None) -> dict[str, Any]:
    """Plain values for the report; `far`: how far exploration turns each arm."""
    def plain(values: NDArray[np.float64]) -> list[float | None]:
        return [None if np.isnan(value) else float(value) for value in values]

    return {
        "level": config.level, "paired": result.paired, "seed": config.seed, "measures": list(result.measures),
        "correction": result.correction, "users": config.users, "primary": config.primary,
        "aa": None if aa is None else {"runs": aa.runs, "false": plain(aa.false), "family": aa.family},
        "arms": [{"name": arm.name, "reach": far[arm.name], "users": arm.users, "mean": arm.mean.tolist(),
                  **{key: plain(getattr(arm.effect, key)) for key in ("estimate", "low", "high")},
                  **{key: plain(getattr(arm, key)) for key in ("p_value", "adjusted", "detectable")},
                  "error": plain(np.sqrt(np.diagonal(result.covariances)[:, place])),
                  "looks": [dataclasses.asdict(look) for look in arm.looks]}
                 for place, arm in enumerate(result.arms)]}
