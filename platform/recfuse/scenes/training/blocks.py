"""Rows dealt to workers, as Arrow tables that Ray Data carries, and the batches that they give back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from recfuse.scenes.dataset import EncodedRows
from recfuse.scenes.encoder import Encoded
from recfuse.scenes.training.problem import Problem

_WINDOW_ROWS = 16_384


def deal(order: np.ndarray, batch_size: int, workers: int) -> list[np.ndarray]:
    """Each worker's rows, in its order: of every batch an equal part.

    So the workers' batches side by side are the batches of one process, and the averaged gradients are its own. Of a
    last batch that the workers cannot share equally, the rest (fewer rows than workers) is left out.
    """
    size = max(1, batch_size // workers) * workers
    whole = order[: len(order) // workers * workers]
    parts = [whole[start:start + size].reshape(workers, -1) for start in range(0, len(whole), size)]
    return list(np.concatenate(parts, axis=1)) if parts else [whole] * workers


def rows_per_worker(problem: Problem) -> int:
    """Of a batch."""
    return max(1, problem.training.batch_size // max(problem.training.workers, 1))


def windows(rows: EncodedRows, size: int) -> list[pa.Table]:
    """The rows as tables of some thousand, each a multiple of the batch of `size` rows."""
    table, step = to_table(rows), _rows_per_window(size)
    return [table.slice(start, step) for start in range(0, table.num_rows, step)]


def batches(shard: Any, problem: Problem, epoch: int) -> Iterator[EncodedRows]:
    """Batches of one epoch; rows come shuffled, later epochs shuffle every window again.

    Ray Data hands over windows, in which batches are taken from memory: its cost a call is that of dozens of rows.
    """
    size, rng = rows_per_worker(problem), np.random.default_rng([problem.training.seed, epoch])
    for table in shard.iter_batches(batch_size=_rows_per_window(size), batch_format="pyarrow", prefetch_batches=1):
        rows = from_table(table, problem.rows.users, problem.rows.items)
        order = rng.permutation(len(rows)) if epoch else np.arange(len(rows))
        for start in range(0, len(order), size):
            yield rows.take(order[start:start + size])


def _rows_per_window(size: int) -> int:
    return max(1, _WINDOW_ROWS // size) * size


def to_table(rows: EncodedRows) -> pa.Table:
    """The rows as Arrow columns; matrices are fixed-size lists, so that a batch is viewed without a copy."""
    matrices: dict[str, np.ndarray] = {
        "context_ids": rows.context.ids, "context_numbers": rows.context.numbers, "history": rows.history,
        "labels": rows.labels}
    # Arrow has no fixed-size lists of no elements; `from_table` takes an absent column for an empty one.
    lists = {name: pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
             for name, matrix in matrices.items() if matrix.shape[1]}
    return pa.table({"user": rows.user, "item": rows.item, "scene": rows.scene, **lists})


def from_table(table: pa.Table, users: Encoded, items: Encoded) -> EncodedRows:
    """The inverse of `to_table`, a view of its memory, which may be read-only: torch wants a copy (`take`)."""
    def matrix(name: str, dtype: type) -> np.ndarray:
        if name not in table.column_names:
            return np.zeros((table.num_rows, 0), dtype)
        column = table[name].combine_chunks()
        return column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    context = Encoded(matrix("context_ids", np.int32), matrix("context_numbers", np.float32))
    return EncodedRows(users, items, table["user"].to_numpy(), table["item"].to_numpy(), context,
                       matrix("history", np.int32), table["scene"].to_numpy(), matrix("labels", np.float32))
