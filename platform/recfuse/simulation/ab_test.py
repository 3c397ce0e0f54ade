"""A/B tests in a world (FORMULAS 4.2), and the cross-entropy method against it as the rival."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recfuse.bundle import newest_bundle, read_bundle
from recfuse.errors import require
from recfuse.evaluation.intervals import DRAWS, LEVEL, Interval, paired_difference, relative_difference
from recfuse.fusion.inference import FusionActor, export_policy
from recfuse.fusion.policies import Decision, FixedGaussian, Policy
from recfuse.learning.cem import CemResult, cem
from recfuse.simulation.environment import SessionEngine
from recfuse.simulation.rollout import collect, policy_act, steps
from recfuse.simulation.simulate import METRICS as SIMULATION_METRICS
from recfuse.simulation.simulate import behaviour_policy
from recfuse.simulation.uniform import mix, uniform
from recfuse.simulation.world import FEEDBACK, World

logger = logging.getLogger("recfuse")
METRICS, CEM_FILE = "metrics.json", "cem.json"
MEASURES = (*FEEDBACK, "requests", "sessions")
_PERSONS_AT_ONCE = 16_384


@dataclass(frozen=True)
class Arm:
    """One bucket: a policy, and whether it samples its action or takes the mean."""

    name: str
    policy: Policy
    explore: bool = False


@dataclass(frozen=True)
class ArmResult:
    """Attributes:
        name: of the arm; users: in its bucket.
        mean: float64[measures], per user over the horizon, in the order of MEASURES.
        effect: against the base; of the base itself all zero.
    """

    name: str
    users: int
    mean: NDArray[np.float64]
    effect: Interval


@dataclass(frozen=True)
class AbResult:
    """An A/B test: the base comes first."""

    arms: tuple[ArmResult, ...]
    paired: bool

    def effect(self, arm: str, measure: str) -> tuple[float, float, float]:
        """(estimate, low, high) of the relative difference to the base."""
        found = next(one for one in self.arms if one.name == arm).effect
        index = MEASURES.index(measure)
        return float(found.estimate[index]), float(found.low[index]), float(found.high[index])

    def rows(self) -> list[list[str]]:
        """A line per measure, as text: the base's mean, then the effect of every other arm."""
        base, *others = self.arms
        return [[measure, f"{base.mean[index]:,.4g}",
                 *(f"{e.estimate[index]:+.2%} [{e.low[index]:+.2%}, {e.high[index]:+.2%}]"
                   for e in (arm.effect for arm in others))]
                for index, measure in enumerate(MEASURES)]


def assign(persons: NDArray[np.int64], arms: int, salt: int,
           shares: Sequence[float] | None = None) -> NDArray[np.int64]:
    """The bucket of every person, int64[n]: a hash of the person and the test's salt, in proportion to the shares."""
    shares = [1 / arms] * arms if shares is None else shares
    require(len(shares) == arms and min(shares) > 0, "shares", shares, f"{arms} numbers > 0")
    edges = np.cumsum(np.asarray(shares, np.float64) / sum(shares))[:-1]
    return np.searchsorted(edges, uniform(mix(salt, 0xAB7E57), persons), side="right").astype(np.int64)


def ab_test(
    world: World,
    arms: Sequence[Arm],
    *,
    persons: int,
    seed: int = 0,
    shares: Sequence[float] | None = None,
    paired: bool = False,
    draws: int = DRAWS,
    level: float = LEVEL,
) -> AbResult:
    """Compares policies; the first is the base.

    Args:
        persons: simulated users in all. Person p has the tastes of the world's user p mod U, and a life of its own.
        shares: of the persons, one per arm; equal where None.
        paired: every person lives once under every arm, with the same luck (common random numbers), which no real
            test can do; intervals are then much narrower. Otherwise each person is in one bucket.
        draws, level: of the bootstrap over persons.

    Raises:
        InvalidFieldError: fewer than two arms, names that repeat, or a bucket with fewer than two persons.
    """
    names = [arm.name for arm in arms]
    require(len(arms) >= 2, "arms", names, "at least two")
    require(len(set(names)) == len(names), "arms", names, "distinct names")
    everyone = np.arange(persons)
    bucket = assign(everyone, len(arms), seed, shares)
    values = []
    for index, arm in enumerate(arms):
        mine = everyone if paired else everyone[bucket == index]
        require(len(mine) >= 2, f"arms[{arm.name}]", len(mine), "a bucket of at least 2 persons")
        values.append(_live(world, arm, mine, seed))
        logger.info("A/B test: %s, %s persons, %.1f requests each", arm.name, f"{len(mine):,}",
                    values[-1][:, MEASURES.index("requests")].mean())
    compare = paired_difference if paired else relative_difference
    results = []
    for index, (arm, mine_values) in enumerate(zip(arms, values, strict=True)):
        zeros = np.zeros(len(MEASURES))
        effect = Interval(zeros, zeros, zeros) if index == 0 else compare(
            mine_values, values[0], draws=draws, level=level, seed=seed + 2 * index)
        results.append(ArmResult(arm.name, len(mine_values), mine_values.mean(0), effect))
    return AbResult(tuple(results), paired)


