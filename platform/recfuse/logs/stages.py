"""Samples of one stage: its requests alone, each followed by the next request of the same stage in its session.

To a stage the others are part of what happens between two of its own requests, as the user is. Its sessions end where
the log's sessions end.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recfuse.logs.files import parquet_options
from recfuse.logs.reading import sample_pieces, session_ends
from recfuse.logs.schema import VOCABULARY_FILE, complete, sample_schema
from recfuse.logs.source import LogSource, read_piece

_WHOLE = "stage.json"  # lies beside the directory, is written last, and says of which samples they are


def samples_of_stage(tables: Iterable[pa.Table], stage: str) -> Iterator[pa.Table]:
    """The samples of a stage, with the columns of the tables.

    A request that another one of its stage follows has that one's state as `next_state`. The last of its session is
    done or truncated as the session is; where it is truncated, it keeps its `next_state`, of whichever stage that is.

    Args:
        tables: of all samples, in their order; a session may go on from one table to the next.
    """
    waiting: pa.Table | None = None  # the last request so far of a session that goes on
    for table in tables:
        if not table.num_rows:
            continue
        rows = table if waiting is None else pa.concat_tables([waiting, table])
        linked, open_ = _linked(rows.combine_chunks(), stage)
        waiting = linked.slice(linked.num_rows - 1) if open_ else None
        yield linked.slice(0, linked.num_rows - open_)
    if waiting is not None:
        yield waiting


def _linked(rows: pa.Table, stage: str) -> tuple[pa.Table, bool]:
    """The rows of a stage, and whether the last of them waits for the rest of its session."""
    ends = session_ends(rows)
    chosen = np.flatnonzero(pc.fill_null(pc.equal(rows["stage"], stage), False).to_numpy(zero_copy_only=False))
    own = rows.take(pa.array(chosen)).combine_chunks()
    if not len(chosen):
        return own, False
    number = np.concatenate([[0], np.cumsum(ends)[:-1]])
    # Of each session the row that ends it, or n where it goes on.
    closing = np.append(np.flatnonzero(ends), len(ends))[number[chosen]]
    following = np.append(number[chosen][1:] == number[chosen][:-1], False)
    is_done = np.append(rows["done"].to_numpy() > .5, False)[closing] & ~following
    truncated = np.append(ends, False)[closing] & ~is_done & ~following
    states, nexts = _matrix(own["state"]), _matrix(own["next_state"]).copy()
    nexts[:-1][following[:-1]] = states[1:][following[:-1]]
    nexts[is_done] = 0
    changed = {"next_state": pa.FixedSizeListArray.from_arrays(pa.array(nexts.ravel()), nexts.shape[1]),
               "done": pa.array(is_done.astype(np.float32)), "truncated": pa.array(truncated)}
    for name, values in changed.items():
        own = own.set_column(own.schema.get_field_index(name), name, values.cast(own.schema.field(name).type))
    return own, bool(closing[-1] == len(ends))


def _matrix(column: pa.ChunkedArray) -> np.ndarray:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    matrix: np.ndarray = flat.reshape(len(column), column.type.list_size)
    return matrix


def count_stages(source: LogSource) -> dict[str, int]:
    """Stage → samples, of those that have some."""
    counts: Counter[str] = Counter()
    others = {*sample_schema(source.vocabulary).names} - {"stage"}
    for piece in sample_pieces(source):
        table = read_piece(source, piece, others)
        if "stage" in table.column_names:
            counts.update({each["values"]: each["counts"] for each in pc.value_counts(table["stage"]).to_pylist()})
    return {stage: counts[stage] for stage in source.vocabulary.stages if counts[stage]}


def write_stage(source: LogSource, fingerprint: str, stage: str, directory: Path) -> int:
    """Writes the samples of a stage, a file for each file of the source that has some, and returns how many there are.
    What an earlier call wrote of the same samples stays.

    Args:
        fingerprint: of the source.
    """
    note = {"samples": fingerprint, "stage": stage}
    known = _read_note(directory)
    if known is not None and known.get("of") == note:
        return int(known["rows"])
    directory.mkdir(parents=True, exist_ok=True)
    for earlier in (directory.parent / _WHOLE, *directory.glob("part-*.parquet")):
        earlier.unlink(missing_ok=True)
    source.vocabulary.save(directory / VOCABULARY_FILE)
    rows, pieces = 0, _Pieces(source)
    writer: pq.ParquetWriter | None = None
    place = -1
    try:
        for table in samples_of_stage(pieces, stage):
            if not table.num_rows:
                continue
            if writer is None or place != pieces.file:
                if writer is not None:
                    writer.close()
                place = pieces.file
                writer = pq.ParquetWriter(directory / f"part-{place:05d}.parquet", table.schema,
                                          **parquet_options(table.schema))
            writer.write_table(table)
            rows += table.num_rows
    finally:
        if writer is not None:
            writer.close()
    (directory.parent / _WHOLE).write_text(json.dumps({"of": note, "rows": rows}))
    return rows


class _Pieces:
    """The row groups of samples, `sample_schema`, one after the other; columns that a file lacks are null.

    Attributes:
        file: place of the file that is read.
    """

    def __init__(self, source: LogSource) -> None:
        self._source, self.file = source, 0

    def __iter__(self) -> Iterator[pa.Table]:
        schema = sample_schema(self._source.vocabulary)
        for piece in sample_pieces(self._source):
            self.file = piece.file
            table = read_piece(self._source, piece)
            yield complete({name: table[name].cast(schema.field(name).type) for name in schema.names
                            if name in table.column_names}, schema)


def _read_note(directory: Path) -> dict[str, Any] | None:
    try:
        note = json.loads((directory.parent / _WHOLE).read_text())
    except (OSError, ValueError):
        return None
    return note if isinstance(note, dict) else None
