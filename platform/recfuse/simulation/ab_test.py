"""A/B tests in a world (maths 4.2), and the cross-entropy method against it as the rival."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from recfuse.bundle import newest_bundle, read_bundle
from recfuse.config import require
from recfuse.fusion.inference import FusionActor, export_policy
from recfuse.fusion.policies import FixedGaussian, Policy
from recfuse.learning.cem import CemResult, cem
from recfuse.runtime.console import Progress
from recfuse.simulation.environment import SessionEngine
from recfuse.simulation.rollout import collect, live_with, policy_act, steps
from recfuse.simulation.simulate import METRICS as SIMULATION_METRICS
from recfuse.simulation.simulate import held_out, logged_policy, persons_of
from recfuse.simulation.uniform import mix, uniform
from recfuse.simulation.world import FEEDBACK, World
from recfuse.stats.intervals import DRAWS, LEVEL, Interval, paired_difference, relative_difference
from recfuse.stats.significance import (
    POWER,
    Correction,
    adjust,
    always_valid_factor,
    detectable_effect,
    p_values,
    relative_error,
)

logger = logging.getLogger("recfuse")
METRICS, CEM_FILE = "metrics.json", "cem.json"
MEASURES = (*FEEDBACK, "requests", "sessions")
AA_TOLERANCE = 0.03  # around 1 − level: two standard errors of the share in 200 tests
_PERSONS_AT_ONCE = 16_384
Who = Literal["everyone", "logged", "held_out"]
_WEIGHTS = re.compile(r"(?:[\w.]+:-?[\d.]+,?)+")


@dataclass(frozen=True)
class Arm:
    """One bucket: a policy, and whether it samples its action or takes the mean."""

    name: str
    policy: Policy
    explore: bool = False


@dataclass(frozen=True)
class Look:
    """An early look at one measure, with an interval that holds at all looks at once.

    Attributes:
        share: of the persons who had been counted by then.
        estimate, low, high: relative difference to the base.
    """

    share: float
    estimate: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Whether the test may stop here."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class ArmResult:
    """Attributes:
        name: of the arm; users: in its bucket.
        mean: float64[measures], per user over the horizon, in the order of MEASURES.
        effect: against the base; of the base itself all zero.
        p_value: float64[measures], two-sided, of a normal approximation; adjusted: for all comparisons of the test.
        detectable: float64[measures], relative difference that a bucket of this size finds with a power of 80%.
        looks: early looks at the primary measure, where the test was planned with them.
    """

    name: str
    users: int
    mean: NDArray[np.float64]
    effect: Interval
    p_value: NDArray[np.float64]
    adjusted: NDArray[np.float64]
    detectable: NDArray[np.float64]
    looks: tuple[Look, ...] = ()


@dataclass(frozen=True)
class AbResult:
    """An A/B test: the base comes first."""

    arms: tuple[ArmResult, ...]
    paired: bool
    level: float = LEVEL
    correction: Correction = "holm"

    def effect(self, arm: str, measure: str) -> tuple[float, float, float]:
        """(estimate, low, high) of the relative difference to the base."""
        found = next(one for one in self.arms if one.name == arm).effect
        index = MEASURES.index(measure)
        return float(found.estimate[index]), float(found.low[index]), float(found.high[index])

    def rows(self) -> list[list[str]]:
        """A line per measure, as text: the base's mean, then the effect of every other arm; * where it remains after
        the correction for the number of comparisons."""
        base, *others = self.arms
        return [[measure, f"{base.mean[index]:,.4g}",
                 *(f"{e.estimate[index]:+.2%} [{e.low[index]:+.2%}, {e.high[index]:+.2%}]"
                   f"{'*' if arm.adjusted[index] < 1 - self.level else ' '}"
                   for arm, e in ((arm, arm.effect) for arm in others))]
                for index, measure in enumerate(MEASURES)]

    def detectable_rows(self) -> list[list[str]]:
        """A line per measure, as text: the smallest difference that each bucket's size finds."""
        return [[measure, *(f"{arm.detectable[index]:.2%}" for arm in self.arms[1:])]
                for index, measure in enumerate(MEASURES)]

    def look_rows(self) -> list[list[str]]:
        """A line per arm and early look, as text; empty where none was planned."""
        return [[arm.name, f"{look.share:.0%}", f"{look.estimate:+.2%} [{look.low:+.2%}, {look.high:+.2%}]",
                 "may stop" if look.decided else "goes on"] for arm in self.arms for look in arm.looks]


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
    users: NDArray[np.bool_] | None = None,
    paired: bool = False,
    looks: int = 0,
    primary: str = "watch_time",
    correction: Correction = "holm",
    draws: int = DRAWS,
    level: float = LEVEL,
) -> AbResult:
    """Compares policies; the first is the base.

    Args:
        persons: simulated users in all. Person p has the tastes of the world's user p mod U, and a life of its own.
        shares: of the persons, one per arm; equal where None.
        users: bool[U], whose tastes occur; all where None.
        paired: every person lives once under every arm, with the same luck (common random numbers), which no real
            test can do; intervals are then much narrower. Otherwise each person is in one bucket.
        looks: at the primary measure, evenly spaced by persons, judged by intervals that hold at all of them at once,
            for all arms together; 0 for none, where only the end counts.
        correction: over every measure of every arm.
        draws, level: of the bootstrap over persons.

    Raises:
        InvalidFieldError: fewer than two arms, names that repeat, or a bucket with fewer than two persons.
    """
    names = [arm.name for arm in arms]
    require(len(arms) >= 2, "arms", names, "at least two")
    require(len(set(names)) == len(names), "arms", names, "distinct names")
    require(primary in MEASURES, "primary", primary, ", ".join(MEASURES))
    require(looks >= 0, "looks", looks, "an integer ≥ 0")
    everyone = np.arange(persons) if users is None else persons_of(users, persons)
    bucket = assign(everyone, len(arms), seed, shares)
    lives = []
    for index, arm in enumerate(arms):
        mine = everyone if paired else everyone[bucket == index]
        require(len(mine) >= 2, f"arms[{arm.name}]", len(mine), "a bucket of at least 2 persons")
        lives.append(_live(world, arm, mine, seed))
        logger.info("A/B test: %s, %s persons, %.1f requests each", arm.name, f"{len(mine):,}",
                    lives[-1][:, MEASURES.index("requests")].mean())
    compare = paired_difference if paired else relative_difference
    base, zeros = lives[0], np.zeros(len(MEASURES))
    effects = [Interval(zeros, zeros, zeros)] + [
        compare(mine, base, draws=draws, level=level, seed=seed + 2 * index) for index, mine in enumerate(lives[1:], 1)]
    p = np.stack([p_values(effect.estimate, relative_error(mine, base, paired=paired, null=True))
                  for mine, effect in zip(lives[1:], effects[1:], strict=True)])
    adjusted = adjust(p, correction)
    results = [ArmResult(names[0], len(base), base.mean(0), effects[0], zeros + 1, zeros + 1, zeros)]
    for index, mine in enumerate(lives[1:], 1):
        seen = _looks(mine, base, looks, primary, 1 - (1 - level) / (len(arms) - 1), paired) if looks else ()
        results.append(ArmResult(
            names[index], len(mine), mine.mean(0), effects[index], p[index - 1], adjusted[index - 1],
            _detectable(mine, base, level, paired), seen))
    return AbResult(tuple(results), paired, level, correction)


