"""Metrics of predicted probabilities, vectorised: AUC, GAUC, log loss, calibration (maths 4.3).

Intervals are a bootstrap over users: each draw weighs every user's rows by one Poisson(1) number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recfuse.config import require

POOLED = "all"


@dataclass(frozen=True)
class RankingMetrics:
    """The metrics of one (scene, task), or of a task over all scenes (`scene` is POOLED).

    Attributes:
        rows, positives: counts.
        auc: NaN where one class is missing.
        gauc: AUC per user, weighted by the user's rows; users with one class are left out.
        gauc_users, skipped_users: users that count in GAUC, and those left out.
        log_loss: mean, in nats.
        calibration_error: expected calibration error over bins of equal count.
        predicted_over_observed: sum of predictions over positives; NaN without positives.
    """

    scene: str
    task: str
    rows: int
    positives: int
    auc: float
    gauc: float
    gauc_users: int
    skipped_users: int
    log_loss: float
    calibration_error: float
    predicted_over_observed: float


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve of labels 0/1 [N]; ties count half; NaN where one class is missing."""
    y, s = _checked(labels, scores)
    return float(_grouped_auc(y, s, np.zeros(len(y), np.int64), 1)[0]) if len(y) else float("nan")


def gauc(labels: ArrayLike, scores: ArrayLike, users: ArrayLike) -> tuple[float, int, int]:
    """AUC per user weighted by the user's rows; (GAUC, users in it, users left out for having one class)."""
    y, s = _checked(labels, scores)
    keys, group = np.unique(np.asarray(users), return_inverse=True)
    require(len(group.reshape(-1)) == len(y), "users", len(group), f"{len(y)} values")
    areas = _grouped_auc(y, s, group.reshape(-1), len(keys))
    counted = ~np.isnan(areas)
    weight = np.bincount(group.reshape(-1), minlength=len(keys))[counted]
    value = float((areas[counted] * weight).sum() / weight.sum()) if counted.any() else float("nan")
    return value, int(counted.sum()), int((~counted).sum())


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean of −[y log p + (1 − y) log(1 − p)], p kept 1e-7 away from 0 and 1."""
    y, p = _checked(labels, probabilities)
    p = np.clip(p, 1e-7, 1 - 1e-7)
    return float(-np.where(y == 1, np.log(p), np.log1p(-p)).mean()) if len(y) else float("nan")


def calibration_error(labels: ArrayLike, probabilities: ArrayLike, bins: int = 15) -> float:
    """Expected calibration error: Σ_b (n_b / n) |mean prediction − observed rate|, over bins of equal count."""
    y, p = _checked(labels, probabilities)
    if not len(y):
        return float("nan")
    order = np.argsort(p, kind="stable")
    number = np.arange(len(y)) * bins // len(y)
    gap = np.bincount(number, p[order] - y[order], minlength=bins)
    return float(np.abs(gap).sum() / len(y))


def predicted_over_observed(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Sum of predictions over the number of positives; NaN without positives."""
    y, p = _checked(labels, probabilities)
    return float(p.sum() / y.sum()) if y.sum() else float("nan")


@dataclass(frozen=True)
class MetricIntervals:
    """95% intervals (low, high) of the metrics of one set of rows; NaN where a metric has none."""

    auc: tuple[float, float]
    gauc: tuple[float, float]
    log_loss: tuple[float, float]
    calibration_error: tuple[float, float]
    predicted_over_observed: tuple[float, float]


