"""From the pieces of a log to sample files, or to sums per user, on Ray: one exchange of rows, no global sort.

Rows are exchanged once, by their users. Beside them go the hashes of requests and users alone, which tell the requests
that several users have; all other duplicates lie in the partition of their user. Every task's result is a file named by
its input, so a task that Ray runs twice writes the same file twice and nothing is counted twice.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import ray
from numpy.typing import NDArray

from recfuse.logs.candidates import without_item_ids
from recfuse.logs.files import DirectoryWriter
from recfuse.logs.reading import ReadingConfig, read_checked, read_sample_piece, reasons, sample_pieces
from recfuse.logs.schema import sample_schema
from recfuse.logs.sessions import (
    SESSION_KEYS,
    Order,
    first_of_repeated,
    order_sessions,
    repeated,
    transitions,
    what_stays,
)
from recfuse.logs.slices import Partition, write_slices
from recfuse.logs.source import LogSource, Piece
from recfuse.logs.validation import DUPLICATE, quarantine_rows
from recfuse.runtime import ray_compat
from recfuse.runtime.console import Progress

QUARANTINE, PART = "quarantine", "part-"
# Beside them, what tasks counted, and what they exchanged, until the account is closed.
NOTES, EXCHANGED = "_notes", "_exchange"
ROWS, KEYS, SHARED, OTHERS = "rows-", "keys-", "shared-", "others-"
_MOST_BLOCKS = 1000
# Of a partition in memory; what is larger is cut from the filesystem, a row group at a time.
BUDGET = 256 << 20
# So many samples are a row group, whatever the budget.
ROW_GROUP = 1 << 17
# So many rows, of whole pieces, one task reads.
_TASK_ROWS = 1 << 17
# One task compares the keys of so many partitions of rows.
_KEYS_PER_ROW = 8
_REPEATED_AT_ONCE = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Exchange:
    """The steps between the files of a log and those of its samples.

    Attributes:
        source: the log.
        filesystem, root: of the output directory, beneath which `quarantine` and `_exchange` exist.
        config: how rows are understood.
        log_end: time of the last request, in microseconds since 1970, where it is known.
        partitions: of the users; as many sample files at most.
        budget: bytes of a partition that a task holds in memory.
        row_group: samples.
    """

    source: LogSource
    filesystem: pafs.FileSystem
    root: str
    config: ReadingConfig
    log_end: int | None
    partitions: int
    budget: int = BUDGET
    row_group: int = ROW_GROUP

    @property
    def key_partitions(self) -> int:
        """Tasks that compare keys."""
        return -(-self.partitions // _KEYS_PER_ROW)

    def read(self, pieces: Sequence[Piece]) -> int:
        """Good rows are written by the partition of their users, their keys by that of their requests, and the others
        to the quarantine; returns how many rows there were."""
        tables = []
        for piece in pieces:
            checked = read_checked(self.source, piece, self.config, self.source.vocabulary)
            name = f"piece-{piece.number:06d}"
            counts = self._quarantine(name, checked.quarantine)
            if counts or checked.notes:
                self._note(name, {"quarantined": counts, "notes": checked.notes})
            tables.append(without_item_ids(checked.rows))
        rows = pa.concat_tables(tables)
        if rows.num_rows:
            self._hand_over(f"{pieces[0].number:06d}", rows)
        return sum(piece.kept for piece in pieces)

    def compare(self, number: int) -> int:
        """Writes which requests of a partition several users have, and whose comes first, by the partitions of these
        users; returns how many there are."""
        keys = Partition(self.filesystem, self._exchanged, KEYS, number, self.budget)
        if not keys.rows:
            return 0
        hashes = keys.columns(["request", "user"])
        suspects = _shared(*(hashes[name].to_numpy() for name in ("request", "user")))
        if not len(suspects):
            return 0
        there = pa.array(suspects)
        rows = pa.concat_tables([table.filter(pc.is_in(table["request"], there)) for table in keys.tables(
            ["request", "user", "request_id", "ts", "user_id"])])
        first = _first_of_shared(rows)
        if first.num_rows:
            partition = (first["user"].to_numpy() % np.uint64(self.partitions)).astype(np.int64)
            write_slices(self._writer, f"{EXCHANGED}/{SHARED}{number:05d}.arrow", first.drop_columns("user"), partition)
        return int(first.num_rows)

    def deduplicate(self, number: int) -> int:
        """Of a partition of users, the rows that are not the first of their requests are written to the quarantine, and
        named; returns how many there are."""
        rows = Partition(self.filesystem, self._exchanged, ROWS, number, self.budget)
        if not rows.rows:
            return 0
        others = np.flatnonzero(~self._first(rows, number))
        name, counts = f"duplicates-{number:05d}", Counter[str]()
        for begin in range(0, len(others), _REPEATED_AT_ONCE):
            some = rows.take(others[begin:begin + _REPEATED_AT_ONCE])
            turn = f"-{begin // _REPEATED_AT_ONCE}" if begin else ""
            counts.update(self._quarantine(name + turn, quarantine_rows(some, "after reading", *DUPLICATE)))
        if len(others):
            self._note(name, {"quarantined": counts})
            write_slices(self._writer, f"{EXCHANGED}/{OTHERS}{number:05d}.arrow", pa.table({"place": others}),
                         np.full(len(others), number))
        return len(others)

    def cut(self, number: int) -> int:
        """Writes the samples of a partition of users; returns how many rows came."""
        rows = Partition(self.filesystem, self._exchanged, ROWS, number, self.budget)
        others = Partition(self.filesystem, self._exchanged, f"{OTHERS}{number:05d}", number, self.budget)
        if rows.rows == others.rows:
            return rows.rows
        keep = np.ones(rows.rows, bool)
        if others.rows:
            keep[others.columns(["place"])["place"].to_numpy()] = False
        places = np.flatnonzero(keep)
        keys = rows.columns(SESSION_KEYS)
        order = order_sessions(keys if keep.all() else keys.take(pa.array(places)), self.config.rule(self.log_end))
        note = {"truncated": int(order.truncated.sum()), "ties": order.ties, "left_out": 0, "kept": 0, "sessions": 0,
                "not_drawn": 0}
        tables, name = self._samples(rows, places[order.places], order, note), f"{PART}{number:05d}"
        written = self._writer.write_all(f"{name}.parquet", tables, sample_schema(self.source.vocabulary))
        self._note(name, note | asdict(written))
        return rows.rows

    @property
    def _writer(self) -> DirectoryWriter:
        return DirectoryWriter(self.filesystem, self.root)

    @property
    def _exchanged(self) -> str:
        return f"{self.root}/{EXCHANGED}"

    def _note(self, name: str, content: dict[str, Any]) -> None:
        self._writer.write_text(f"{NOTES}/{name}.json", json.dumps(content))

    def _quarantine(self, name: str, rows: pa.Table) -> dict[str, int]:
        """Writes quarantined rows; reason → how many."""
        if not rows.num_rows:
            return {}
        self._writer.write(f"{QUARANTINE}/{name}.parquet", rows)
        return reasons(rows)

    def _hand_over(self, name: str, rows: pa.Table) -> None:
        user = _hashed_names(rows["user_id"])
        write_slices(self._writer, f"{EXCHANGED}/{ROWS}{name}.arrow", rows,
                     (user % np.uint64(self.partitions)).astype(np.int64))
        request = _hashed(rows["request_id"])
        keys = pa.table({"request": request, "user": user, "request_id": rows["request_id"], "ts": rows["ts"],
                         "user_id": rows["user_id"]})
        write_slices(self._writer, f"{EXCHANGED}/{KEYS}{name}.arrow", keys,
                     (request % np.uint64(self.key_partitions)).astype(np.int64))

    def _first(self, rows: Partition, number: int) -> NDArray[np.bool_]:
        """bool[n], the rows that are the first of their requests."""
        shared = Partition(self.filesystem, self._exchanged, SHARED, number, self.budget)
        keys = rows.columns(["request_id", "ts", "user_id"] if shared.rows else ["request_id"])
        keep = ~_of_later_users(keys, shared.columns(keys.column_names)) if shared.rows else np.ones(rows.rows, bool)
        again = np.flatnonzero(repeated(keys["request_id"]) & keep)
        if len(again):
            # All rows of a request are looked at together, of so many requests at a time.
            turn = _hashed(keys["request_id"].take(pa.array(again))) % np.uint64(-(-len(again) // _REPEATED_AT_ONCE))
            for each in np.unique(turn):
                places = again[turn == each]
                keep[places[~first_of_repeated(rows.take(places))]] = False
        return keep

    def _samples(self, rows: Partition, places: NDArray[np.int64], order: Order, note: dict[str, Any]
                 ) -> Iterator[pa.Table]:
        """Row groups of samples, counted in the note."""
        keep, closes = what_stays(order, self.config.cut)
        kept = np.flatnonzero(keep)
        note["left_out"] = len(keep) - len(kept)
        for begin in range(0, max(len(kept), 1), self.row_group):
            some = kept[begin:begin + self.row_group]
            span = slice(some[0], some[-1] + 1) if len(some) else slice(0, 0)
            table = transitions(rows.take(places[span.start:span.stop + 1]), self.source.vocabulary, self.config.cut,
                                order.end[span], order.truncated[span], closes[span])
            table = table if keep[span].all() else table.filter(pa.array(keep[span]))
            note["kept"] += table.num_rows
            note["sessions"] += int(pc.sum(table["done"]).as_py() or 0) + int(pc.sum(table["truncated"]).as_py() or 0)
            note["not_drawn"] += int(pc.sum(pc.invert(pc.fill_null(table["explored"], True))).as_py() or 0)
            yield table


def _hashed(texts: pa.ChunkedArray) -> NDArray[np.uint64]:
    """uint64[n]. pandas' hash of strings has a fixed key: the same on every worker and in every run."""
    objects = texts.to_numpy(zero_copy_only=False).astype(object)
    return np.asarray(pd.util.hash_array(objects, categorize=False))


