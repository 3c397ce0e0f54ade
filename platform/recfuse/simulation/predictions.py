"""A scorer's predictions for the pools of a world."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recfuse.logs.exposures import LABELS, RESPONSE_SHARE, ROWS_SCHEMA, Exposures, row_share
from recfuse.runtime.console import Progress
from recfuse.simulation.build import Predict

_ROWS = 65_536


class Scorer(Protocol):
    """What is needed of recfuse.scenes.inference.SceneScorer."""

    version: str
    tasks: dict[str, tuple[str, ...]]

    def score_exposures(self, exposures: Exposures) -> dict[str, NDArray[np.float32]]:
        """Task → float32[N]; NaN where the row's scene lacks the task."""
        ...


def task_names(scorer: Scorer) -> tuple[str, ...]:
    """Every task that some scene has, in the order of their first scene; the fusion parameters of the world."""
    return tuple(dict.fromkeys(task for tasks in scorer.tasks.values() for task in tasks))


def predictor(scorer: Scorer, exposures: Exposures, scenes: tuple[str, ...]) -> Predict:
    """Predictions as of the end of the exposures: users come with the history before them and what they opened in them.

    Only rows in the scorer's share of the rows count, so that it learns nothing from the response model's rows. A
    task that a scene lacks is predicted 0, which moves no candidate before another.
    """
    shared = row_share(exposures) >= RESPONSE_SHARE
    history = merged_history(exposures.filter(shared))
    tasks, names = task_names(scorer), np.array(scenes)
    end = int(pc.max(exposures.rows["ts"].cast(pa.int64())).as_py()) + 1

    def predict(user: np.ndarray, item: np.ndarray, scene: np.ndarray) -> np.ndarray:
        result = np.empty((len(user), len(tasks)), np.float32)
        progress = Progress("predicting for the pools", len(user))
        for first in range(0, len(user), _ROWS):
            part = slice(first, first + _ROWS)
            rows = _queries(user[part], item[part], names[scene[part]], end)
            scores = scorer.score_exposures(dataclasses.replace(exposures, rows=rows, history=history))
            result[part] = np.nan_to_num(np.stack([scores[task] for task in tasks], 1), nan=0.0)
            progress.advance(rows.num_rows)
        progress.finish()
        return result

    return predict


def merged_history(exposures: Exposures) -> pa.Table:
    """`history` with the items opened in `rows` after it, per user; oldest first."""
    lists = exposures.history["items"].combine_chunks()
    before = np.repeat(exposures.history["user_id"].to_numpy(),
                       pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False))
    opened = exposures.column(exposures.opened) > 0  # rows are sorted by time
    user = np.concatenate([before, exposures.column("user_id")[opened]])
    item = np.concatenate([lists.flatten().to_numpy(zero_copy_only=False), exposures.column("item_id")[opened]])
    order = np.argsort(user, kind="stable")
    users, counts = np.unique(user, return_counts=True)
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.table({"user_id": users.astype(np.int64),
                     "items": pa.ListArray.from_arrays(pa.array(offsets), pa.array(item[order].astype(np.int64)))})


def _queries(user: np.ndarray, item: np.ndarray, scene: np.ndarray, ts: int) -> pa.Table:
    """Rows that ask for a prediction: nothing is known of the answer, the hour is an evening's."""
    count = len(user)
    columns = {
        "user_id": user, "item_id": item, "scene": scene,
        "ts": pa.array(np.full(count, ts)).cast(pa.timestamp("us", "UTC")), "day": np.zeros(count, np.int32),
        "hour": np.full(count, 20, np.int8), "watch_time": np.zeros(count, np.float32),
        **{name: np.zeros(count, np.int8) for name in LABELS}}
    return pa.Table.from_pydict(columns, schema=ROWS_SCHEMA)
