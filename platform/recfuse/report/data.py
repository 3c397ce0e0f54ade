"""What a report shows: plain values, as the jobs' JSON files hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Plain = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Plain values; what is None or empty was not measured.

    Attributes:
        account: rows_in, kept, quarantined {reason: rows}.
        history: one mapping per training iteration: phase, iteration, loss, explained_variance/BEHAVIOUR, ….
        ab_test: measures, level, arms [{name, users, mean, estimate, low, high}]; the first arm is the base.
        off_policy: behaviours, estimate, low, high, logged, effective_sample_size, requests, users, refused, of the
            first estimator; estimators: the same of each, with estimator, per, mean_ratio; horizon.
        scorer: [{scene, task, rows, positives, auc, calibration_error, predicted_over_observed, …}].
        response: {auc: {behaviour: value}, …}, of the simulator's response model.
        calibration: [[scene, measure, simulated, real]].
        serving: {latency_ms: [numbers], endpoint}.
        weights: {parameters, logged: [M], groups: [{feature, value, requests, mean: [M]}]}; the first group is all.
        subject: title lines: what was trained on what.
    """

    account: Plain | None = None
    history: Sequence[Plain] = ()
    ab_test: Plain | None = None
    off_policy: Plain | None = None
    scorer: Sequence[Plain] = ()
    response: Plain | None = None
    calibration: Sequence[Sequence[Any]] = ()
    serving: Plain | None = None
    weights: Plain | None = None
    subject: Mapping[str, str] = field(default_factory=dict)


def number(value: Any) -> float:
    """A number, NaN where JSON has null."""
    return math.nan if value is None else float(value)


def numbers(values: Sequence[Any]) -> np.ndarray:
    """float64[n], NaN where JSON has null."""
    return np.array([number(value) for value in values])


def changes(answer: Plain, key: str) -> np.ndarray:
    """float64[m], how far the values of an off-policy estimate lie from those of the log, in percent of their size; NaN
    relative to 0."""
    values, logged = numbers(answer[key]), numbers(answer["logged"])
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(logged == 0, np.nan, 100 * (values - logged) / np.abs(logged))