def _live(world: World, arm: Arm, persons: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """float64[n, measures]: what every person did over the horizon."""
    engine = SessionEngine(world, seed)
    rng = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(arm.name.encode()).digest()[:4])])
    parts = []
    for start in range(0, len(persons), _PERSONS_AT_ONCE):
        some = persons[start:start + _PERSONS_AT_ONCE]
        simulation = steps(engine, some % world.users, policy_act(arm.policy, arm.explore, rng), persons=some,
                           observe=not isinstance(arm.policy, FixedGaussian))
        total = collect(simulation, len(some))
        parts.append(np.column_stack([total.feedback, total.requests, total.sessions]))
    return np.concatenate(parts)


def rollout_objective(world: World, *, persons: int, seed: int, measure: str = "watch_time"):  # type: ignore[no-untyped-def]
    """An objective for CEM: [P, M] fusion vectors → [P] means per person, all vectors with the same luck."""
    require(measure in FEEDBACK, "measure", measure, ", ".join(FEEDBACK))
    engine, column = SessionEngine(world, seed), FEEDBACK.index(measure)
    some = np.arange(persons)

    def objective(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        weights = vectors.astype(np.float32)
        sigma = np.ones_like(weights)

        def act(state: np.ndarray, slot: np.ndarray) -> Decision:
            mine = weights[slot // persons]
            return Decision(mine, sigma[:1], mine, np.zeros(len(mine)))

        everyone = np.tile(some, len(vectors))
        total = collect(steps(engine, everyone % world.users, act, persons=everyone, observe=False), len(everyone))
        means: NDArray[np.float64] = total.feedback[:, column].reshape(len(vectors), persons).mean(1)
        return means

    return objective


@dataclass(frozen=True, kw_only=True)
class CemConfig:
    """How CEM searches for one fusion vector in the simulator.

    Attributes:
        persons: simulated users per vector; population, iterations: of the search.
        spread: standard deviation of the first population around the logged policy's mean.
        sigma: exploration of the exported policy.
    """

    persons: int = 800
    population: int = 16
    iterations: int = 8
    spread: float = 0.7
    sigma: float = 0.5
    seed: int = 5


@dataclass(frozen=True, kw_only=True)
class AbTestConfig:
    """Config of the job.

    Attributes:
        simulation: output of the job `simulate`.
        policies: one a bucket, the first is the base: `logged` (the declared behaviour policy as it logged, with its
            exploration), `logged_mean` (without), `cem`, or a fusion bundle or a directory of them, written PATH or
            NAME=PATH.
        output: gets `metrics.json` and CEM's bundle.
        persons: simulated users in all; shares: of the buckets, equal where empty.
        paired: see `ab_test`.
        level: of the intervals; seed: of buckets and luck.
    """

    simulation: str = "runs/simulation"
    policies: tuple[str, ...] = ("logged", "cem", "two_stage=runs/fusion")
    output: str = "runs/ab_test"
    persons: int = 60_000
    shares: tuple[float, ...] = ()
    paired: bool = False
    level: float = LEVEL
    seed: int = 9
    cem: CemConfig = field(default_factory=CemConfig)

    def __post_init__(self) -> None:
        require(len(self.policies) >= 2, "policies", self.policies, "at least two")
        require(self.persons >= 2 * len(self.policies), "persons", self.persons, "an integer ≥ 2 per policy")
        require(not self.shares or len(self.shares) == len(self.policies), "shares", self.shares,
                f"{len(self.policies)} numbers, one a policy")


@dataclass(frozen=True)
class AbTestResult:
    """The result of the job; `cem_bundle` is None where CEM took no part."""

    result: AbResult
    metrics: Path
    cem_bundle: Path | None


def run_ab_test(config: AbTestConfig) -> AbTestResult:
    """Runs the test of the config and writes `metrics.json`. CEM's search is taken up from an earlier run."""
    simulation, output = Path(config.simulation), Path(config.output)
    world = World.load(simulation / "world")
    output.mkdir(parents=True, exist_ok=True)
    arms, bundle = [], None
    for text in config.policies:
        if text == "cem":
            bundle = cem_bundle(world, simulation, config.cem, output)
            arms.append(Arm("cem", FusionActor.from_bundle(read_bundle(bundle, "fusion"))))
        else:
            arms.append(_arm(text, simulation, world))
    result = ab_test(world, arms, persons=config.persons, seed=config.seed, shares=config.shares or None,
                     paired=config.paired, level=config.level)
    (output / METRICS).write_text(json.dumps(to_json(result, config), indent=1))
    return AbTestResult(result, output / METRICS, bundle)


def _arm(text: str, simulation: Path, world: World) -> Arm:
    if text in ("logged", "logged_mean"):
        return Arm(text, _logged(simulation, world), explore=text == "logged")
    name, _, path = text.rpartition("=")
    actor = FusionActor.from_bundle(read_bundle(newest_bundle(path, "fusion"), "fusion"))
    found = actor.vocabulary.state_features, actor.vocabulary.fusion_parameters
    wanted = world.vocabulary.state_features, world.vocabulary.fusion_parameters
    require(found == wanted, f"policies[{name or path}]", actor.vocabulary.fusion_parameters,
            f"a policy with the world's state features and fusion parameters {world.vocabulary.fusion_parameters}")
    return Arm(name or actor.version, actor)


def _logged(simulation: Path, world: World) -> FixedGaussian:
    declared = json.loads((simulation / SIMULATION_METRICS).read_text())["behaviour_policy"]
    return behaviour_policy(declared["mu"], declared["sigma"], world.vocabulary.fusion_parameters)


def cem_bundle(world: World, simulation: Path, config: CemConfig, output: Path) -> Path:
    """CEM's vector as a fusion bundle; searched once per world and config."""
    run = json.loads((simulation / SIMULATION_METRICS).read_text())["run"]
    identity = {"simulation": run, "config": dataclasses.asdict(config)}
    saved = json.loads((output / CEM_FILE).read_text()) if (output / CEM_FILE).is_file() else {}
    if saved.get("identity") == identity and (output / saved["bundle"]).is_dir():
        return output / str(saved["bundle"])
    found = search(world, _logged(simulation, world), config)
    bundle = export_policy(output, FixedGaussian(found.vector, config.sigma), world.vocabulary,
                           training=identity, data_fingerprint=run,
                           metrics={"elite_score": [entry.elite_score for entry in found.history]})
    (output / CEM_FILE).write_text(json.dumps({"identity": identity, "bundle": bundle.name}))
    return bundle


def search(world: World, logged: FixedGaussian, config: CemConfig) -> CemResult:
    """CEM on watch time, started at the logged policy's mean."""
    objective = rollout_objective(world, persons=config.persons, seed=config.seed)
    return cem(objective, logged.mu, config.spread, population=config.population, iterations=config.iterations,
               seed=config.seed)


def to_json(result: AbResult, config: AbTestConfig) -> dict[str, object]:
    """Plain values for the report."""
    return {
        "level": config.level, "paired": result.paired, "seed": config.seed, "measures": list(MEASURES),
        "arms": [{"name": arm.name, "users": arm.users, "mean": arm.mean.tolist(),
                  **{key: [None if np.isnan(value) else float(value) for value in getattr(arm.effect, key)]
                     for key in ("estimate", "low", "high")}} for arm in result.arms]}

