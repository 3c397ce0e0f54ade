"""What an A/B test may claim: errors, p-values, corrections for many comparisons, detectable effects, early looks."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recfuse.config import require

Correction = Literal["holm", "benjamini_hochberg", "none"]
POWER = 0.8
# Names of statsmodels' methods.
_METHODS: dict[str, str | None] = {"holm": "holm", "benjamini_hochberg": "fdr_bh", "none": None}
_NORMAL = NormalDist()
Vector = NDArray[np.float64]


def relative_error(treated: ArrayLike, base: ArrayLike, *, paired: bool = False, null: bool = False) -> Vector:
    """Standard error of mean(treated) / mean(base) − 1 over users, float64[m] (delta method).

    Args:
        treated: [U₁, m], base: [U₂, m]: one row a user; row i of both is the same user where `paired`.
        null: where there is no difference, as p-values need it; the estimate over it is then Welch's statistic, or that
            of the paired test. With the ratio found, a rare behaviour that is rarer by chance would seem surer too.
    """
    top, bottom = np.asarray(treated, np.float64), np.asarray(base, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.ones(top.shape[1]) if null else top.mean(0) / bottom.mean(0)
        if paired:
            require(top.shape == bottom.shape, "base", bottom.shape, f"{top.shape}, the same users as treated")
            variance = (top - ratio * bottom).var(0, ddof=1) / len(top)
        else:
            variance = top.var(0, ddof=1) / len(top) + ratio**2 * bottom.var(0, ddof=1) / len(bottom)
        error: Vector = np.sqrt(variance) / np.abs(bottom.mean(0))
    return error


def p_values(estimate: ArrayLike, error: ArrayLike) -> Vector:
    """Two-sided, of a normal estimate against 0; 1 where there is no error to judge by."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.abs(np.asarray(estimate, np.float64) / np.asarray(error, np.float64))
    flat = [1.0 if math.isnan(score) else math.erfc(score / math.sqrt(2)) for score in z.ravel()]
    return np.array(flat).reshape(z.shape)


def adjust(values: ArrayLike, correction: Correction = "holm") -> Vector:
    """p-values of a family of comparisons, corrected for their number; the shape is kept.

    `holm` bounds the chance of one false finding or more in the family (Holm, "A simple sequentially rejective multiple
    test procedure", 1979), `benjamini_hochberg` the expected share of false ones among the findings (1995).
    """
    p = np.asarray(values, np.float64)
    require(bool(((p >= 0) & (p <= 1)).all()), "p-values", p[~((p >= 0) & (p <= 1))][:1].tolist(), "numbers in [0, 1]")
    require(correction in _METHODS, "correction", correction, ", ".join(_METHODS))
    method = _METHODS[correction]
    if method is None or not p.size:
        return p.copy()
    # Imported here: it takes most of a second, and only A/B tests correct p-values.
    from statsmodels.stats.multitest import multipletests

    corrected: Vector = multipletests(p.ravel(), method=method)[1]
    return corrected.reshape(p.shape)


def detectable_effect(base: ArrayLike, treated_users: int, *, level: float = 0.95, power: float = POWER) -> Vector:
    """The smallest relative difference that a test of this size finds with this power, float64[m].

    Args:
        base: [U, m], one row a user of the base bucket.
        treated_users: in the other bucket, whose spread is taken to be the base's.
    """
    values = np.asarray(base, np.float64)
    require(0 < level < 1, "level", level, "a number in (0, 1)")
    require(0 < power < 1, "power", power, "a number in (0, 1)")
    wanted = _NORMAL.inv_cdf((1 + level) / 2) + _NORMAL.inv_cdf(power)
    with np.errstate(divide="ignore", invalid="ignore"):
        spread = values.std(0, ddof=1) / np.abs(values.mean(0))
        effect: Vector = wanted * spread * math.sqrt(1 / len(values) + 1 / treated_users)
    return effect


def always_valid_factor(users: int, planned: int, level: float = 0.95) -> float:
    """By how many standard errors an interval must reach to hold at every look at once.

    The asymptotic confidence sequence of a normal mixture, tightest at the planned number of users: after n users
    `√((1 + 1/(nρ²)) · log((nρ² + 1) / α²))` (Robbins, "Statistical methods related to the law of the iterated
    logarithm", 1970; Waudby-Smith et al., "Time-uniform central limit theory and asymptotic confidence sequences",
    2021, theorem 2.2 and its choice of ρ). Whoever looks often and stops at the first finding is wrong in at most
    1 − level of the tests; with a fixed-size interval (1.96) more often at each look.
    """
    require(0 < level < 1, "level", level, "a number in (0, 1)")
    require(users >= 1 and planned >= 1, "users", (users, planned), "integers ≥ 1")
    budget = -2 * math.log(1 - level)
    n = users * (budget + math.log(budget + 1)) / planned
    return math.sqrt((1 + 1 / n) * math.log((n + 1) / (1 - level) ** 2))