def _detectable(mine: NDArray[np.float64], base: NDArray[np.float64], level: float,
                paired: bool) -> NDArray[np.float64]:
    if not paired:
        return detectable_effect(base, len(mine), level=level)
    z = NormalDist()
    return (z.inv_cdf((1 + level) / 2) + z.inv_cdf(POWER)) * relative_error(mine, base, paired=True)


def _looks(mine: NDArray[np.float64], base: NDArray[np.float64], looks: int, primary: str, level: float,
           paired: bool) -> tuple[Look, ...]:
    """The primary measure after 1/looks, 2/looks, … of both buckets, in the order in which the persons came."""
    column, result = MEASURES.index(primary), []
    for number in range(1, looks + 1):
        some = [values[:max(2, len(values) * number // looks), [column]] for values in (mine, base)]
        estimate = float(some[0].mean() / some[1].mean() - 1)
        factor = always_valid_factor(len(some[0]), len(mine), level)
        reach = factor * float(relative_error(some[0], some[1], paired=paired)[0])
        result.append(Look(number / looks, estimate, estimate - reach, estimate + reach))
    return tuple(result)


@dataclass(frozen=True)
class AaResult:
    """How often a test of a policy against itself found a difference.

    Attributes:
        runs: tests; false: float64[measures], share of them whose interval left out 0.
        family: share of the tests with any measure left after the correction.
    """

    runs: int
    false: NDArray[np.float64]
    family: float

    def verdict(self, level: float = LEVEL) -> str:
        """Whether the mean over the measures is as it should be, in a sentence."""
        found, wanted = float(self.false.mean()), 1 - level
        right = abs(found - wanted) <= AA_TOLERANCE
        return (f"A/A: a difference where there is none in {found:.1%} of the intervals, {wanted:.0%} ± "
                f"{AA_TOLERANCE:.0%} are allowed{'' if right else ': DO NOT BELIEVE the test below'}")

    def rows(self) -> list[list[str]]:
        """A line per measure, then their mean and the corrected family; as text."""
        return [*([measure, f"{self.false[index]:.1%}"] for index, measure in enumerate(MEASURES)),
                ["mean of the measures", f"{self.false.mean():.1%}"],
                ["any measure, after the correction", f"{self.family:.1%}"]]


def aa_test(world: World, arm: Arm, *, runs: int, persons: int, seed: int = 0, users: NDArray[np.bool_] | None = None,
            correction: Correction = "holm", draws: int = DRAWS, level: float = LEVEL) -> AaResult:
    """Tests a policy against itself, every time with fresh persons, luck and buckets.

    Args:
        runs: tests; persons: in each, half in either bucket.
    """
    require(runs >= 1, "runs", runs, "an integer ≥ 1")
    false, family = np.zeros(len(MEASURES)), 0
    progress = Progress("A/A tests", runs, "runs")
    for run in range(runs):
        salt = seed + 7_919 * (run + 1)
        everyone = np.arange(persons) if users is None else persons_of(users, persons)
        lives, bucket = _live(world, arm, everyone, salt), assign(everyone, 2, salt)
        mine, base = lives[bucket == 1], lives[bucket == 0]
        effect = relative_difference(mine, base, draws=draws, level=level, seed=salt)
        false += effect.excludes_zero
        adjusted = adjust(p_values(effect.estimate, relative_error(mine, base, null=True)), correction)
        family += int((adjusted < 1 - level).any())
        progress.advance(1)
    progress.finish()
    return AaResult(runs, false / runs, family / runs)


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
        total = live_with(engine, np.repeat(vectors, persons, axis=0), np.tile(some, len(vectors)))
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
            exploration), `logged_mean` (without), `cem`; a fusion bundle or a directory of them, written PATH or
            NAME=PATH; or fixed weights, written NAME=click:1,long_view:1,like:0.3 (0 where none is given).
        output: gets `metrics.json` and CEM's bundle.
        persons: simulated users in all; shares: of the buckets, equal where empty.
        users: whose tastes occur: everyone's, those in the session logs, or those held out of them.
        paired: see `ab_test`.
        interval: `fixed` is for one look at the end; `always_valid` holds at all looks at once, and is wider.
        looks: planned looks at the primary measure; more than one only with `interval: always_valid`.
        primary: the measure that decides early.
        correction: for many comparisons, over every measure of every arm: `holm` (chance of any false finding),
            `benjamini_hochberg` (share of false ones among the findings) or `none`.
        aa_runs: A/A tests of the base before the test, of `aa_persons` fresh persons each; 0 for none.
        level: of the intervals; seed: of buckets and luck.
    """

    simulation: str = "runs/simulation"
    policies: tuple[str, ...] = ("logged", "cem", "two_stage=runs/fusion")
    output: str = "runs/ab_test"
    persons: int = 60_000
    shares: tuple[float, ...] = ()
    users: Who = "everyone"
    paired: bool = False
    interval: Literal["fixed", "always_valid"] = "fixed"
    looks: int = 1
    primary: str = "watch_time"
    correction: Correction = "holm"
    aa_runs: int = 0
    aa_persons: int = 2_000
    level: float = LEVEL
    seed: int = 9
    cem: CemConfig = field(default_factory=CemConfig)

    def __post_init__(self) -> None:
        require(len(self.policies) >= 2, "policies", self.policies, "at least two")
        require(self.persons >= 2 * len(self.policies), "persons", self.persons, "an integer ≥ 2 per policy")
        require(not self.shares or len(self.shares) == len(self.policies), "shares", self.shares,
                f"{len(self.policies)} numbers, one a policy")
        require(self.users in get_args(Who), "users", self.users, ", ".join(get_args(Who)))
        require(self.looks >= 1, "looks", self.looks, "an integer ≥ 1")
        require(self.looks == 1 or self.interval == "always_valid", "looks", self.looks,
                "1 with interval: fixed, which is wrong more often with every look; any number with "
                "interval: always_valid")
        require(self.correction in get_args(Correction), "correction", self.correction,
                ", ".join(get_args(Correction)))
        require(self.primary in MEASURES, "primary", self.primary, ", ".join(MEASURES))
        require(self.aa_runs >= 0, "aa_runs", self.aa_runs, "an integer ≥ 0")
        require(self.aa_persons >= 8, "aa_persons", self.aa_persons, "an integer ≥ 8")


@dataclass(frozen=True)
class AbTestResult:
    """The result of the job; `cem_bundle` is None where CEM took no part, `aa` where no A/A test was asked for."""

    result: AbResult
    metrics: Path
    cem_bundle: Path | None
    aa: AaResult | None = None


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
    users = _users(world, simulation, config.users)
    aa = None
    if config.aa_runs:
        aa = aa_test(world, arms[0], runs=config.aa_runs, persons=config.aa_persons, seed=config.seed, users=users,
                     correction=config.correction, level=config.level)
    looks = config.looks if config.interval == "always_valid" else 0
    result = ab_test(world, arms, persons=config.persons, seed=config.seed, shares=config.shares or None, users=users,
                     paired=config.paired, looks=looks, primary=config.primary, correction=config.correction,
                     level=config.level)
    (output / METRICS).write_text(json.dumps(to_json(result, config, aa), indent=1))
    return AbTestResult(result, output / METRICS, bundle, aa)


def _users(world: World, simulation: Path, who: Who) -> NDArray[np.bool_] | None:
    if who == "everyone":
        return None
    share = json.loads((simulation / SIMULATION_METRICS).read_text()).get("held_out_users", 0.0)
    out = held_out(world, share)
    require(who == "logged" or bool(out.any()), "users", who, "a simulation with held_out_users > 0")
    return out if who == "held_out" else ~out


def _arm(text: str, simulation: Path, world: World) -> Arm:
    if text in ("logged", "logged_mean"):
        return Arm(text, logged_policy(simulation, world), explore=text == "logged")
    name, _, path = text.rpartition("=")
    if _WEIGHTS.fullmatch(path):
        return Arm(name or path, _fixed(path, world))
    actor = FusionActor.from_bundle(read_bundle(newest_bundle(path, "fusion"), "fusion"))
    found = actor.vocabulary.state_features, actor.vocabulary.fusion_parameters
    wanted = world.vocabulary.state_features, world.vocabulary.fusion_parameters
    require(found == wanted, f"policies[{name or path}]", actor.vocabulary.fusion_parameters,
            f"a policy with the world's state features and fusion parameters {world.vocabulary.fusion_parameters}")
    return Arm(name or actor.version, actor)


def _fixed(text: str, world: World) -> FixedGaussian:
    given = {key: float(value) for key, value in (part.split(":") for part in text.strip(",").split(","))}
    parameters = world.vocabulary.fusion_parameters
    for key in given:
        require(key in parameters, f"policies: weight {key}", given[key], f"weights of {', '.join(parameters)}")
    # Nothing samples it; a Gaussian needs some width.
    return FixedGaussian([given.get(name, 0.0) for name in parameters], 1.0)


def cem_bundle(world: World, simulation: Path, config: CemConfig, output: Path) -> Path:
    """CEM's vector as a fusion bundle; searched once per world and config."""
    run = json.loads((simulation / SIMULATION_METRICS).read_text())["run"]
    identity = {"simulation": run, "config": dataclasses.asdict(config)}
    saved = json.loads((output / CEM_FILE).read_text()) if (output / CEM_FILE).is_file() else {}
    if saved.get("identity") == identity and (output / saved["bundle"]).is_dir():
        return output / str(saved["bundle"])
    found = search(world, logged_policy(simulation, world), config)
    bundle = export_policy(output, FixedGaussian(found.vector, config.sigma), world.vocabulary,
                           training=identity, data_fingerprint=run,
                           metrics={"elite_score": [entry.elite_score for entry in found.history]})
    (output / CEM_FILE).write_text(json.dumps({"identity": identity, "bundle": bundle.name}))
    return bundle


def search(world: World, logged: FixedGaussian, config: CemConfig, measure: str = "watch_time") -> CemResult:
    """CEM on watch time, or another behaviour of FEEDBACK, started at the logged policy's mean."""
    objective = rollout_objective(world, persons=config.persons, seed=config.seed, measure=measure)
    return cem(objective, logged.mu, config.spread, population=config.population, iterations=config.iterations,
               seed=config.seed)


def to_json(result: AbResult, config: AbTestConfig, aa: AaResult | None = None) -> dict[str, Any]:
    """Plain values for the report."""
    def plain(values: NDArray[np.float64]) -> list[float | None]:
        return [None if np.isnan(value) else float(value) for value in values]

    return {
        "level": config.level, "paired": result.paired, "seed": config.seed, "measures": list(MEASURES),
        "correction": result.correction, "users": config.users, "primary": config.primary,
        "aa": None if aa is None else {"runs": aa.runs, "false": plain(aa.false), "family": aa.family},
        "arms": [{"name": arm.name, "users": arm.users, "mean": arm.mean.tolist(),
                  **{key: plain(getattr(arm.effect, key)) for key in ("estimate", "low", "high")},
                  **{key: plain(getattr(arm, key)) for key in ("p_value", "adjusted", "detectable")},
                  "looks": [dataclasses.asdict(look) for look in arm.looks]} for arm in result.arms]}
