"""How much of a difference between two predictions comes true: the slope of realised on predicted, in numpy.

Calibrated means are not calibrated slopes: a prediction may be right on average and still say little, or nothing, of
which of a user's items gets the reaction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recfuse.config import require


@dataclass(frozen=True)
class Slope:
    """The slope of realised on predicted, and its standard error.

    Attributes:
        slope: what one unit of prediction brings; 1 where differences of predictions come true in full. NaN where no
            group has two rows with different predictions.
        error: its standard error; NaN where the slope is, or where fewer than two clusters have such groups.
        rows: rows in groups of two or more.
    """

    slope: float
    error: float
    rows: int


def fit_slope(realised: ArrayLike, predicted: ArrayLike, groups: ArrayLike, clusters: ArrayLike | None = None,
              weights: ArrayLike | None = None) -> Slope:
    """Least squares of realised on predicted, both centred within their group.

    `Σ w p̃ ỹ / Σ w p̃²`, with the standard error that holds whatever the rows of a cluster share:
    `√(G/(G−1) Σ_g (Σ_{i∈g} w p̃ e)²) / Σ w p̃²`, of residuals e and G clusters (Liang & Zeger 1986).

    Args:
        realised, predicted: [N] each, finite.
        groups: [N], such as (user, scene); a group's level says nothing of the slope.
        clusters: [N], such as the user; absent, the groups.
        weights: [N], ≥ 0; absent, all equal.

    Raises:
        InvalidFieldError: lengths differ, or a value is not finite.
    """
    y, p = np.asarray(realised, np.float64), np.asarray(predicted, np.float64)
    w = np.ones(len(y)) if weights is None else np.asarray(weights, np.float64)
    keys = np.asarray(groups) if clusters is None else np.asarray(clusters)
    for name, values in (("predicted", p), ("groups", np.asarray(groups)), ("clusters", keys), ("weights", w)):
        require(values.shape[:1] == y.shape, name, values.shape, f"{len(y)} values, as many as realised has")
    for name, values in (("realised", y), ("predicted", p), ("weights", w)):
        require(bool(np.isfinite(values).all()), name, "NaN or an infinite value", "finite numbers")
    require(bool((w >= 0).all()), "weights", float(w.min(initial=0.0)), "numbers ≥ 0")
    group = _codes(groups)
    paired = np.bincount(group)[group] > 1
    y, p = _centred(y, group, w), _centred(p, group, w)
    spread = float((w * p * p).sum())
    if not spread > 1e-12 * max(float((w * np.asarray(predicted, np.float64) ** 2).sum()), 1e-300):
        return Slope(float("nan"), float("nan"), int(paired.sum()))
    slope = float((w * p * y).sum()) / spread
    sums = np.bincount(_codes(keys), w * p * (y - slope * p))
    count = len(np.unique(keys[paired]))
    error = float(np.sqrt(count / (count - 1) * (sums ** 2).sum()) / spread) if count > 1 else float("nan")
    return Slope(slope, error, int(paired.sum()))


def shrink(slope: Slope, mean: float = 0.5, std: float = 0.5) -> Slope:
    """The posterior of a slope whose prior is N(mean, std²): the less a slope is known, the closer to the mean.

    `(b / e² + m / s²) / (1 / e² + 1 / s²)`; a slope without an error is not known at all.

    Raises:
        InvalidFieldError: a standard deviation that is not above 0.
    """
    require(std > 0, "std", std, "a number > 0")
    if not np.isfinite(slope.slope) or not np.isfinite(slope.error):
        return Slope(mean, std, slope.rows)
    share = std ** 2 / (std ** 2 + slope.error ** 2)
    return Slope(share * slope.slope + (1 - share) * mean, std * float(np.sqrt(1 - share)), slope.rows)


def read_slopes(saved: Mapping[str, Mapping[str, Mapping[str, float | None]]]) -> dict[str, dict[str, Slope]]:
    """Task → scene → slope, of the JSON values in a scorer's manifest, where null stands for NaN."""
    return {task: {scene: Slope(_or_nan(entry["slope"]), _or_nan(entry["error"]), int(entry["rows"] or 0))
                   for scene, entry in scenes.items()} for task, scenes in saved.items()}


def _or_nan(value: float | None) -> float:
    return float("nan") if value is None else value


def _codes(values: ArrayLike) -> NDArray[np.int64]:
    """int64[N] from 0 on, one for every distinct value (row, where there are two columns)."""
    keys = np.asarray(values)
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _centred(values: NDArray[np.float64], group: NDArray[np.int64], w: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values less their group's weighted mean."""
    total = np.bincount(group, w).astype(np.float64)
    return values - (np.bincount(group, w * values) / np.where(total > 0, total, 1.0))[group]
