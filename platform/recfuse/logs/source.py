"""Which files are a log: the one place where a directory, a Delta table or samples are opened.

A Delta table is read through its log and as of its present version, so that what it no longer has is never read. What
is left out is named, with the reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import yaml
from numpy.typing import NDArray

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError, require
from recfuse.logs.columns import without_views
from recfuse.logs.files import visible_files
from recfuse.logs.schema import ACCOUNT_FILE, VOCABULARY_FILE
from recfuse.runtime.locations import Location, locate

logger = logging.getLogger("recfuse")
Kind = Literal["session_log", "samples"]
# What a broken Parquet file raises: names in a footer may be no UTF-8, so that ValueError is among it.
BROKEN = (pa.ArrowException, OSError, ValueError)
# Of a Delta table serving writes beside its other one; the rest of its directory is no log.
SESSION_TABLE = "sessions"
_DELTA_LOG = "_delta_log"
_ENDINGS = (".parquet", ".pq")
_HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
# What readers of Delta tables must know, and this one does: rows of a deletion vector are left out, other features
# change nothing of what a row holds.
_DELTA_FEATURES = {"deletionVectors", "timestampNtz", "v2Checkpoint", "vacuumProtocolCheck", "appendOnly", "invariants",
                   "checkConstraints", "changeDataFeed", "generatedColumns", "identityColumns", "domainMetadata",
                   "rowTracking", "inCommitTimestamp", "clustering"}


@dataclass(frozen=True)
class LogFile:
    """A Parquet file of a log.

    Attributes:
        path: on the log's filesystem.
        size: in bytes.
        mtime_ns: of the last change, 0 where the filesystem does not say.
        partition: column → value that the directory's name (`scene=home`) or the table's log gives to all of its rows.
        kept: bool[n], the rows that a deletion vector leaves; None for all.
    """

    path: str
    size: int
    mtime_ns: int = 0
    partition: Mapping[str, str | None] = field(default_factory=dict)
    kept: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class LogFiles:
    """The files of a log, whatever their numbers mean; nothing but names has been read.

    Attributes:
        location: as it was named; `table` is where the rows lie, which for the directory of a served log is its Delta
            table of sessions.
        files: in the order of their paths.
        left_out: file → why it is no part of the log.
        vocabularies: that lie in it, by their paths below `location`.
    """

    location: Location
    table: Location
    files: tuple[LogFile, ...]
    left_out: Mapping[str, str]
    vocabularies: tuple[str, ...]


@dataclass(frozen=True)
class LogSource(LogFiles):
    """A log that was opened; nothing but names and footers has been read.

    Attributes:
        kind: raw session logs, or samples.
        vocabulary: that travels with it.
    """

    kind: Kind
    vocabulary: Vocabulary


@dataclass(frozen=True)
class Piece:
    """A row group of a file, the unit of reading.

    Attributes:
        number: of the piece within the log.
        file: position of the file in `LogSource.files`.
        row_group: of the file.
        first: row of the file that the group begins with; rows: how many it has; kept: how many the table still has.
    """

    number: int
    file: int
    row_group: int
    first: int
    rows: int
    kept: int


def open_log(path: str, vocabulary: str = "", name: str = "logs") -> LogSource:
    """Opens session logs (a directory of Parquet, or a Delta table) or samples, on any filesystem.

    Args:
        path: directory or URI.
        vocabulary: YAML file; absent, the one that lies in the log.
        name: the config field that holds the path, for errors.

    Raises:
        InvalidFieldError: no such directory, no Parquet in it, a Delta table that this version cannot read, no
            vocabulary, or parts with vocabularies that contradict each other.
    """
    found = _listed(path, name)
    words = _vocabulary(found.location, list(found.vocabularies), vocabulary)
    _require_files(found, name, path)
    kind: Kind = "samples" if _are_samples(found.table, found.files) else "session_log"
    return LogSource(**vars(found), kind=kind, vocabulary=words)


def list_log(path: str, name: str = "logs") -> LogFiles:
    """The files of a log, which needs no vocabulary yet.

    Raises:
        InvalidFieldError: no such directory, no Parquet in it, or a Delta table that this version cannot read.
    """
    found = _listed(path, name)
    _require_files(found, name, path)
    return found


def _require_files(found: LogFiles, name: str, path: str) -> None:
    require(bool(found.files), name, path, f"a directory with at least one Parquet file{_named(found.left_out)}")
    for file, why in sorted(found.left_out.items()):
        logger.warning("%s: %s is left out: %s", name, file, why)


def _listed(path: str, name: str) -> LogFiles:
    location = locate(path, name)
    require(location.kind() == pafs.FileType.Directory, name, path, "a directory that exists")
    table = _delta_table(location)
    left_out: dict[str, str] = {}
    if table is not None:
        files = _delta_files(table, name, path)
        listed = [VOCABULARY_FILE] if location.kind(VOCABULARY_FILE) == pafs.FileType.File else []
        if table.root != location.root and table.kind(VOCABULARY_FILE) == pafs.FileType.File:
            listed.append(f"{table.root[len(location.root) + 1:]}/{VOCABULARY_FILE}")
    else:
        files, left_out, listed = _directory_files(location)
    return LogFiles(location, table or location, files, left_out, tuple(listed))


def read_parquet(location: Location, name: str) -> pa.Table:
    """All rows of a Parquet file, a directory of them or a Delta table, which of them is told as for a log.

    Raises:
        InvalidFieldError: there is no Parquet, or it cannot be read.
    """
    if location.kind() == pafs.FileType.File:
        files: tuple[LogFile, ...] = (LogFile(location.root, 0),)
    elif location.kind(_DELTA_LOG) == pafs.FileType.Directory:
        files = _delta_files(location, name, location.uri)
    else:
        files, left_out, _ = _directory_files(location)
        require(bool(files), name, location.uri, f"a directory with at least one Parquet file{_named(left_out)}")
        for file, why in sorted(left_out.items()):
            logger.warning("%s: %s is left out: %s", name, file, why)
    try:
        return pa.concat_tables([_whole(location, file) for file in files],
                                promote_options="permissive").combine_chunks()
    except BROKEN as error:
        raise InvalidFieldError(name, _first_line(error), "readable Parquet") from None


def _whole(location: Location, file: LogFile) -> pa.Table:
    table = without_views(pq.ParquetFile(file.path, filesystem=location.filesystem).read())
    for name, value in file.partition.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
    return table if file.kept is None else table.filter(pa.array(file.kept))


def read_vocabulary(path: str, file: str = "", name: str = "vocabulary") -> Vocabulary:
    """The vocabulary in a directory, or that of a file.

    Raises:
        InvalidFieldError: there is none, or it is bad; the message names the file.
    """
    return _parsed(locate(file, name) if file else locate(path, name).below(VOCABULARY_FILE), name)


def pieces(source: LogFiles) -> tuple[list[Piece], dict[str, str]]:
    """Row groups of the readable files, and of the others why they cannot be read."""
    filesystem = source.table.filesystem

    def footer(file: LogFile) -> list[int] | str:
        try:
            metadata = pq.ParquetFile(file.path, filesystem=filesystem).metadata
            return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        except BROKEN as error:
            return f"not a Parquet file ({_first_line(error)}); allowed: Parquet"

    with ThreadPoolExecutor(16) as pool:
        footers = list(pool.map(footer, source.files))
    result: list[Piece] = []
    unreadable: dict[str, str] = {}
    for position, (file, groups) in enumerate(zip(source.files, footers, strict=True)):
        if isinstance(groups, str):
            unreadable[source.table.relative(file.path)] = groups
            continue
        first = 0
        for group, rows in enumerate(groups):
            kept = rows if file.kept is None else int(file.kept[first : first + rows].sum())
            if kept:
                result.append(Piece(len(result), position, group, first, rows, kept))
            first += rows
    return result, unreadable


def log_end(source: LogSource, listing: list[Piece]) -> int | None:
    """Time of the last request in microseconds since 1970, from the statistics in the footers; where a footer has none,
    from the column. Times more than a day ahead of this machine's clock are no end of a log, and are passed over."""
    spans = [span for piece in listing if (span := piece_span(source, piece)) is not None]
    limit = int((time.time() + 86_400) * 1e6)
    return max((last for _, last in spans if last <= limit), default=None)