@dataclass(frozen=True)
class AucDifference:
    """AUC of one model minus that of another on the same rows, with its 95% interval over users."""

    difference: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`gain` or `loss` where the whole interval is on one side of 0, else `no difference shown`."""
        if self.low > 0:
            return "gain"
        return "loss" if self.high < 0 else "no difference shown"


def metric_intervals(labels: ArrayLike, probabilities: ArrayLike, users: ArrayLike, *, draws: int = 200, seed: int = 0,
                     bins: int = 15) -> MetricIntervals:
    """Intervals of every metric.

    Args:
        labels, probabilities, users: [N].
        draws: of the bootstrap.

    Raises:
        InvalidFieldError: shapes or values that do not fit, or draws < 1.
    """
    y, p = _checked(labels, probabilities)
    weights, group = _user_weights(users, len(y), draws, seed)
    count = weights.shape[1]
    rows = np.bincount(group, minlength=count)
    areas = _grouped_auc(y, p, group, count)
    counted = np.where(np.isnan(areas), 0.0, rows)
    clipped = np.clip(p, 1e-7, 1 - 1e-7)
    losses = np.bincount(group, -np.where(y == 1, np.log(clipped), np.log1p(-clipped)), minlength=count)
    number = np.empty(len(y), np.int64)
    number[np.argsort(p, kind="stable")] = np.arange(len(y)) * bins // max(len(y), 1)
    gaps = np.bincount(group * bins + number, p - y, minlength=count * bins).reshape(count, bins)
    drawn = weights @ rows
    with np.errstate(divide="ignore", invalid="ignore"):
        return MetricIntervals(
            auc=_interval(_weighted_auc(y, p, weights, group)),
            gauc=_interval(weights @ (np.nan_to_num(areas) * counted) / (weights @ counted)),
            log_loss=_interval(weights @ losses / drawn),
            calibration_error=_interval(np.abs(weights @ gaps).sum(1) / drawn),
            predicted_over_observed=_interval(
                weights @ np.bincount(group, p, minlength=count) / (weights @ np.bincount(group, y, minlength=count))))


def auc_difference(labels: ArrayLike, first: ArrayLike, second: ArrayLike, users: ArrayLike, *, draws: int = 200,
                   seed: int = 0) -> AucDifference:
    """AUC of `first` minus AUC of `second`, both [N]; the draws are shared, so what is common cancels."""
    y, a = _checked(labels, first)
    b = _checked(labels, second)[1]
    weights, group = _user_weights(users, len(y), draws, seed)
    low, high = _interval(_weighted_auc(y, a, weights, group) - _weighted_auc(y, b, weights, group))
    return AucDifference(auc(y, a) - auc(y, b), low, high)


def _user_weights(users: ArrayLike, rows: int, draws: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Poisson(1) weights [draws, U] and every row's user [N]."""
    require(draws >= 1, "draws", draws, "an integer ≥ 1")
    keys, group = np.unique(np.asarray(users), return_inverse=True)
    require(len(group.reshape(-1)) == rows, "users", len(group.reshape(-1)), f"{rows} values")
    weights = np.random.default_rng([seed, 0xA0C]).poisson(1.0, (draws, len(keys))).astype(np.float64)
    return weights, group.reshape(-1)


def _weighted_auc(y: NDArray[np.float64], s: NDArray[np.float64], weights: NDArray[np.float64],
                  group: NDArray[np.int64]) -> NDArray[np.float64]:
    """AUC of every draw [draws], each row counting as often as its user; NaN where one class is missing."""
    if not len(y):
        return np.full(len(weights), np.nan)
    order = np.argsort(s, kind="stable")
    y, s, group = y[order], s[order], group[order]
    starts = np.flatnonzero(np.append(True, s[1:] != s[:-1]))
    result = np.empty(len(weights))
    for draw, user_weight in enumerate(weights):
        row = user_weight[group]
        positives, negatives = np.add.reduceat(row * y, starts), np.add.reduceat(row * (1 - y), starts)
        below = np.cumsum(negatives) - negatives / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            result[draw] = (positives * below).sum() / (positives.sum() * negatives.sum())
    return result


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """2.5% and 97.5% quantiles; NaN where fewer than half of the draws have a value."""
    known = values[np.isfinite(values)]
    if len(known) * 2 <= len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)


def ranking_metrics(scene: str, task: str, labels: ArrayLike, probabilities: ArrayLike,
                    users: ArrayLike) -> RankingMetrics:
    """All metrics of one set of rows."""
    y, p = _checked(labels, probabilities)
    value, counted, skipped = gauc(y, p, users)
    return RankingMetrics(
        scene=scene, task=task, rows=len(y), positives=int(y.sum()), auc=auc(y, p), gauc=value, gauc_users=counted,
        skipped_users=skipped, log_loss=log_loss(y, p), calibration_error=calibration_error(y, p),
        predicted_over_observed=predicted_over_observed(y, p))


