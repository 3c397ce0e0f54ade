"""Bootstrap intervals over users: users answer for themselves, their requests hang together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recfuse.config import require

DRAWS = 1_000
LEVEL = 0.95
_CELLS = 1 << 24  # bootstrap weights held at once
_GROUP = 16  # draws that share a generator
_SUMS = 1 << 21  # drawn sums held at once


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


@dataclass(frozen=True)
class UserSums:
    """Sums over each of U users, in blocks of columns: a user who has nothing in any of them is not in a block.

    Attributes:
        users: U.
        blocks: (int64[u], float64[u, k]): places of users, each once, and their sums. The columns of all blocks follow
            each other.
    """

    users: int
    blocks: tuple[tuple[NDArray[np.intp] | slice, NDArray[np.float64]], ...]

    def total(self) -> NDArray[np.float64]:
        """[k], over the users."""
        return np.concatenate([values.sum(0) for _, values in self.blocks])


def sum_per_user(values: ArrayLike, user_id: ArrayLike) -> NDArray[np.float64]:
    """float64[U, m]: sums of `values` [n, m] over each user's rows, users in the order of their first row."""
    values = np.asarray(values, np.float64)
    require(values.ndim == 2, "values", values.shape, "an array [n, m]")
    codes, users = user_codes(user_id, len(values))
    return np.stack([np.bincount(codes, column, users) for column in values.T], 1)


def user_codes(user_id: Any, rows: int) -> tuple[NDArray[np.int64], int]:
    """int64[n], 0, 1, …, of the users of rows, in the order of their first row; and how many users there are.

    Categories (`pandas.Categorical`) are taken as they stand, those that no row has among them: sums over some rows of
    a log then have the users of the whole log in the same places, and a bootstrap draws them alike.
    """
    import pandas as pd  # a third of a second, which a job's help need not wait for

    if isinstance(user_id, pd.Categorical):
        codes, users = user_id.codes.astype(np.int64), len(user_id.categories)
    else:
        found, names = pd.factorize(np.asarray(user_id))
        codes, users = found.astype(np.int64), len(names)
    require(len(codes) == rows, "user_id", len(codes), f"{rows} ids, one a row")
    require(bool((codes >= 0).all()), "user_id", None, "ids other than null")
    return codes, users


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


def of_sums(values: ArrayLike | UserSums, statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], *,
            draws: int = DRAWS, level: float = LEVEL, seed: int = 0) -> Interval:
    """A function of sums over users, with a bootstrap interval over users.

    Args:
        values: [U, k], one row a user; or the same in blocks.
        statistic: sums [B, k] → values [B, m], row by row; a denominator of 0 gives no value.
    """
    return percentiles(*bootstrap(values, statistic, draws=draws, seed=seed), level)


