"""Figures of a trained scorer on its test day: metrics of every (scene, task), intervals, transfer between scenes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recfuse.logs.exposures import Exposures
from recfuse.scenes.dataset import TimeSplit
from recfuse.scenes.experts import ExpertHealth
from recfuse.scenes.histories import row_histories
from recfuse.scenes.inference import SceneScorer
from recfuse.stats.ranking import (
    POOLED,
    AucDifference,
    MetricIntervals,
    NumberMetrics,
    RankingMetrics,
    auc_difference,
    evaluate_scenes,
    metric_intervals,
    number_metrics,
)
from recfuse.stats.slopes import Slope, fit_slope

ENOUGH_POSITIVES = 30


@dataclass(frozen=True)
class TestDay:
    """Rows to judge a scorer by, those of the test day for one, with the histories that their users had then.

    Attributes:
        exposures: these rows alone.
        histories: int64[N, L].
        scenes: [N].
    """

    __test__ = False  # Pytest takes it for a test class otherwise.

    exposures: Exposures
    histories: NDArray[np.int64]
    scenes: np.ndarray

    @classmethod
    def of(cls, exposures: Exposures, split: TimeSplit, history_length: int) -> TestDay:
        """The test day of a split."""
        return cls.of_rows(exposures, split.test, history_length)

    @classmethod
    def of_rows(cls, exposures: Exposures, chosen: NDArray[np.bool_], history_length: int) -> TestDay:
        """The chosen rows, bool[N]; histories are looked up in all rows before each of them."""
        histories = row_histories(exposures, history_length)[chosen]
        day = exposures.filter(chosen)
        return cls(day, histories, day.rows["scene"].to_numpy(zero_copy_only=False))

    def predict(self, scorer: SceneScorer, corrected: bool = True) -> dict[str, NDArray[np.float32]]:
        """Task → probability [N] of every task with 0/1 labels; NaN where the scene lacks the task."""
        return {task: values for task, values in self._scores(scorer, corrected).items()
                if task not in scorer.numbers}

    def number_metrics(self, scorer: SceneScorer) -> list[NumberMetrics]:
        """Of every scene and every task that is a number (recfuse.scenes.registry)."""
        if not scorer.numbers:
            return []
        scores, figures = self._scores(scorer), []
        for task in scorer.numbers:
            observed = self._realised(scorer, task)
            for scene in (scene for scene, tasks in scorer.tasks.items() if task in tasks):
                inside = self.scenes == scene
                if inside.any():
                    figures.append(number_metrics(scene, task, observed[inside], scores[task][inside]))
        return figures

    def slopes(self, scorer: SceneScorer) -> dict[str, dict[str, Slope]]:
        """Task → scene → slope of realised on predicted within a user's rows; over all scenes under POOLED.

        Errors are over users. Scenes come in the order of the scorer's.
        """
        scores, users, result = self._scores(scorer), self.exposures.column("user_id"), dict[str, dict[str, Slope]]()
        scene = np.unique(self.scenes, return_inverse=True)[1].reshape(-1)
        group = np.stack([users, scene], 1)
        for task, predicted in scores.items():
            realised = self._realised(scorer, task)
            known = ~np.isnan(predicted)
            parts = {name: known & (self.scenes == name) for name, tasks in scorer.tasks.items() if task in tasks}
            result[task] = {name: fit_slope(realised[part], predicted[part], group[part], users[part])
                            for name, part in {**parts, POOLED: known}.items()}
        return result

    def _realised(self, scorer: SceneScorer, task: str) -> NDArray[np.float64]:
        """What a prediction of the task is of, float64[N]: the label, or the number with its cut."""
        return np.minimum(self.exposures.column(task).astype(np.float64), scorer.numbers.get(task, np.inf))

    def _scores(self, scorer: SceneScorer, corrected: bool = True) -> dict[str, NDArray[np.float32]]:
        day = self.exposures
        return scorer.score_rows(day.rows, day.users, day.items, self.histories, corrected)

    def metrics(self, predictions: dict[str, NDArray[np.float32]]) -> list[RankingMetrics]:
        """Of every (scene, task), then pooled."""
        return evaluate_scenes(self.scenes, self.exposures.column("user_id"),
                               {task: self.exposures.column(task) for task in predictions}, predictions)

    def rows_of(self, metrics: RankingMetrics, predictions: dict[str, NDArray[np.float32]]) -> NDArray[np.bool_]:
        """bool[N]: the rows that the metrics are of."""
        scored = ~np.isnan(predictions[metrics.task])
        return scored if metrics.scene == POOLED else scored & (self.scenes == metrics.scene)


@dataclass(frozen=True)
class Transfer:
    """Joint training against training on that scene's rows alone, by AUC of a (scene, task) on the test day.

    `positives` are those of the test rows; the verdict on fewer than ENOUGH_POSITIVES is that they are too few, since
    a bootstrap cannot draw what was never seen.
    """

    scene: str
    task: str
    positives: int
    joint: float
    alone: float
    difference: AucDifference

    @property
    def verdict(self) -> str:
        """Of the difference, where there are positives enough."""
        return self.difference.verdict if self.positives >= ENOUGH_POSITIVES else "too few positives"


@dataclass(frozen=True)
class Details:
    """What is worth its time outside a quick run.

    Attributes:
        uncorrected: metrics before the −log p_t correction.
        intervals, uncorrected_intervals: beside each of the metrics, in their order.
        transfer: of every (scene, task); empty where it was not asked for.
        experts: of every pair, where the architecture has gates.
    """

    uncorrected: tuple[RankingMetrics, ...]
    intervals: tuple[MetricIntervals, ...]
    uncorrected_intervals: tuple[MetricIntervals, ...]
    transfer: tuple[Transfer, ...]
    experts: tuple[ExpertHealth, ...]


def details(scorer: SceneScorer, day: TestDay, draws: int,
            alone: Callable[[str], SceneScorer] | None = None) -> Details:
    """All of it.

    Args:
        draws: of the bootstrap over users.
        alone: trains the scorer of one scene on its own rows; absent, transfer is left out.
    """
    corrected, raw = day.predict(scorer), day.predict(scorer, corrected=False)
    rows = day.exposures
    uncorrected = day.metrics(raw)
    return Details(
        uncorrected=tuple(uncorrected), intervals=tuple(intervals(day, day.metrics(corrected), corrected, draws)),
        uncorrected_intervals=tuple(intervals(day, uncorrected, raw, draws)),
        transfer=tuple(transfer(scorer, day, draws, alone)) if alone else (),
        experts=tuple(scorer.expert_health(rows.rows, rows.users, rows.items, day.histories)))


def intervals(day: TestDay, metrics: Sequence[RankingMetrics], predictions: dict[str, NDArray[np.float32]],
              draws: int) -> Iterator[MetricIntervals]:
    """Beside each of the metrics, which are those of the predictions."""
    users = day.exposures.column("user_id")
    for pair in metrics:
        rows = day.rows_of(pair, predictions)
        yield metric_intervals(day.exposures.column(pair.task)[rows], predictions[pair.task][rows], users[rows],
                               draws=draws)


def transfer(scorer: SceneScorer, day: TestDay, draws: int, alone: Callable[[str], SceneScorer]) -> list[Transfer]:
    """Every scene's model trained alone, and what joint training gained or lost against it."""
    joint, users, result = day.predict(scorer), day.exposures.column("user_id"), []
    for scene in scorer.tasks:
        single = alone(scene)
        inside = day.scenes == scene
        rows = day.exposures.filter(inside)
        scores = single.score_rows(rows.rows, rows.users, rows.items, day.histories[inside])
        for task in set(joint) & set(scorer.tasks[scene]) & set(single.tasks[scene]):
            difference = auc_difference(rows.column(task), joint[task][inside], scores[task], users[inside],
                                        draws=draws)
            areas = [m.auc for m in day.metrics({task: np.where(inside, joint[task], np.nan)}) if m.scene == scene]
            value = areas[0] if areas else float("nan")
            result.append(Transfer(scene, task, int(rows.column(task).sum()), value, value - difference.difference,
                                   difference))
    return sorted(result, key=lambda pair: (pair.scene, scorer.tasks[pair.scene].index(pair.task)))


def to_json(figures: Any) -> Any:
    """Dataclasses, tuples and numbers as JSON values, which have no NaN."""
    if dataclasses.is_dataclass(figures) and not isinstance(figures, type):
        values = {field.name: to_json(getattr(figures, field.name)) for field in dataclasses.fields(figures)}
        return values | ({"verdict": figures.verdict} if isinstance(figures, Transfer) else {})
    if isinstance(figures, list | tuple):
        return [to_json(figure) for figure in figures]
    if isinstance(figures, dict):
        return {name: to_json(figure) for name, figure in figures.items()}
    if isinstance(figures, float) and figures != figures:
        return None
    return figures
