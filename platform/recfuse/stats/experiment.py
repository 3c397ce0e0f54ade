"""Statistics of an A/B test: effects against a base, what they may claim, early looks, and A/A tests.

In: one row of measures per user and arm, wherever they were counted, in a simulator or in what was served.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from recfuse.config import require
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

AA_TOLERANCE = 0.03  # around 1 − level: two standard errors of the share in 200 tests
Users = NDArray[np.float64]  # [users, measures]


@dataclass(frozen=True)
class Look:
    """An early look at one measure, with an interval that holds at all looks at once.

    Attributes:
        share: of the users who had been counted by then.
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
        mean: float64[measures], per user.
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
    """An A/B test of these measures: the base comes first among the arms.

    Attributes:
        covariances: float64[arms, arms, measures], of the arms' means; between buckets of different users 0.
    """

    measures: tuple[str, ...]
    arms: tuple[ArmResult, ...]
    paired: bool
    covariances: NDArray[np.float64]
    level: float = LEVEL
    correction: Correction = "holm"

    def effect(self, arm: str, measure: str) -> tuple[float, float, float]:
        """(estimate, low, high) of the relative difference to the base."""
        effect = next(result.effect for result in self.arms if result.name == arm)
        index = self.measures.index(measure)
        return float(effect.estimate[index]), float(effect.low[index]), float(effect.high[index])

    def between(self, arm: str, other: str, measure: str) -> tuple[float, float, float]:
        """(estimate, low, high) of the relative difference of an arm to another, by the delta method (maths 7.2)."""
        names, index = [result.name for result in self.arms], self.measures.index(measure)
        (mean, place), (base, of_base) = ((float(self.arms[k].mean[index]), k)
                                          for k in map(names.index, (arm, other)))
        if base == 0:
            return (float("nan"),) * 3
        estimate = (mean - base) / abs(base)
        gradient = np.zeros(len(names))
        gradient[place] += 1 / abs(base)
        gradient[of_base] -= mean / base / abs(base)
        variance = float(gradient @ self.covariances[:, :, index] @ gradient)
        reach = NormalDist().inv_cdf((1 + self.level) / 2) * math.sqrt(max(variance, 0.0))
        return estimate, estimate - reach, estimate + reach

    def rows(self) -> list[list[str]]:
        """A line per measure, as text: the base's mean, then the effect of every other arm; * where it remains after
        the correction for the number of comparisons."""
        base, *others = self.arms
        return [[measure, f"{base.mean[index]:,.4g}",
                 *(f"{e.estimate[index]:+.2%} [{e.low[index]:+.2%}, {e.high[index]:+.2%}]"
                   f"{'*' if arm.adjusted[index] < 1 - self.level else ' '}"
                   for arm, e in ((arm, arm.effect) for arm in others))]
                for index, measure in enumerate(self.measures)]

    def detectable_rows(self) -> list[list[str]]:
        """A line per measure, as text: the smallest difference that each bucket's size finds."""
        return [[measure, *(f"{arm.detectable[index]:.2%}" for arm in self.arms[1:])]
                for index, measure in enumerate(self.measures)]

    def look_rows(self) -> list[list[str]]:
        """A line per arm and early look, as text; empty where none was planned."""
        return [[arm.name, f"{look.share:.0%}", f"{look.estimate:+.2%} [{look.low:+.2%}, {look.high:+.2%}]",
                 "may stop" if look.decided else "goes on"] for arm in self.arms for look in arm.looks]


@dataclass(frozen=True)
class AaResult:
    """How often a test of a policy against itself found a difference.

    Attributes:
        measures: their names; runs: tests.
        false: float64[measures], share of the tests whose interval left out 0.
        family: share of the tests with any measure left after the correction.
    """

    measures: tuple[str, ...]
    runs: int
    false: NDArray[np.float64]
    family: float

    def verdict(self, level: float = LEVEL) -> str:
        """Whether the mean over the measures is as it should be, in a sentence."""
        share, wanted = float(self.false.mean()), 1 - level
        right = abs(share - wanted) <= AA_TOLERANCE
        return (f"A/A: a difference where there is none in {share:.1%} of the intervals, {wanted:.0%} ± "
                f"{AA_TOLERANCE:.0%} are allowed{'' if right else ': DO NOT BELIEVE the test below'}")

    def rows(self) -> list[list[str]]:
        """A line per measure, then their mean and the corrected family; as text."""
        return [*([measure, f"{self.false[index]:.1%}"] for index, measure in enumerate(self.measures)),
                ["mean of the measures", f"{self.false.mean():.1%}"],
                ["any measure, after the correction", f"{self.family:.1%}"]]