def evaluate_scenes(scenes: ArrayLike, users: ArrayLike, labels: Mapping[str, ArrayLike],
                    predictions: Mapping[str, ArrayLike]) -> list[RankingMetrics]:
    """Metrics of every (scene, task) with predictions, then of every task over the scenes that have it.

    Args:
        scenes, users: [N].
        labels: task → 0/1 [N].
        predictions: task → probability [N], NaN where the row's scene lacks the task.
    """
    scene, user = np.asarray(scenes), np.asarray(users)
    by_scene, pooled = [], []
    for task, values in predictions.items():
        p, y = np.asarray(values, np.float64), np.asarray(labels[task])
        scored = ~np.isnan(p)
        for name in np.unique(scene[scored]):
            here = scored & (scene == name)
            by_scene.append(ranking_metrics(str(name), task, y[here], p[here], user[here]))
        pooled.append(ranking_metrics(POOLED, task, y[scored], p[scored], user[scored]))
    return sorted(by_scene, key=lambda metrics: metrics.scene) + pooled


@dataclass(frozen=True)
class NumberMetrics:
    """Predicted means of a number (watch time, cut at its largest value) in one scene.

    Attributes:
        mean: observed.
        predicted_over_observed: ratio of the means; NaN where the observed one is 0.
        mean_absolute_error, root_mean_squared_error: in the number's own unit.
        rank_correlation: Spearman's; NaN where one side is constant.
    """

    scene: str
    task: str
    rows: int
    mean: float
    predicted_over_observed: float
    mean_absolute_error: float
    root_mean_squared_error: float
    rank_correlation: float


def number_metrics(scene: str, task: str, observed: ArrayLike, predicted: ArrayLike) -> NumberMetrics:
    """All metrics of one set of rows, [N] each."""
    y, p = np.asarray(observed, np.float64), np.asarray(predicted, np.float64)
    require(y.shape == p.shape and y.ndim == 1 and len(y) > 0, "predicted", p.shape, f"{y.shape}, one a row")
    error = p - y
    import pandas as pd

    ranks = pd.DataFrame({"y": y, "p": p}).rank()
    varies = bool(y.std() > 0 and p.std() > 0)
    return NumberMetrics(
        scene, task, len(y), float(y.mean()), float(p.sum() / y.sum()) if y.sum() else float("nan"),
        float(np.abs(error).mean()), float(np.sqrt((error**2).mean())),
        float(np.corrcoef(ranks["y"], ranks["p"])[0, 1]) if varies else float("nan"))


def _checked(labels: ArrayLike, scores: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    y, s = np.asarray(labels, np.float64), np.asarray(scores, np.float64)
    require(y.ndim == 1, "labels", y.shape, "[N]")
    require(s.shape == y.shape, "scores", s.shape, f"{y.shape}, one a label")
    require(bool(((y == 0) | (y == 1)).all()), "labels", np.unique(y)[:5].tolist(), "0 or 1")
    require(bool(np.isfinite(s).all()), "scores", "not finite", "finite numbers")
    return y, s


def _grouped_auc(y: NDArray[np.float64], s: NDArray[np.float64], group: NDArray[np.int64],
                 groups: int) -> NDArray[np.float64]:
    """AUC within every group, from the mean ranks of its positives (Mann-Whitney); NaN where one class is missing."""
    order = np.lexsort((s, group))
    y, s, group = y[order], s[order], group[order]
    rows = np.bincount(group, minlength=groups)
    start = np.concatenate([[0], np.cumsum(rows)[:-1]])
    rank = np.arange(len(y)) - start[group] + 1.0
    # Equal scores of a group share the mean of their ranks.
    new = np.ones(len(y), bool)
    new[1:] = (s[1:] != s[:-1]) | (group[1:] != group[:-1])
    tie = np.cumsum(new) - 1
    rank = (np.bincount(tie, rank) / np.bincount(tie))[tie]
    positives = np.bincount(group, y, minlength=groups)
    negatives = rows - positives
    with np.errstate(invalid="ignore", divide="ignore"):
        u = np.bincount(group, rank * y, minlength=groups) - positives * (positives + 1) / 2
        return np.where((positives > 0) & (negatives > 0), u / (positives * negatives), np.nan)
