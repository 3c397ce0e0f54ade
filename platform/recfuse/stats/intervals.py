"""Bootstrap intervals over users: users answer for themselves, their requests hang together."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from recfuse.config import require

DRAWS = 1_000
LEVEL = 0.95
_CELLS = 1 << 24  # bootstrap weights held at once


@dataclass(frozen=True)
class Interval:
    """An estimate and its interval, float64[m] each; NaN where there is none."""

    estimate: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    @property
    def excludes_zero(self) -> NDArray[np.bool_]:
        """bool[m]: the whole interval lies on one side of 0."""
        return np.asarray((self.low > 0) | (self.high < 0))


def sum_per_user(values: ArrayLike, user_id: ArrayLike) -> NDArray[np.float64]:
    """float64[U, m]: sums of `values` [n, m] over each user's rows, users in the order of their first row."""
    values = np.asarray(values, np.float64)
    require(values.ndim == 2, "values", values.shape, "an array [n, m]")
    codes, users = pd.factorize(np.asarray(user_id))
    require(len(codes) == len(values), "user_id", len(codes), f"{len(values)} ids, one a row")
    require(bool((codes >= 0).all()), "user_id", None, "ids other than null")
    return np.stack([np.bincount(codes, column, len(users)) for column in values.T], 1)


def ratio_of_sums(numerator: ArrayLike, denominator: ArrayLike, *, draws: int = DRAWS, level: float = LEVEL,
                  seed: int = 0) -> Interval:
    """Σ numerator / Σ denominator over users, with a bootstrap interval over users.

    Args:
        numerator: [U, m] sums per user; denominator: [U] or [U, m].

    The bootstrap draws a Poisson(1) weight per user instead of users with replacement: the same for many users, and one
    matrix product for all draws and behaviours.

    Raises:
        InvalidFieldError: shapes that do not fit, fewer than 2 users, values that are not finite.
    """
    top, bottom = _columns(numerator, "numerator"), _columns(denominator, "denominator")
    require(len(bottom) == len(top) and bottom.shape[1] in (1, top.shape[1]), "denominator", bottom.shape,
            f"[{len(top)}] or {top.shape}")
    width = top.shape[1]
    return of_sums(np.concatenate([top, bottom], 1), lambda sums: sums[:, :width] / sums[:, width:], draws=draws,
                   level=level, seed=seed)


def of_sums(values: ArrayLike, statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], *, draws: int = DRAWS,
            level: float = LEVEL, seed: int = 0) -> Interval:
    """A function of sums over users, with a bootstrap interval over users.

    Args:
        values: [U, k], one row a user.
        statistic: sums [B, k] → values [B, m], row by row; a denominator of 0 gives no value.
    """
    array = _columns(values, "values")
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = statistic(array.sum(0)[None])[0]
        drawn = statistic(_bootstrap_sums(array, draws, seed))
    return _percentiles(estimate, drawn, level)


def relative_difference(treated: ArrayLike, base: ArrayLike, *, draws: int = DRAWS, level: float = LEVEL,
                        seed: int = 0) -> Interval:
    """mean(treated) / mean(base) − 1 of two disjoint groups of users, with a bootstrap interval over users.

    Args:
        treated: [U₁, m], base: [U₂, m]: one row a user.
    """
    top, bottom = _columns(treated, "treated"), _columns(base, "base")
    require(top.shape[1] == bottom.shape[1], "base", bottom.shape, f"{top.shape[1]} columns, as in treated")
    with np.errstate(divide="ignore", invalid="ignore"):
        estimate = top.mean(0) / bottom.mean(0) - 1
        ratios = _bootstrap_means(top, draws, seed) / _bootstrap_means(bottom, draws, seed + 1) - 1
    return _percentiles(estimate, ratios, level)


def paired_difference(treated: ArrayLike, base: ArrayLike, *, draws: int = DRAWS, level: float = LEVEL,
                      seed: int = 0) -> Interval:
    """mean(treated) / mean(base) − 1 of the same users under two policies (row i of both is user i)."""
    top, bottom = _columns(treated, "treated"), _columns(base, "base")
    require(top.shape == bottom.shape, "base", bottom.shape, f"{top.shape}, the same users as treated")
    ratio = ratio_of_sums(top, bottom, draws=draws, level=level, seed=seed)
    return Interval(ratio.estimate - 1, ratio.low - 1, ratio.high - 1)


def _columns(values: ArrayLike, field: str) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    array = array[:, None] if array.ndim == 1 else array
    require(array.ndim == 2 and len(array) >= 2, field, array.shape, "an array [users, m] of at least 2 users")
    require(bool(np.isfinite(array).all()), field, array[~np.isfinite(array)][:1].tolist(), "finite numbers")
    return array


def _bootstrap_means(values: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    sums = _bootstrap_sums(np.concatenate([values, np.ones((len(values), 1))], 1), draws, seed)
    means: NDArray[np.float64] = sums[:, :-1] / sums[:, -1:]
    return means


def _bootstrap_sums(values: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """float64[draws, m] of `values` [U, m]."""
    require(draws >= 1, "draws", draws, "an integer ≥ 1")
    rng = np.random.default_rng([seed, 0xB5])
    block = max(1, _CELLS // len(values))
    parts = []
    # Centred in single precision, so that large totals lose nothing; the means come back through the weights' sums.
    centre = values.mean(0)
    centred = np.concatenate([values - centre, np.ones((len(values), 1))], 1).astype(np.float32)
    for start in range(0, draws, block):
        bits = rng.integers(0, 1 << 16, (min(block, draws - start), len(values)), np.uint16)
        sums = (_POISSON[bits] @ centred).astype(np.float64)
        parts.append(sums[:, :-1] + sums[:, -1:] * centre)
    return np.concatenate(parts)


def _poisson_table() -> NDArray[np.float32]:
    """Poisson(1) as a function of 16 random bits; the probabilities are right to 2^−16."""
    cumulated = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(12)])
    return np.searchsorted(cumulated, (np.arange(1 << 16) + .5) / (1 << 16)).astype(np.float32)


_POISSON = _poisson_table()


def _percentiles(estimate: NDArray[np.float64], draws: NDArray[np.float64], level: float) -> Interval:
    require(0 < level < 1, "level", level, "a number in (0, 1)")
    # A draw in which a denominator is 0 has no ratio; where most have none there is no interval either.
    known = np.isfinite(draws)
    draws = np.where(known, draws, np.nan)
    low, high = np.full(len(estimate), np.nan), np.full(len(estimate), np.nan)
    enough = known.mean(0) > .5
    if enough.any():
        low[enough], high[enough] = np.nanquantile(draws[:, enough], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Interval(np.where(np.isfinite(estimate), estimate, np.nan), low, high)
