"""Policies against each other in a simulated world: what the job `ab_test` runs and writes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from recfuse.config import Config, require
from recfuse.simulation.arms import CEM, MEAN, read_arm
from recfuse.simulation.cem import CemConfig, cem_bundle
from recfuse.simulation.experiment import MEASURES, aa_test, ab_test, reach
from recfuse.simulation.output import WORLD, held_out_share, require_json, write_json
from recfuse.simulation.persons import held_out
from recfuse.simulation.world import World
from recfuse.stats.experiment import AaResult, AbResult
from recfuse.stats.intervals import LEVEL
from recfuse.stats.significance import Correction

METRICS = "metrics.json"
Who = Literal["everyone", "logged", "held_out"]


class AbTestConfig(Config):
    """Config of the job."""

    simulation: str = Field("runs/simulation", description="This is the output of the job `simulate`.")
    policies: tuple[str, ...] = Field(
        ("logged", "cem", "two_stage=runs/fusion"),
        description="One a bucket, the first the base: `logged`, `cem`, a fusion bundle (NAME=PATH), fixed weights "
        "(NAME=click:1,like:0.3); `logged_mean`, `cem:mean`, `NAME:mean=PATH` do not explore.")
    explore: bool = Field(True, description="Every policy explores, as serving lets it; otherwise all but `logged`, "
                          "which explores as it logged, take their means.")
    output: str = Field("runs/ab_test", description="This directory gets `metrics.json` and CEM's bundle.")
    persons: int = Field(60_000, description="All buckets together hold so many simulated users.", ge=2)
    shares: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="The buckets hold the persons in these proportions; equally where empty.")
    users: Who = Field(
        "everyone", description="Tastes are those of everyone, of the users in the session logs, or of those held out.")
    paired: bool = Field(
        False, description="Every person lives once under every policy with the same luck, as in no real test.")
    interval: Literal["fixed", "always_valid"] = Field(
        "fixed", description="A `fixed` interval is for one look at the end; `always_valid` holds at all looks at once "
        "and is wider.")
    looks: int = Field(
        1, description="The primary measure is looked at so often; more than once only with `interval: always_valid`.",
        ge=1)
    primary: str = Field("watch_time", description="This measure decides early.")
    correction: Correction = Field(
        "holm", description="For every measure of every arm: `holm` bounds the chance of any false finding, "
        "`benjamini_hochberg` the share of false ones; `none` corrects nothing.")
    aa_runs: int = Field(0, description="So many A/A tests of the base come before the test; 0 for none.", ge=0)
    aa_persons: int = Field(2_000, description="Each A/A test takes so many fresh persons.", ge=8)
    level: float = Field(LEVEL, description="Intervals cover the truth with this probability.", gt=0, lt=1)
    seed: int = Field(9, description="The seed of buckets and luck.", ge=0)
    cem: CemConfig = Field(CemConfig(), description="This is how `cem` searches, where it is among the policies.")

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        require(len(self.policies) >= 2, "policies", self.policies, "at least two")
        require(self.persons >= 2 * len(self.policies), "persons", self.persons, "an integer ≥ 2 per policy")
        require(not self.shares or len(self.shares) == len(self.policies), "shares", self.shares,
                f"{len(self.policies)} numbers, one a policy")
        require(self.looks == 1 or self.interval == "always_valid", "looks", self.looks,
                "1 with interval: fixed, which is wrong more often with every look; any number with "
                "interval: always_valid")
        require(self.primary in MEASURES, "primary", self.primary, ", ".join(MEASURES))
        return self


@dataclass(frozen=True)
class AbTestResult:
    """The result of the job; `cem_bundle` is None where CEM took no part, `aa` where no A/A test was asked for.

    `reach`: arm → how far exploration turns its rankings (`recfuse.simulation.experiment.reach`).
    """

    result: AbResult
    metrics: Path
    cem_bundle: Path | None
    reach: dict[str, float]
    aa: AaResult | None = None


def run_ab_test(config: AbTestConfig) -> AbTestResult:
    """Runs the test of the config and writes `metrics.json`. CEM's search is taken up from an earlier run."""
    simulation, output = Path(config.simulation), Path(config.output)
    world = World.load(simulation / WORLD)
    require(not output.exists() or output.is_dir(), "output", config.output, "a directory")
    require_json(output / METRICS, "arms")
    output.mkdir(parents=True, exist_ok=True)
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
    return AbTestResult(result, output / METRICS, bundle, far, aa)


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
