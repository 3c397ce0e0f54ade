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
        off_policy: behaviours; blocks, one a question (`recfuse.evaluation.blocks.Block.to_dict`); advice: sentences;
            truths, of a simulated log: {question: {change: [m], error: [m]}}, errors being half intervals.
        scorer: [{scene, task, rows, positives, auc, calibration_error, predicted_over_observed, …}].
        response: {auc: {behaviour: value}, …}, of the simulator's response model.
        calibration: [[scene, measure, simulated, real]].
        serving: {latency_ms: [numbers], endpoint}.
        weights: {parameters, logged: [M], groups: [{feature, value, requests, mean: [M]}]}; the first group is all.
        segments: [{feature, value, requests, change, low, high: [m], refused}], of the evaluation's behaviours.
        floors: behaviour → relative change that it may not fall below.
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
    segments: Sequence[Plain] = ()
    floors: Mapping[str, float] = field(default_factory=dict)
    subject: Mapping[str, str] = field(default_factory=dict)


def number(value: Any) -> float:
    """A number, NaN where JSON has null."""
    return math.nan if value is None else float(value)


def numbers(values: Sequence[Any]) -> np.ndarray:
    """float64[n], NaN where JSON has null."""
    return np.array([number(value) for value in values])