def piece_columns(source: LogSource, piece: Piece) -> list[str]:
    """Names of the columns that a piece's file has."""
    file = pq.ParquetFile(source.files[piece.file].path, filesystem=source.table.filesystem)
    return list(file.schema_arrow.names)


def piece_span(source: LogFiles, piece: Piece) -> tuple[int, int] | None:
    """Times of the first and the last row in microseconds since 1970, by the footer; where it has none, by the column;
    None where there is no time."""
    try:
        parquet = pq.ParquetFile(source.files[piece.file].path, filesystem=source.table.filesystem)
        schema = parquet.schema_arrow
        if "ts" not in schema.names or not pa.types.is_temporal(schema.field("ts").type):
            return None
        group = parquet.metadata.row_group(piece.row_group)
        place = next(k for k in range(group.num_columns) if group.column(k).path_in_schema == "ts")
        statistics = group.column(place).statistics
        if statistics is not None and statistics.has_min_max:
            ends = [pa.scalar(end, schema.field("ts").type) for end in (statistics.min, statistics.max)]
        else:
            column = parquet.read_row_group(piece.row_group, columns=["ts"])["ts"]
            ends = [pc.min(column), pc.max(column)]
        if not ends[0].is_valid:
            return None
        first, last = (int(end.cast(pa.timestamp("us"), safe=False).cast(pa.int64()).as_py()) for end in ends)
        return first, last
    except (*BROKEN, StopIteration, OverflowError):  # its rows are quarantined where they are read
        return None