def bootstrap(values: ArrayLike | UserSums, statistic: Callable[[NDArray[np.float64]], NDArray[np.float64]], *,
              draws: int = DRAWS, seed: int = 0) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A function of sums over users, float64[m], and of as many draws of the users, [draws, m]; as of `of_sums`.

    The d-th draw of a seed weighs the u-th user alike whatever is summed and however many users follow, so that two
    statistics of the same users are compared draw by draw.
    """
    sums = values if isinstance(values, UserSums) else _whole(_columns(values, "values"))
    require(all(np.isfinite(part).all() for _, part in sums.blocks), "values", "not finite", "finite numbers")
    with np.errstate(divide="ignore", invalid="ignore"):
        return (statistic(sums.total()[None])[0],
                np.concatenate([statistic(part) for part in _bootstrap_sums(sums, draws, seed)]))


def relative_change(value: ArrayLike, base: ArrayLike) -> NDArray[np.float64]:
    """(value − base) / |base|, so that more is more where the base is negative; NaN where it is 0."""
    values, bases = np.asarray(value, np.float64), np.asarray(base, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(bases == 0, np.nan, (values - bases) / np.abs(bases))


def relative_difference(treated: ArrayLike, base: ArrayLike, *, draws: int = DRAWS, level: float = LEVEL,
                        seed: int = 0) -> Interval:
    """(mean(treated) − mean(base)) / |mean(base)| of two disjoint groups, with a bootstrap interval over users.

    Args:
        treated: [U₁, m], base: [U₂, m]: one row a user.
    """
    top, bottom = _columns(treated, "treated"), _columns(base, "base")
    require(top.shape[1] == bottom.shape[1], "base", bottom.shape, f"{top.shape[1]} columns, as in treated")
    with np.errstate(divide="ignore", invalid="ignore"):
        changes = relative_change(_bootstrap_means(top, draws, seed), _bootstrap_means(bottom, draws, seed + 1))
    return percentiles(relative_change(top.mean(0), bottom.mean(0)), changes, level)


def paired_difference(treated: ArrayLike, base: ArrayLike, *, draws: int = DRAWS, level: float = LEVEL,
                      seed: int = 0) -> Interval:
    """(mean(treated) − mean(base)) / |mean(base)| of the same users under two policies (row i of both is user i)."""
    top, bottom = _columns(treated, "treated"), _columns(base, "base")
    require(top.shape == bottom.shape, "base", bottom.shape, f"{top.shape}, the same users as treated")
    width = top.shape[1]
    return of_sums(np.concatenate([top, bottom], 1),
                   lambda sums: relative_change(sums[:, :width], sums[:, width:]), draws=draws, level=level, seed=seed)


def _columns(values: ArrayLike, field: str) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    array = array[:, None] if array.ndim == 1 else array
    require(array.ndim == 2 and len(array) >= 2, field, array.shape, "an array [users, m] of at least 2 users")
    require(bool(np.isfinite(array).all()), field, array[~np.isfinite(array)][:1].tolist(), "finite numbers")
    return array


def _whole(values: NDArray[np.float64]) -> UserSums:
    """One block, of all users."""
    return UserSums(len(values), ((slice(None), values),))


def _bootstrap_means(values: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    counted = _whole(np.concatenate([values, np.ones((len(values), 1))], 1))
    sums = np.concatenate(list(_bootstrap_sums(counted, draws, seed)))
    means: NDArray[np.float64] = sums[:, :-1] / sums[:, -1:]
    return means


def _bootstrap_sums(sums: UserSums, draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """float64[b, k] of some draws after the other, `draws` in all."""
    require(draws >= 1, "draws", draws, "an integer ≥ 1")
    block = max(1, _CELLS // (sums.users * _GROUP)) * _GROUP
    centred = [(members, *_centred(values)) for members, values in sums.blocks]
    rows = max(1, _SUMS // sum(values.shape[1] for _, values in sums.blocks))
    for start in range(0, draws, block):
        weights = _weights(sums.users, start, min(block, draws - start), seed)
        for first in range(0, len(weights), rows):
            parts = []
            for members, values, centre, scale in centred:
                drawn = (weights[first:first + rows, members] @ values).astype(np.float64)
                parts.append(drawn[:, :-1] * scale + drawn[:, -1:] * centre)
            yield np.concatenate(parts, 1)


def _weights(users: int, start: int, number: int, seed: int) -> NDArray[np.float32]:
    """Poisson weights of some draws, [number, users]; `start` is a multiple of _GROUP."""
    groups = [np.random.default_rng([seed, 0xB5, group]).integers(0, 1 << 16, (users, _GROUP), np.uint16).T
              for group in range(start // _GROUP, -(-(start + number) // _GROUP))]
    return _POISSON[np.concatenate(groups)[:number]]


def _centred(values: NDArray[np.float64]) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.float64]]:
    """Values about their means beside a column of ones, in single precision, so that large totals lose nothing; the
    means, which come back through the weights' sums; and powers of two by which the values are smaller, so that none is
    beyond single precision."""
    centre = values.mean(0)
    around = values - centre
    largest = np.abs(around).max(0, initial=0.0)
    scale = np.exp2(np.floor(np.log2(np.where(largest > 0, largest, 1.0))))
    return np.concatenate([around / scale, np.ones((len(values), 1))], 1).astype(np.float32), centre, scale


def _poisson_table() -> NDArray[np.float32]:
    """Poisson(1) as a function of 16 random bits; the probabilities are right to 2^−16."""
    cumulated = np.cumsum([math.exp(-1) / math.factorial(k) for k in range(12)])
    return np.searchsorted(cumulated, (np.arange(1 << 16) + .5) / (1 << 16)).astype(np.float32)


_POISSON = _poisson_table()


def percentiles(estimate: NDArray[np.float64], draws: NDArray[np.float64], level: float) -> Interval:
    """The interval of an estimate [m] from draws [draws, m] of it; NaN where most draws have no value."""
    require(0 < level < 1, "level", level, "a number in (0, 1)")
    # A draw in which a denominator is 0 has no ratio; where most have none there is no interval either.
    known = np.isfinite(draws)
    draws = np.where(known, draws, np.nan)
    low, high = np.full(len(estimate), np.nan), np.full(len(estimate), np.nan)
    enough = known.mean(0) > .5
    if enough.any():
        low[enough], high[enough] = np.nanquantile(draws[:, enough], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return Interval(np.where(np.isfinite(estimate), estimate, np.nan), low, high)
