"""Session logs as they lie in files: which files belong to a log, their row groups, and reading one of these."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import yaml

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError
from recfuse.logs.files import file_name, locate
from recfuse.logs.schema import VOCABULARY_FILE, session_log_schema
from recfuse.logs.validation import Checked, check, quarantine_rows

# What a broken Parquet file raises: names in a footer may be no UTF-8, so that ValueError is among it.
_BROKEN = (pa.ArrowException, OSError, ValueError)
_READERS = 16


@dataclass(frozen=True)
class Piece:
    """A row group of a log file, the unit of reading.

    Attributes:
        number: its place among the pieces of the log.
        path: the file, within the log's filesystem.
        row_group: its place in the file.
        rows: how many rows the file's footer gives it.
    """

    number: int
    path: str
    row_group: int
    rows: int


def read_vocabulary(directory: str, file: str = "") -> Vocabulary:
    """The vocabulary that travels with logs or samples, from any filesystem.

    Args:
        directory: of the logs or samples.
        file: a YAML file to take instead of the one in the directory.

    Raises:
        InvalidFieldError: there is no such file, or it holds no vocabulary.
    """
    filesystem, root = locate(file or directory)
    path = root if file else f"{root}/{VOCABULARY_FILE}"
    try:
        with filesystem.open_input_stream(path) as stream:
            mapping = yaml.safe_load(stream.read())
    except (OSError, yaml.YAMLError) as error:
        raise InvalidFieldError("vocabulary", path, f"a YAML file that travels with the log ({error})") from None
    return Vocabulary.from_dict(mapping, source=VOCABULARY_FILE)


def list_log_files(filesystem: pafs.FileSystem, root: str, uri: str) -> list[pafs.FileInfo]:
    """The Parquet files of a log, sorted by path: of a Delta table those of its present version and no others.

    Args:
        filesystem: where the log lies.
        root: its directory there. Serving writes its Delta table right beneath it, in `sessions`.
        uri: the same directory as the Delta library takes it.
    """
    for below in ("", "/sessions"):
        place = root + below
        if filesystem.get_file_info(f"{place}/_delta_log").type == pafs.FileType.Directory:
            from deltalake import DeltaTable

            names = DeltaTable(uri.rstrip("/") + below).get_add_actions(flatten=True).column("path").to_pylist()
            listing = filesystem.get_file_info([f"{place}/{unquote(name)}" for name in names])
            return sorted(listing, key=lambda info: info.path)
    try:
        listing = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except OSError as error:
        raise InvalidFieldError("logs", root, f"a directory that exists ({error})") from None
    return sorted((info for info in listing if info.is_file and info.path.endswith(".parquet")),
                  key=lambda info: info.path)


def list_pieces(filesystem: pafs.FileSystem, files: list[pafs.FileInfo]) -> tuple[list[Piece], dict[str, str]]:
    """Row groups of the readable files that hold rows; and of each other file, by name, why it is not readable."""
    def rows_by_group(info: pafs.FileInfo) -> list[int] | str:
        try:
            metadata = pq.ParquetFile(info.path, filesystem=filesystem).metadata
            return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        except _BROKEN as error:
            return f"not a Parquet file ({_first_line(error)}); allowed: Parquet"

    with ThreadPoolExecutor(_READERS) as pool:
        footers = list(pool.map(rows_by_group, files))
    unreadable = {file_name(info.path): why for info, why in zip(files, footers, strict=True) if isinstance(why, str)}
    pieces: list[Piece] = []
    for info, groups in zip(files, footers, strict=True):
        if isinstance(groups, list):
            pieces += [Piece(len(pieces) + k, info.path, k, rows) for k, rows in enumerate(groups)]
    return [piece for piece in pieces if piece.rows], unreadable


def read_piece(piece: Piece, filesystem: pafs.FileSystem, vocabulary: Vocabulary, need_density: bool) -> Checked:
    """The rows of a piece, checked; all of them quarantined where it cannot be read."""
    source = f"{file_name(piece.path)}[{piece.row_group}]"
    try:
        # Checksums of pages are looked at where the writer left some.
        file = pq.ParquetFile(piece.path, filesystem=filesystem, page_checksum_verification=True)
        table = file.read_row_group(piece.row_group)
        if table.num_rows != piece.rows:
            raise ValueError(f"{table.num_rows} rows where the footer says {piece.rows}")
    except _BROKEN as error:
        # The footer was fine and counts the rows, so they are accounted for although none can be shown.
        table = pa.table({"unreadable": pa.nulls(piece.rows, pa.string())})
        quarantine = quarantine_rows(table, source, "row group", "readable Parquet", value=_first_line(error))
        return Checked(session_log_schema(vocabulary).empty_table(), quarantine)
    return check(table, vocabulary, source, need_density)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