def kept_rows(source: LogFiles, piece: Piece) -> NDArray[np.bool_] | None:
    """bool[n] of the piece's rows that the table still has; None for all."""
    kept = source.files[piece.file].kept
    return None if kept is None else kept[piece.first : piece.first + piece.rows]


def read_piece(source: LogFiles, piece: Piece, without: Collection[str] = ()) -> pa.Table:
    """The piece's rows as they lie in the file, with the columns that the directory's name gives; checksums of pages
    are looked at where the writer left some.

    Args:
        without: columns that are not read.

    Raises:
        One of BROKEN: the row group cannot be read.
    """
    file = source.files[piece.file]
    parquet = pq.ParquetFile(file.path, filesystem=source.table.filesystem, page_checksum_verification=True)
    names = parquet.schema_arrow.names
    wanted = [name for name in names if name not in without] if set(names) & set(without) else None
    table = parquet.read_row_group(piece.row_group, wanted)
    if table.num_rows != piece.rows:
        raise ValueError(f"{table.num_rows} rows where the footer says {piece.rows}")
    for name, value in file.partition.items():
        if name not in table.column_names:
            table = table.append_column(name, pa.array([value] * table.num_rows, pa.string()))
    kept = kept_rows(source, piece)
    return table if kept is None else without_views(table).filter(pa.array(kept))


# Delta tables


def _delta_table(location: Location) -> Location | None:
    for place in (location, location.below(SESSION_TABLE)):
        if place.kind(_DELTA_LOG) == pafs.FileType.Directory:
            return place
    return None


def _delta_files(table: Location, name: str, path: str) -> tuple[LogFile, ...]:
    from deltalake import DeltaTable
    from deltalake.exceptions import DeltaError

    try:
        delta = DeltaTable(table.delta_uri, storage_options=table.delta_options)
        features = set(delta.protocol().reader_features or ())
        mode = delta.metadata().configuration.get("delta.columnMapping.mode", "none")
        if mode != "none":
            features.add("columnMapping")
        unknown = sorted(features - _DELTA_FEATURES)
        require(not unknown, name, path, f"a Delta table without the features {', '.join(unknown)}, which are not read")
        deleted = _deletion_vectors(delta, name, path) if "deletionVectors" in features else {}
        actions = pa.table(delta.get_add_actions(flatten=True))
    except (DeltaError, OSError) as error:
        raise InvalidFieldError(name, path, f"a Delta table that can be read ({_first_line(error)})") from None
    columns = [column for column in actions.column_names if column.startswith("partition.")]
    rows = actions.select(["path", "size_bytes", "modification_time", *columns]).to_pylist()
    files = []
    for row in rows:
        relative = unquote(row["path"])
        partition = {column.removeprefix("partition."): None if row[column] is None else str(row[column])
                     for column in columns}
        files.append(LogFile(f"{table.root}/{relative}", row["size_bytes"], row["modification_time"] * 1_000_000,
                             partition, deleted.get(relative)))
    return tuple(sorted(files, key=lambda file: file.path))