def compare(
    users: Mapping[str, Users],
    measures: Sequence[str],
    *,
    primary: str,
    looks: int = 0,
    paired: bool = False,
    correction: Correction = "holm",
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> AbResult:
    """Compares arms; the first is the base.

    Args:
        users: arm → float64[users, measures]; where `paired`, row i of every arm is the same user.
        primary: the measure of the early looks.
        looks: evenly spaced in the order of the users, with intervals that hold at all looks and arms at once.
        correction: over every measure of every arm.
        draws, level, seed: of the bootstrap over users.

    Raises:
        InvalidFieldError: fewer than two arms, a bucket with fewer than two users, an unknown primary measure.
    """
    require(len(users) >= 2, "arms", list(users), "at least two")
    require(primary in measures, "primary", primary, ", ".join(measures))
    require(looks >= 0, "looks", looks, "an integer ≥ 0")
    difference = paired_difference if paired else relative_difference
    (name, base), *others = users.items()
    effects = [difference(treated, base, draws=draws, level=level, seed=seed + 2 * index)
               for index, (_, treated) in enumerate(others, 1)]
    p = np.stack([p_values(effect.estimate, relative_error(treated, base, paired=paired, null=True))
                  for (_, treated), effect in zip(others, effects, strict=True)])
    adjusted, column = adjust(p, correction), [list(measures).index(primary)]
    results = [ArmResult(
        other, len(treated), treated.mean(0), effect, p_value, corrected, _detectable(treated, base, level, paired),
        _looks(treated[:, column], base[:, column], looks, 1 - (1 - level) / len(others), paired))
        for (other, treated), effect, p_value, corrected in zip(others, effects, p, adjusted, strict=True)]
    return AbResult(tuple(measures), (_base_result(name, base), *results), paired,
                    _covariances(list(users.values()), paired), level, correction)


def _base_result(name: str, base: Users) -> ArmResult:
    """The base beside itself: no effect, no doubt, nothing to detect."""
    zeros, ones = np.zeros(base.shape[1]), np.ones(base.shape[1])
    return ArmResult(name, len(base), base.mean(0), Interval(zeros, zeros, zeros), ones, ones, zeros)


def _covariances(arms: Sequence[Users], paired: bool) -> NDArray[np.float64]:
    """Of the arms' means, [arms, arms, measures]."""
    found = np.zeros((len(arms), len(arms), arms[0].shape[1]))
    centred = [users - users.mean(0) for users in arms]
    for one, of_one in enumerate(centred):
        for other, of_other in enumerate(centred):
            if one == other or paired:
                found[one, other] = (of_one * of_other).sum(0) / ((len(of_one) - 1) * len(of_one))
    return found


def false_findings(treated: Users, base: Users, *, correction: Correction = "holm", draws: int = DRAWS,
                   level: float = LEVEL, seed: int = 0) -> tuple[NDArray[np.bool_], bool]:
    """Of two buckets of the same policy: bool[measures], whose interval leaves out 0; and whether any measure is left
    after the correction."""
    effect = relative_difference(treated, base, draws=draws, level=level, seed=seed)
    adjusted = adjust(p_values(effect.estimate, relative_error(treated, base, null=True)), correction)
    return effect.excludes_zero, bool((adjusted < 1 - level).any())


def _detectable(treated: Users, base: Users, level: float, paired: bool) -> NDArray[np.float64]:
    if not paired:
        return detectable_effect(base, len(treated), level=level)
    z = NormalDist()
    return (z.inv_cdf((1 + level) / 2) + z.inv_cdf(POWER)) * relative_error(treated, base, paired=True)


def _looks(treated: Users, base: Users, looks: int, level: float, paired: bool) -> tuple[Look, ...]:
    """One measure `[users, 1]` after 1/looks, 2/looks, … of both buckets, in the order in which the users came."""
    result = []
    for number in range(1, looks + 1):
        counted, of_base = (values[:max(2, len(values) * number // looks)] for values in (treated, base))
        estimate = float(counted.mean() / of_base.mean() - 1)
        factor = always_valid_factor(len(counted), len(treated), level)
        reach = factor * float(relative_error(counted, of_base, paired=paired)[0])
        result.append(Look(number / looks, estimate, estimate - reach, estimate + reach))
    return tuple(result)
