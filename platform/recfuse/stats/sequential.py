"""Intervals and p-values that hold at all looks at once, in units of the estimate (maths 7.8)."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recfuse.config import require
from recfuse.stats.significance import POWER

Vector = NDArray[np.float64]


def mixture_spread(effect: float, level: float = 0.95, power: float = POWER) -> float:
    """Standard deviation τ of the mixture whose interval is tightest once a single look would find this effect.

    Args:
        effect: difference that is sought, in the unit of the estimates.
        level: of the intervals; power: of the single look.
    """
    require(effect > 0, "effect", effect, "a number > 0")
    require(0 < level < 1, "level", level, "a number in (0, 1)")
    normal, budget = NormalDist(), -2 * math.log(1 - level)
    wanted = normal.inv_cdf((1 + level) / 2) + normal.inv_cdf(power)
    return math.sqrt(budget + math.log(budget + 1)) * effect / wanted


def always_valid_reach(error: ArrayLike, spread: float, level: float = 0.95) -> Vector:
    """By how much an interval reaches on either side of an estimate, so that it holds at all looks at once.

    The mixture of sequential likelihood ratios over N(0, τ²) (Robbins 1970; Johari et al., "Always Valid Inference",
    2022), with the information 1/e² as time, in which it is the asymptotic confidence sequence of Waudby-Smith et al.
    (2021): `e √((1 + e²/τ²) log((1 + τ²/e²)/α²))`.

    Args:
        error: standard errors e of any shape; 0 or NaN gives NaN, as nothing is known.
        spread: τ, chosen before the first look (`mixture_spread`).
    """
    require(spread > 0, "spread", spread, "a number > 0")
    require(0 < level < 1, "level", level, "a number in (0, 1)")
    with np.errstate(divide="ignore", invalid="ignore"):
        e = np.where(np.asarray(error, np.float64) > 0, error, np.nan).astype(np.float64)
        ratio = (e / spread) ** 2
        found: Vector = e * np.sqrt((1 + ratio) * (np.log1p(1 / ratio) - 2 * math.log(1 - level)))
    return found


def always_valid_p(estimate: ArrayLike, error: ArrayLike, spread: float) -> Vector:
    """p-values of estimates against 0: the smallest α whose interval leaves out 0, at most 1; 1 without an error.

    `√(1 + τ²/e²) exp(−z²/2 · τ²/(τ² + e²))` of `z = estimate/e`.
    """
    require(spread > 0, "spread", spread, "a number > 0")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        e = np.where(np.asarray(error, np.float64) > 0, error, np.nan).astype(np.float64)
        ratio, z = (spread / e) ** 2, np.asarray(estimate, np.float64) / e
        p = np.exp(.5 * np.log1p(ratio) - .5 * z**2 * ratio / (1 + ratio))
    return np.where(np.isfinite(p), np.minimum(p, 1.0), 1.0)


def error_for_reach(reach: float, spread: float, level: float = 0.95) -> float:
    """The standard error at which an interval reaches this far: the inverse of `always_valid_reach`, by bisection."""
    require(reach > 0, "reach", reach, "a number > 0")
    low, high = 0.0, reach  # An interval reaches further than its standard error at every level that is asked for.
    while float(always_valid_reach(high, spread, level)) < reach:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if middle <= 0 or float(always_valid_reach(middle, spread, level)) < reach:
            low = middle
        else:
            high = middle
    return high
