"""From the pieces of a log to sample files, or to sums per user, on Ray Data: keyed exchanges, no global sort.

The first exchange brings the rows of a request together, for duplicates; the second those of a user, for sessions.
Every task's result is named by its input (piece or hash partition), so a task that Ray runs twice writes the same file
twice and nothing is counted twice.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import ray
import ray.data

from recfuse.logs.candidates import without_item_ids
from recfuse.logs.files import DirectoryWriter
from recfuse.logs.reading import ReadingConfig, read_checked, read_sample_piece, sample_pieces
from recfuse.logs.sessions import keep_first, to_samples
from recfuse.logs.source import LogSource, Piece
from recfuse.logs.validation import DUPLICATE, quarantine_rows
from recfuse.runtime import ray_compat
from recfuse.runtime.console import Progress

QUARANTINE, PART = "quarantine", "part-"
# Beside them, what tasks noted and counted, until the account is closed.
NOTES = "_notes"
_PARTITION = "_partition"
_MOST_BLOCKS = 1000


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The steps between the files of a log and those of its samples.

    Attributes:
        source: the log.
        writer: of the output directory, beneath which `quarantine` exists.
        config: how rows are understood.
        log_end: time of the last request, in microseconds since 1970, where it is known.
        partitions: of either exchange; as many sample files at most.
    """

    source: LogSource
    writer: DirectoryWriter
    config: ReadingConfig
    log_end: int | None
    partitions: int

    def read(self, piece: Piece) -> pa.Table:
        """The good rows of a piece, by partition of their requests; the others are written to the quarantine."""
        checked = read_checked(self.source, piece, self.config, self.source.vocabulary)
        self._quarantine(f"piece-{piece.number:06d}", checked.quarantine)
        if checked.notes:
            self.writer.write_text(f"{NOTES}/piece-{piece.number:06d}.json", json.dumps(checked.notes))
        return self._partitioned(without_item_ids(checked.rows), "request_id")

    def deduplicate(self, group: pa.Table) -> pa.Table:
        """The first row of every request of a partition, by partition of their users."""
        first, others = keep_first(group.drop_columns(_PARTITION))
        self._quarantine(f"duplicates-{_number_of(group):05d}",
                         quarantine_rows(others, "after reading", *DUPLICATE))
        return self._partitioned(first, "user_id")

    def cut(self, group: pa.Table) -> int:
        """Writes the samples of a partition of users; returns how many."""
        number = _number_of(group)
        samples = to_samples(group.drop_columns(_PARTITION), self.source.vocabulary, self.config.rule(self.log_end))
        counts = {"left_out": samples.left_out, "truncated": samples.truncated, "ties": samples.ties}
        self.writer.write_text(f"{NOTES}/part-{number:05d}.json", json.dumps(counts))
        self.writer.write(f"{PART}{number:05d}.parquet", samples.table)
        return int(samples.table.num_rows)

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
        counter.add.remote("read", piece.kept)
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
    try:
        with _Watch(counter, sum(piece.kept for piece in pieces)):
            for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
                pass
    finally:
        ray.kill(counter)  # The tasks' closures keep it alive beyond this function.


def map_samples(source: LogSource, function: Callable[[Piece, pa.Table], pa.Table], name: str) -> Iterator[pa.Table]:
    """What the function makes of every row group of samples and its rows, computed on the initialised Ray, in no order.

    Args:
        name: the config field that holds the samples' path, for errors.
    """
    listing = sample_pieces(source, name)

    def apply(batch: pa.Table) -> pa.Table:
        [piece] = [Piece(**row) for row in batch.to_pylist()]
        return function(piece, read_sample_piece(source, piece, name))

    ray_compat.no_progress_bars()
    dataset = ray.data.from_items([asdict(piece) for piece in listing],
                                  override_num_blocks=min(len(listing), _MOST_BLOCKS))
    yield from dataset.map_batches(apply, batch_size=1, batch_format="pyarrow").iter_batches(
        batch_size=None, batch_format="pyarrow")


def fold_pieces(pieces: list[Piece], read: Callable[[Piece], pa.Table], merge: Callable[[pa.Table], pa.Table],
                partition: str, partitions: int) -> Iterator[pa.Table]:
    """What `merge` makes of all rows of a hash partition, computed on the initialised Ray, in no order.

    Args:
        read: the rows of a piece, of one schema for all pieces.
        partition: the column with a row's partition, an integer in [0, partitions).
    """
    def apply(batch: pa.Table) -> pa.Table:
        [piece] = [Piece(**row) for row in batch.to_pylist()]
        return read(piece)

    ray_compat.no_progress_bars()
    dataset = ray.data.from_items([asdict(piece) for piece in pieces],
                                  override_num_blocks=min(len(pieces), _MOST_BLOCKS))
    yield from (dataset.map_batches(apply, batch_size=1, batch_format="pyarrow")
                .groupby(partition, num_partitions=partitions).map_groups(merge, batch_format="pyarrow")
                .iter_batches(batch_size=None, batch_format="pyarrow"))


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
