"""From the pieces of a log to sample files on Ray Data: two keyed exchanges, no global sort.

The first exchange brings the rows of a request together, for duplicates; the second those of a user, for sessions.
Every task's result is named by its input (piece or hash partition), so a task that Ray runs twice writes the same file
twice and nothing is counted twice.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.fs as pafs
import ray
import ray.data

from recfuse.behaviours import Vocabulary
from recfuse.logs.files import DirectoryWriter
from recfuse.logs.pieces import Piece, read_piece
from recfuse.logs.sessions import keep_first, to_samples
from recfuse.logs.validation import DUPLICATE, quarantine_rows
from recfuse.runtime import ray_compat
from recfuse.runtime.console import Progress

QUARANTINE, PART = "quarantine", "part-"
_PARTITION = "_partition"
_MOST_BLOCKS = 1000


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The steps between the files of a log and those of its samples.

    Attributes:
        logs: filesystem of the log.
        writer: of the output directory, beneath which `quarantine` exists.
        vocabulary: of the log.
        gap_seconds: without `session_id`, a longer pause ends a session.
        need_density: quarantines rows whose action's density is unknown.
        partitions: of either exchange; as many sample files at most.
    """

    logs: pafs.FileSystem
    writer: DirectoryWriter
    vocabulary: Vocabulary
    gap_seconds: float
    need_density: bool
    partitions: int

    def read(self, piece: Piece) -> pa.Table:
        """The good rows of a piece, by partition of their requests; the others are written to the quarantine."""
        checked = read_piece(piece, self.logs, self.vocabulary, self.need_density)
        self._quarantine(f"piece-{piece.number:06d}", checked.quarantine)
        return self._partitioned(checked.rows, "request_id")

    def deduplicate(self, group: pa.Table) -> pa.Table:
        """The first row of every request of a partition, by partition of their users."""
        first, others = keep_first(group.drop_columns(_PARTITION))
        self._quarantine(f"duplicates-{_number_of(group):05d}",
                         quarantine_rows(others, "after reading", *DUPLICATE))
        return self._partitioned(first, "user_id")

    def cut(self, group: pa.Table) -> int:
        """Writes the samples of a partition of users; returns how many."""
        samples = to_samples(group.drop_columns(_PARTITION), self.vocabulary, self.gap_seconds)
        self.writer.write(f"{PART}{_number_of(group):05d}.parquet", samples)
        return int(samples.num_rows)

    def _quarantine(self, name: str, rows: pa.Table) -> None:
        if rows.num_rows:
            self.writer.write(f"{QUARANTINE}/{name}.parquet", rows)

    def _partitioned(self, rows: pa.Table, key: str) -> pa.Table:
        # pandas' string hash has a fixed key: the same on every worker and in every run.
        hashed = pd.util.hash_array(rows[key].to_numpy(zero_copy_only=False).astype(object), categorize=False)
        return rows.append_column(_PARTITION, pa.array((hashed % np.uint64(self.partitions)).astype(np.int32)))


def run(exchange: Exchange, pieces: list[Piece]) -> None:
    """The pipeline on the initialised Ray; its results are files."""
    counter = _Counter.options(max_restarts=-1).remote()  # type: ignore[attr-defined]

    def read(batch: pa.Table) -> pa.Table:
        [piece] = [Piece(**row) for row in batch.to_pylist()]
        rows = exchange.read(piece)
        counter.add.remote("read", piece.rows)
        return rows

    def deduplicate(group: pa.Table) -> pa.Table:
        return exchange.deduplicate(group)

    def cut(group: pa.Table) -> pa.Table:
        rows = exchange.cut(group)
        counter.add.remote("written", rows)
        return pa.table({"rows": [rows]})

    ray_compat.no_progress_bars()
    partitions = exchange.partitions
    dataset = (
        ray.data.from_items([asdict(piece) for piece in pieces], override_num_blocks=min(len(pieces), _MOST_BLOCKS))
        .map_batches(read, batch_size=1, batch_format="pyarrow")
        .groupby(_PARTITION, num_partitions=partitions).map_groups(deduplicate, batch_format="pyarrow")
        .groupby(_PARTITION, num_partitions=partitions).map_groups(cut, batch_format="pyarrow")
    )
    with _Watch(counter, sum(piece.rows for piece in pieces)):
        for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            pass


def _number_of(group: pa.Table) -> int:
    return int(group[_PARTITION][0].as_py())


@ray.remote(num_cpus=0)
class _Counter:
    """Rows that the tasks have handled so far, for the progress line alone: it forgets them where its process dies."""

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter()

    def add(self, what: str, rows: int) -> None:
        self._rows[what] += rows

    def rows(self) -> dict[str, int]:
        return dict(self._rows)


class _Watch:
    """Shows the progress while the pipeline runs."""

    def __init__(self, counter: Any, total: int) -> None:
        self._counter, self._progress, self._seen = counter, Progress("ingest", total), 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self._progress.finish()

    def _loop(self) -> None:
        while not self._stop.wait(1.0):
            self._look()

    def _look(self) -> None:
        try:
            rows = ray.get(self._counter.rows.remote())
        except ray.exceptions.RayActorError:  # its process or node has died; the rows themselves are safe
            return
        read = max(rows.get("read", 0), self._seen)
        self._progress.advance(read - self._seen, note=f"{rows.get('written', 0):,} samples written")
        self._seen = read
