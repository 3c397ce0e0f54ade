"""What the job `train_scenes` gives: a bundle, the figures of its test day, and these as tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recfuse.scenes.evaluation import to_json
from recfuse.stats.ranking import POOLED, NumberMetrics, RankingMetrics
from recfuse.stats.slopes import Slope

# Title, columns, and lines as text.
Table = tuple[str, list[str], list[tuple[str, ...]]]
# Figure → its name in a table.
_FIGURES = {"auc": "AUC", "gauc": "GAUC", "log_loss": "log loss", "calibration_error": "ECE",
            "predicted_over_observed": "pred/obs"}


@dataclass(frozen=True)
class TrainScenesResult:
    """Result of the job: where the bundle is, the metrics of the test day, and whether it was there already.

    Attributes:
        metrics: of every (scene, task) with 0/1 labels, then pooled; numbers: of those that are numbers.
        details: JSON values of recfuse.scenes.evaluation.Details; empty where they were not asked for.
        rows: how many train, and why the others do not.
        slopes: task → scene, or POOLED → slope of realised on predicted, on rows that training did not see.
    """

    bundle: Path
    metrics: tuple[RankingMetrics, ...]
    test_day: int
    reused: bool
    details: dict[str, Any] = field(default_factory=dict)
    numbers: tuple[NumberMetrics, ...] = ()
    slopes: dict[str, dict[str, Slope]] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)

    def pooled(self, task: str) -> RankingMetrics:
        """The metrics of a task over all scenes."""
        return next(m for m in self.metrics if m.scene == POOLED and m.task == task)

    @property
    def headline(self) -> str:
        """The AUC of the commonest label over all scenes, in a few words; "" where there is none."""
        known = [metric for metric in self.metrics if metric.scene == POOLED and math.isfinite(metric.auc)]
        if not known:
            return ""
        commonest = max(known, key=lambda metric: metric.positives)
        return f"AUC of {commonest.task} {commonest.auc:.2f} on the last day".replace(" 0.", " .")

    @property
    def largest_scene(self) -> str:
        """The scene with the most rows on the test day."""
        return max((metric for metric in self.metrics if metric.scene != POOLED), key=lambda metric: metric.rows).scene

    def tables(self) -> list[Table]:
        """The metrics, and what the config asked for beyond them."""
        note = ", reused" if self.reused else ""
        tables = [(f"Scorer on {self.test_day} ({self.bundle}{note})",
                   ["scene", "task", "rows", "positives", *_FIGURES.values()],
                   [(m.scene, m.task, f"{m.rows:,}", f"{m.positives:,}",
                     *(_number(to_json(getattr(m, name))) for name in _FIGURES)) for m in self.metrics])]
        if self.rows:
            tables.insert(0, (f"Rows of the exposures: {sum(self.rows.values()):,}", ["what they do", "rows"],
                              [(reason, f"{count:,}") for reason, count in self.rows.items()]))
        if self.numbers:
            tables.append(_table_of_numbers(self.numbers))
        if self.slopes:
            tables.append(_table_of_slopes(self.slopes))
        if self.details:
            tables += [*_tables_of_intervals(self.metrics, self.details), *_tables_of_scenes(self.details)]
        return tables


def _table_of_numbers(numbers: Sequence[NumberMetrics]) -> Table:
    return ("Predicted means of numbers",
            ["scene", "task", "rows", "mean", "pred/obs", "MAE", "RMSE", "rank correlation"],
            [(m.scene, m.task, f"{m.rows:,}", *(_number(to_json(value)) for value in (
                m.mean, m.predicted_over_observed, m.mean_absolute_error, m.root_mean_squared_error,
                m.rank_correlation))) for m in numbers])


def _table_of_slopes(slopes: Mapping[str, Mapping[str, Slope]]) -> Table:
    return ("Slopes of realised on predicted, within a user's rows that training did not see",
            ["task", "scene", "rows", "slope", "error"],
            [(task, scene, f"{slope.rows:,}", *(_number(to_json(value)) for value in (slope.slope, slope.error)))
             for task, scenes in slopes.items() for scene, slope in scenes.items()])


def _tables_of_intervals(metrics: Sequence[RankingMetrics], details: Mapping[str, Any]) -> list[Table]:
    """The intervals, and what the model says before its correction."""
    columns = ["scene", "task", *_FIGURES.values()]
    return [
        ("95% intervals over users", columns,
         [(m.scene, m.task, *(_span(spans[name]) for name in _FIGURES))
          for m, spans in zip(metrics, details["intervals"], strict=True)]),
        ("Before the correction by −log p, with 95% intervals over users", columns,
         [(raw["scene"], raw["task"], *(f"{_number(raw[name])} {_span(spans[name])}" for name in _FIGURES))
          for raw, spans in zip(details["uncorrected"], details["uncorrected_intervals"], strict=True)])]


def _tables_of_scenes(details: Mapping[str, Any]) -> list[Table]:
    """What joint training gained or lost, and how the gates use the experts; each where it was measured."""
    tables: list[Table] = []
    if details["transfer"]:
        tables.append((
            "Joint training against that scene alone, AUC",
            ["scene", "task", "positives", "joint", "alone", "difference", "95%", "verdict"],
            [(pair["scene"], pair["task"], f"{pair['positives']:,}", _number(pair["joint"]), _number(pair["alone"]),
              _number(pair["difference"]["difference"]),
              _span([pair["difference"]["low"], pair["difference"]["high"]]), pair["verdict"])
             for pair in details["transfer"]]))
    if details["experts"]:
        tables.append(("Gates: mean share of each expert", ["scene", "task", "shares", "entropy / log K"],
                       [(gate["scene"], gate["task"], " ".join(f"{share:.2f}" for share in gate["use"]),
                         _number(gate["entropy"])) for gate in details["experts"]]))
    return tables


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _span(bounds: list[float | None]) -> str:
    return "–" if None in bounds else f"{bounds[0]:.3f}..{bounds[1]:.3f}"