def _deletion_vectors(delta: Any, name: str, path: str) -> dict[str, NDArray[np.bool_]]:
    """File (relative) → bool[n], the rows that it still has."""
    try:
        vectors = pa.table(delta.deletion_vectors())
    except Exception as error:
        raise InvalidFieldError(name, path, f"a Delta table whose deletion vectors can be read ({_first_line(error)})"
                                ) from None
    root = str(delta.table_uri).rstrip("/") + "/"
    files, masks = (vectors.column(index).to_pylist() for index in (0, 1))
    return {unquote(str(file).removeprefix(root).removeprefix("file://").removeprefix(
        root.removeprefix("file://"))): np.asarray(mask, bool) for file, mask in zip(files, masks, strict=True)}


# Directories


def _directory_files(location: Location) -> tuple[tuple[LogFile, ...], dict[str, str], list[str]]:
    """The Parquet files, what is left out and why, and the vocabularies; all by their paths below the log."""
    filesystem, infos = location.filesystem, visible_files(location)
    written_by_us = any(location.relative(info.path) == ACCOUNT_FILE for info in infos)
    files: list[LogFile] = []
    left_out: dict[str, str] = {}
    vocabularies: list[str] = []
    for info in infos:
        relative = location.relative(info.path)
        parts = relative.split("/")
        if written_by_us and parts[0] == "quarantine":
            continue
        if parts[-1] == VOCABULARY_FILE:
            vocabularies.append(relative)
        elif relative.lower().endswith(_ENDINGS) or ("." not in parts[-1] and _is_parquet(filesystem, info)):
            files.append(LogFile(info.path, info.size, info.mtime_ns or 0, _hive(parts[:-1])))
        elif relative not in (ACCOUNT_FILE,):
            left_out[relative] = f"its name does not end in {' or '.join(_ENDINGS)}"
    return tuple(files), left_out, vocabularies


def _hive(directories: list[str]) -> dict[str, str | None]:
    """Columns of directories named `column=value`."""
    pairs = [directory.split("=", 1) for directory in directories if "=" in directory]
    return {unquote(name): None if value == _HIVE_NULL else unquote(value) for name, value in pairs if name}


def _is_parquet(filesystem: pafs.FileSystem, info: pafs.FileInfo) -> bool:
    if info.size < 12:
        return False
    with filesystem.open_input_file(info.path) as stream:
        start = stream.read(4)
        stream.seek(info.size - 4)
        return bytes(start) == b"PAR1" == bytes(stream.read(4))


def _are_samples(table: Location, files: tuple[LogFile, ...]) -> bool:
    """Samples carry `done` and `next_state`; a log carries neither. Told by the first file whose footer is readable."""
    for file in files:
        try:
            names = set(pq.ParquetFile(file.path, filesystem=table.filesystem).schema_arrow.names)
        except BROKEN:
            continue
        return {"next_state", "done"} <= names
    return False


# Vocabularies


def _vocabulary(location: Location, listed: list[str], file: str) -> Vocabulary:
    """The vocabulary of a file, or the one that all of those in the log agree on."""
    from_the_top = sorted(listed, key=lambda path: (path.count("/"), path))
    parts = {path: _parsed(location.below(path), "vocabulary") for path in from_the_top}
    first = next(iter(parts), None)
    for path, words in parts.items():
        assert first is not None
        differences = [name for name, value in words.to_dict().items() if value != parts[first].to_dict().get(name)]
        require(not differences, f"vocabulary {path}", ", ".join(differences),
                f"the same as in {first}: the parts of a log have one vocabulary")
    if file:
        return read_vocabulary("", file)
    if first is not None:
        return parts[first]
    served = location.above
    if location.root.endswith(f"/{SESSION_TABLE}") and served.kind(VOCABULARY_FILE) == pafs.FileType.File:
        location = served  # The vocabulary of a served log lies beside its tables.
    return _parsed(location.below(VOCABULARY_FILE), "vocabulary")


def _parsed(location: Location, name: str) -> Vocabulary:
    try:
        with location.filesystem.open_input_stream(location.root) as stream:
            mapping = yaml.safe_load(stream.read())
    except (OSError, pa.ArrowException, yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidFieldError(name, location.uri, f"a YAML file that travels with the log ({_first_line(error)})"
                                ) from None
    return Vocabulary.from_dict(mapping, source=location.uri)


def _named(left_out: Mapping[str, str]) -> str:
    return f"; it has {', '.join(sorted(left_out)[:3])}" if left_out else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
