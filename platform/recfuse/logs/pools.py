"""Candidates of requests with their predictions, from a session log that keeps them or from a table of one's own.

A table has `request_id` and a column for every fusion parameter: numbers, one row a candidate, or lists, one row a
request. Parquet and CSV are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from numpy.typing import NDArray

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError, require
from recfuse.logs.candidates import Lists
from recfuse.logs.columns import is_number, plain_columns
from recfuse.logs.delimited import read_rows
from recfuse.logs.source import BROKEN, list_log, pieces, read_piece
from recfuse.runtime.locations import Location, locate

_REQUEST, _CANDIDATES = "request_id", "candidates"


@dataclass(frozen=True)
class Pools:
    """What R requests had to rank.

    Attributes:
        predictions: float32[R, M, N], padded with zeros.
        is_open: bool[R, N], which candidates there are and may be shown.
        left_out: requests without candidates, or with predictions that are no finite numbers.
    """

    predictions: NDArray[np.float32]
    is_open: NDArray[np.bool_]
    left_out: int


def read_pools(path: str, vocabulary: Vocabulary, requests: int, seed: int = 0, name: str = "candidates") -> Pools:
    """The candidates of so many requests, drawn at random by row groups of a log, or of all where there are fewer.

    Args:
        path: a session log or a Delta table, or a Parquet or CSV file.
        vocabulary: whose fusion parameters are wanted.
        name: the config field that holds the path, for errors.

    Raises:
        InvalidFieldError: there is nothing to read, a column is missing, or no request has candidates.
    """
    rng = np.random.default_rng(seed)
    location = locate(path, name)
    is_file = location.kind() == pafs.FileType.File
    require(is_file or location.kind() == pafs.FileType.Directory, name, path, "a file or a directory that exists")
    tables = iter([_file(location)]) if is_file else _row_groups(path, rng, name)
    pools: list[NDArray[np.float32]] = []
    flags: list[NDArray[np.bool_]] = []
    left_out = 0
    for table in tables:
        for predictions, is_open in _requests(table, vocabulary, name):
            if not is_open.any() or not np.isfinite(predictions).all():
                left_out += 1
                continue
            pools.append(predictions)
            flags.append(is_open)
        if len(pools) >= requests:
            break
    require(bool(pools), name, path, "candidates with their predictions in at least one request")
    chosen = np.sort(rng.permutation(len(pools))[:requests])
    return _padded([pools[k] for k in chosen], [flags[k] for k in chosen], left_out)


def _padded(pools: list[NDArray[np.float32]], flags: list[NDArray[np.bool_]], left_out: int) -> Pools:
    most = max(len(each) for each in flags)
    predictions = np.zeros((len(pools), len(pools[0]), most), np.float32)
    is_open = np.zeros((len(pools), most), bool)
    for row, (pool, flag) in enumerate(zip(pools, flags, strict=True)):
        predictions[row, :, :len(flag)], is_open[row, :len(flag)] = pool, flag
    return Pools(predictions, is_open, left_out)


def _file(location: Location) -> pa.Table:
    [info] = location.filesystem.get_file_info([location.root])
    return read_rows(location, info).table


def _row_groups(path: str, rng: np.random.Generator, name: str) -> Iterator[pa.Table]:
    source = list_log(path, name)
    listing, _ = pieces(source)
    for position in rng.permutation(len(listing)):
        try:
            yield read_piece(source, listing[position])
        except BROKEN as error:
            raise InvalidFieldError(name, str(error), "readable Parquet") from None


def _requests(table: pa.Table, vocabulary: Vocabulary, name: str
              ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Predictions [M, N] and open [N] of every request of a table."""
    if _CANDIDATES in table.column_names:
        return _logged(plain_columns(table, (), (_CANDIDATES,)).table[_CANDIDATES], vocabulary)
    parameters = vocabulary.fusion_parameters
    lacking = [each for each in (_REQUEST, *parameters) if each not in table.column_names]
    require(not lacking, f"{name}.{lacking[0] if lacking else ''}", "missing column",
            f"a log with {_CANDIDATES}, or columns {', '.join((_REQUEST, *parameters))}")
    kinds = [table.schema.field(each).type for each in parameters]
    if all(map(_is_list, kinds)):
        return _listed(table, parameters, name)
    for each, kind in zip(parameters, kinds, strict=True):
        require(is_number(kind), f"{name}.{each}", str(kind), "numbers, or lists of numbers in every column")
    return _rows(table, parameters)


def _logged(column: pa.ChunkedArray, vocabulary: Vocabulary) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    struct, size = column.combine_chunks(), vocabulary.action_size
    struct = struct.chunk(0) if isinstance(struct, pa.ChunkedArray) else struct
    lists, seen = (Lists.of(pc.struct_field(struct, each)) for each in ("predictions", "seen"))
    for row in range(len(struct)):
        start, length = int(lists.start[row]), int(lists.length[row])
        if length % size:
            raise InvalidFieldError("candidates.predictions", f"{length} numbers",
                                    f"{size} numbers a candidate, one for each fusion parameter")
        predictions = lists.values[start:start + length].reshape(size, -1).astype(np.float32)
        is_open = np.ones(length // size, bool)
        if not seen.missing[row] and int(seen.length[row]) == len(is_open):
            is_open = ~seen.values[int(seen.start[row]):int(seen.start[row]) + len(is_open)].astype(bool)
        yield predictions, is_open


def _listed(table: pa.Table, parameters: tuple[str, ...], name: str
            ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    for row in zip(*(table[each].to_pylist() for each in parameters), strict=True):
        counts = [len(each or ()) for each in row]
        require(len(set(counts)) == 1, f"{name}.{parameters[0]}", f"{counts} numbers of one request",
                "as many numbers of every fusion parameter")
        yield np.array([each or () for each in row], np.float32), np.ones(counts[0], bool)


def _rows(table: pa.Table, parameters: tuple[str, ...]) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    codes, _ = pd.factorize(table[_REQUEST].to_pandas())
    order = np.argsort(codes, kind="stable")
    columns = np.stack([np.asarray(table[each].to_pandas(), np.float32) for each in parameters])[:, order]
    ends = np.flatnonzero(np.diff(codes[order])) + 1
    for predictions in np.split(columns, ends, axis=1):
        yield predictions, np.ones(predictions.shape[1], bool)


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))
