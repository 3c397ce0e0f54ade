"""Files of exposures on any filesystem: CSV, also compressed, and Parquet; and which of a directory's files they are.

A row with another number of columns than the header (a file that was cut off ends with one) is kept apart as text.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.fs as pafs
import pyarrow.parquet

from recfuse.config import InvalidFieldError, require
from recfuse.logs.files import visible_files
from recfuse.runtime.locations import Location

# Ending of a file → codec of pyarrow.
_CODECS = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".lz4": "lz4"}
_PARQUET = (".parquet", ".pq")
WRONG_COLUMNS = "another number of columns than the header"


@dataclass(frozen=True)
class Rows:
    """A file's rows, and those that are none.

    Attributes:
        table: the rows with the header's columns.
        broken: rows with another number of columns, as text.
    """

    table: pa.Table
    broken: tuple[str, ...] = ()


def is_table(name: str) -> bool:
    """Whether a file of this name is Parquet or CSV, by its ending."""
    return name.lower().endswith(_PARQUET) or _plain_name(name).endswith(".csv")


def files_beneath(location: Location) -> list[pafs.FileInfo]:
    """The files right beneath a directory, sorted; names that begin with `_` or `.` are left out."""
    return [info for info in visible_files(location) if "/" not in location.relative(info.path)]


def find(location: Location, name: str) -> pafs.FileInfo:
    """The CSV file of this name beneath a directory, plain or compressed.

    Raises:
        InvalidFieldError: there is none.
    """
    for info in files_beneath(location):
        if _plain_name(info.base_name) == name.lower():
            return info
    raise InvalidFieldError("exposures", f"{location.uri}/{name}", f"a CSV file, plain or as {', '.join(_CODECS)}")


def read_rows(location: Location, info: pafs.FileInfo, names: Sequence[str] = (),
              types: Mapping[str, pa.DataType] | None = None) -> Rows:
    """Reads a file.

    Args:
        location: names the filesystem.
        names: columns of a CSV file that has no header.
        types: of CSV columns, where they are not to be guessed.

    Raises:
        InvalidFieldError: it cannot be read, or its columns are not separated by commas.
    """
    try:
        if info.base_name.lower().endswith(_PARQUET):
            return Rows(pyarrow.parquet.read_table(info.path, filesystem=location.filesystem))
        rows = _read_csv(location, info, names, types or {})
    except (pa.ArrowException, OSError, ValueError) as error:
        if isinstance(error, InvalidFieldError):
            raise
        raise InvalidFieldError(info.base_name, str(error), "a file that is readable Parquet or CSV") from None
    header = rows.table.column_names
    separator = next((mark for mark in (";", "\t", "|") if len(header) == 1 and mark in header[0]), "")
    require(not separator, info.base_name, f"columns separated by {separator!r}", "columns separated by commas")
    unnamed = [name for name in header if not name]  # an index that was written along
    return Rows(rows.table.drop_columns(unnamed) if unnamed else rows.table, rows.broken)


def together(tables: Sequence[pa.Table]) -> pa.Table:
    """Rows of several files; a column whose types do not go together becomes text."""
    try:
        return pa.concat_tables(tables, promote_options="permissive").combine_chunks()
    except pa.ArrowException:
        return pa.concat_tables(_alike(tables), promote_options="permissive").combine_chunks()


def _alike(tables: Sequence[pa.Table]) -> list[pa.Table]:
    kinds: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for field in table.schema:
            if not pa.types.is_null(field.type):
                kinds.setdefault(field.name, set()).add(field.type)
    mixed = {name for name, types in kinds.items() if len(types) > 1}
    return [pa.table({field.name: pc.cast(table[field.name], pa.string()) if field.name in mixed
                      and not pa.types.is_nested(field.type) else table[field.name] for field in table.schema})
            for table in tables]


def _read_csv(location: Location, info: pafs.FileInfo, names: Sequence[str],
              types: Mapping[str, pa.DataType]) -> Rows:
    codec = next((codec for ending, codec in _CODECS.items() if info.base_name.lower().endswith(ending)), None)
    broken: list[str] = []
    lock = threading.Lock()

    def keep(row: pyarrow.csv.InvalidRow) -> str:
        with lock:  # blocks are parsed side by side
            broken.append(row.text)
        return "skip"

    with location.filesystem.open_input_stream(info.path, compression=codec) as stream:
        table = pyarrow.csv.read_csv(
            stream, read_options=pyarrow.csv.ReadOptions(column_names=list(names) or None),
            parse_options=pyarrow.csv.ParseOptions(invalid_row_handler=keep),
            convert_options=pyarrow.csv.ConvertOptions(column_types=dict(types)))
    return Rows(table, tuple(sorted(broken)))


def _plain_name(name: str) -> str:
    lowered = name.lower()
    return next((lowered.removesuffix(ending) for ending in _CODECS if lowered.endswith(ending)), lowered)