def _hashed_names(texts: pa.ChunkedArray) -> NDArray[np.uint64]:
    """As `_hashed`, of texts that repeat."""
    coded = texts.combine_chunks().dictionary_encode()
    return _hashed(pa.chunked_array([coded.dictionary]))[coded.indices.to_numpy()]


def _shared(request: NDArray[np.uint64], user: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Requests that more than one user has."""
    order = np.argsort(request)
    request, user = request[order], user[order]
    return np.unique(request[1:][(request[1:] == request[:-1]) & (user[1:] != user[:-1])])


def _first_of_shared(rows: pa.Table) -> pa.Table:
    """Of requests that several users have: `user`, each of them, and `request_id`, `ts`, `user_id` of the first."""
    ordered = rows.sort_by([("request_id", "ascending"), ("ts", "ascending"), ("user_id", "ascending")])
    identity = ordered["request_id"].combine_chunks().dictionary_encode().indices.to_numpy()
    starts = np.flatnonzero(np.append(True, identity[1:] != identity[:-1])[:len(identity)])
    begin = np.repeat(starts, np.diff(np.append(starts, len(identity))))
    of_first = ordered.take(pa.array(begin))
    other = pc.not_equal(ordered["user_id"], of_first["user_id"]).to_numpy()
    several = np.bincount(identity, other)[identity] > 0
    result = of_first.select(["request_id", "ts", "user_id"]).append_column("user", ordered["user"])
    return result.filter(pa.array(several))


def _of_later_users(keys: pa.Table, shared: pa.Table) -> NDArray[np.bool_]:
    """bool[n]: the row's request was first that of another user, or of another time."""
    place = pc.index_in(keys["request_id"], shared["request_id"].combine_chunks())
    first = shared.take(place)
    same = pc.and_(pc.equal(first["ts"], keys["ts"]), pc.equal(first["user_id"], keys["user_id"]))
    return np.asarray(~pc.fill_null(same, True).to_numpy())


def run(exchange: Exchange, pieces: list[Piece]) -> None:
    """The steps on the initialised Ray, each when the one before it is done; their results are files."""
    progress = Progress("ingest", sum(piece.kept for piece in pieces))
    for rows in _each(exchange, "read", bundles(pieces)):
        progress.advance(rows, note="read")
    for _ in _each(exchange, "compare", range(exchange.key_partitions)):
        progress.advance(0, note="compared")
    for _ in _each(exchange, "deduplicate", range(exchange.partitions)):
        progress.advance(0, note="without duplicates")
    written = 0
    for rows in _each(exchange, "cut", range(exchange.partitions)):
        written += rows
        progress.advance(0, note=f"{written:,} cut into sessions")
    progress.finish()


def bundles(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Pieces that one task reads: as many as hold some 100,000 rows."""
    result: list[list[Piece]] = []
    rows = _TASK_ROWS
    for piece in pieces:
        if rows + piece.kept > _TASK_ROWS:
            result.append([])
            rows = 0
        result[-1].append(piece)
        rows += piece.kept
    return result


def _each(exchange: Exchange, step: str, inputs: Sequence[Any]) -> Iterator[int]:
    """What a step returns of each input, in the order in which its tasks end."""
    shared = ray.put(exchange)
    # Workers and nodes may die as often as they like; what a step raises itself is raised at once.
    task = _task.options(name=f"ingest({step})", max_retries=-1)
    waiting = [task.remote(shared, step, each) for each in inputs]
    try:
        while waiting:
            done, waiting = ray.wait(waiting, num_returns=1)
            yield from ray.get(done)
    finally:
        for one in waiting:  # nobody waits for them any more, and the output may soon be another job's
            ray.cancel(one)


@ray.remote(num_cpus=1)
def _task(exchange: Exchange, step: str, given: Any) -> int:
    pa.set_cpu_count(1)  # a task is a CPU's worth of work
    result: int = getattr(exchange, step)(given)
    return result


def map_samples(source: LogSource, function: Callable[[Piece, pa.Table], pa.Table], name: str) -> Iterator[pa.Table]:
    """What the function makes of every row group of samples and its rows, computed on the initialised Ray, in no order.

    Args:
        name: the config field that holds the samples' path, for errors.
    """
    listing = sample_pieces(source, name)

    def apply(batch: pa.Table) -> pa.Table:
        [piece] = [Piece(**row) for row in batch.to_pylist()]
        return function(piece, read_sample_piece(source, piece, name))

    import ray.data

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

    import ray.data

    ray_compat.no_progress_bars()
    dataset = ray.data.from_items([asdict(piece) for piece in pieces],
                                  override_num_blocks=min(len(pieces), _MOST_BLOCKS))
    yield from (dataset.map_batches(apply, batch_size=1, batch_format="pyarrow")
                .groupby(partition, num_partitions=partitions).map_groups(merge, batch_format="pyarrow")
                .iter_batches(batch_size=None, batch_format="pyarrow"))
