"""Exposures as the model's inputs: small encoded tables of users and items, and rows that point into them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recfuse.config import require
from recfuse.logs.exposures import SCORER_SHARE, Exposures, row_share
from recfuse.scenes.columns import align
from recfuse.scenes.depth import DEPTH, with_depth
from recfuse.scenes.encoder import Encoded, FeatureEncoder
from recfuse.scenes.histories import row_histories
from recfuse.scenes.registry import Pair, Registry


@dataclass(frozen=True)
class EncodedRows:
    """Rows of registered scenes, encoded.

    Attributes:
        users, items: encoded once each, int32[U, F_u] and so on.
        user, item: int32[N], positions in them.
        context: of the rows themselves.
        history: int32[N, L], ids into the embedding table, 0 pads.
        scene: int64[N], scene index.
        labels: float32[N, tasks], in the order of `Registry.task_names`; a number's share of its cut.
    """

    users: Encoded
    items: Encoded
    user: NDArray[np.int32]
    item: NDArray[np.int32]
    context: Encoded
    history: NDArray[np.int32]
    scene: NDArray[np.int64]
    labels: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.scene)

    def take(self, index: NDArray[np.int64]) -> EncodedRows:
        """The rows at the positions; users and items are shared."""
        context = Encoded(self.context.ids[index], self.context.numbers[index])
        return EncodedRows(self.users, self.items, self.user[index], self.item[index], context, self.history[index],
                           self.scene[index], self.labels[index])

    def ids(self) -> NDArray[np.int32]:
        """int32[N, fields]."""
        return np.concatenate([self.users.ids[self.user], self.items.ids[self.item], self.context.ids], axis=1)

    def numbers(self) -> NDArray[np.float32]:
        """float32[N, numeric]."""
        parts = [self.users.numbers[self.user], self.items.numbers[self.item], self.context.numbers]
        return np.concatenate(parts, axis=1)


def scene_rows(exposures: Exposures, registry: Registry) -> Exposures:
    """The rows of registered scenes; each task's labels must be there and be 0 or 1.

    The label `depth` is counted where the exposures have none (recfuse.scenes.depth).
    """
    if DEPTH in registry.task_names:
        exposures = with_depth(exposures)
    kept = exposures.filter(in_registry(exposures, registry))
    require(kept.rows.num_rows > 0, "scenes", registry.scene_names, "scenes that the rows hold")
    label_matrix(kept.rows, registry)
    return kept


def label_matrix(rows: pa.Table, registry: Registry) -> NDArray[np.float32]:
    """float32[N, tasks]: labels 0/1, and of numbers min(y, cut) / cut; 0 where the row's scene lacks the task.

    Raises:
        InvalidFieldError: a label column is missing, a label is not 0 or 1, or a number not ≥ 0 (names the pair).
    """
    columns = []
    scenes = registry.scene_index(rows["scene"].to_numpy(zero_copy_only=False))
    for task in registry.task_names:
        require(task in rows.column_names, f"rows.{task}", rows.column_names, f"a label column {task}")
        values = rows[task].to_numpy(zero_copy_only=False).astype(np.float64)
        cut = registry.numbers.get(task)
        having = np.isin(scenes, [index for index, scene in enumerate(registry.scene_names)
                                  if task in registry.tasks_of(scene)])
        values = np.where(having, values, 0.0)
        bad = (values != 0) & (values != 1) if cut is None else ~(values >= 0)
        for index in np.flatnonzero(bad)[:1]:
            require(False, f"label of {Pair(registry.scene_names[scenes[index]], task)}, row {index}",
                    values[index].item(), "0 or 1" if cut is None else "a number ≥ 0")
        columns.append((values if cut is None else np.minimum(values, cut) / cut).astype(np.float32))
    return np.stack(columns, axis=1)


def count_pairs(rows: pa.Table, registry: Registry) -> tuple[dict[Pair, float], dict[Pair, float]]:
    """Positives and negatives of every pair; of numbers the sums of their shares of the cut and of the rest."""
    labels = label_matrix(rows, registry)
    scenes = registry.scene_index(rows["scene"].to_numpy(zero_copy_only=False))
    positives, negatives = {}, {}
    for pair, scene, task in zip(registry.pairs, registry.pair_scene, registry.pair_task, strict=True):
        values = labels[scenes == scene, task]
        positives[pair] = float(values.sum(dtype=np.float64))
        negatives[pair] = len(values) - positives[pair]
    return positives, negatives


def encode_exposures(exposures: Exposures, registry: Registry, encoder: FeatureEncoder) -> EncodedRows:
    """The rows of registered scenes; histories are looked up in all rows."""
    inside = in_registry(exposures, registry)
    histories = row_histories(exposures, encoder.history_length)[inside]
    rows = exposures.rows.filter(pa.array(inside))
    return encode_rows(rows, exposures.users, exposures.items, histories, registry, encoder,
                       label_matrix(rows, registry))


def in_registry(exposures: Exposures, registry: Registry) -> NDArray[np.bool_]:
    """bool[N]: the rows of registered scenes."""
    inside: NDArray[np.bool_] = registry.scene_index(exposures.rows["scene"].to_numpy(zero_copy_only=False)) >= 0
    return inside


def encode_rows(rows: pa.Table, users: pa.Table, items: pa.Table, histories: NDArray[np.int64], registry: Registry,
                encoder: FeatureEncoder, labels: NDArray[np.float32] | None = None) -> EncodedRows:
    """Rows with their users and items; `labels` may be absent where they are only scored."""
    scene = registry.scene_index(rows["scene"].to_numpy(zero_copy_only=False))
    for index in np.flatnonzero(scene < 0)[:1]:
        require(False, "scene", rows["scene"][int(index)].as_py(), ", ".join(registry.scene_names))
    user_keys, user = np.unique(rows["user_id"].to_numpy(), return_inverse=True)
    item_keys, item = np.unique(rows["item_id"].to_numpy(), return_inverse=True)
    if labels is None:
        labels = np.zeros((rows.num_rows, len(registry.task_names)), np.float32)
    return EncodedRows(
        users=encoder.encode("user", table_columns(align(users, "user_id", user_keys)), len(user_keys)),
        items=encoder.encode("item", table_columns(align(items, "item_id", item_keys)), len(item_keys)),
        user=user.reshape(-1).astype(np.int32), item=item.reshape(-1).astype(np.int32),
        context=encoder.encode("context", table_columns(rows), rows.num_rows),
        history=encoder.encode_history(histories), scene=scene, labels=labels)


def table_columns(table: pa.Table) -> Mapping[str, pa.ChunkedArray]:
    """Name → column."""
    return dict(zip(table.column_names, table.columns, strict=True))


@dataclass(frozen=True)
class TimeSplit:
    """Rows to train on and rows to test on.

    Attributes:
        training: bool[N], rows before the test day, of the scorer's share (the others are the response model's).
        test: bool[N], rows of the test day.
        unseen: bool[N], rows up to the end of the test day that no scorer saw: those of the test day, and those of the
            response model's share before it.
        test_day: yyyymmdd.
    """

    training: NDArray[np.bool_]
    test: NDArray[np.bool_]
    unseen: NDArray[np.bool_]
    test_day: int


def split_by_time(exposures: Exposures, share: float = SCORER_SHARE, test_day: int | None = None) -> TimeSplit:
    """Tests on one day, trains on the days before it.

    Args:
        share: of the rows before the test day that train; those of the smallest `row_share` do not.
        test_day: yyyymmdd; absent, the last day. A day before the last is for choosing hyper-parameters: what comes
            after it is in neither part.

    Raises:
        InvalidFieldError: there is no such day, or no row of the scorer's share before it.
    """
    days = exposures.column("day")
    known = np.unique(days).tolist()
    require(len(known) >= 2, "day", known, "at least two days")
    test_day = known[-1] if test_day is None else test_day
    require(test_day in known[1:], "test_day", test_day, f"a day of the rows with a day before it: {known[1:]}")
    training = (days < test_day) & (row_share(exposures) >= 1 - share)
    require(bool(training.any()), "day", int(training.sum()), f"training rows before {test_day}")
    return TimeSplit(training, days == test_day, ~training & (days <= test_day), test_day)


def fingerprint(exposures: Exposures) -> str:
    """SHA-256 of the rows, users, items and histories: which data a bundle was trained on."""
    digest = hashlib.sha256()
    for table in (exposures.rows, exposures.users, exposures.items, exposures.history):
        sink = pa.BufferOutputStream()
        whole = table.combine_chunks()
        with pa.ipc.new_stream(sink, whole.schema) as writer:
            writer.write_table(whole)
        digest.update(sink.getvalue())
    return digest.hexdigest()
