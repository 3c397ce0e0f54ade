"""Where logs and samples lie (any filesystem that pyarrow knows) and the one way in which they are written."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

# Begins the name of a file that is being written.
TEMPORARY = "_"

def locate(path: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a path or URI, and the path within it."""
    return pafs.FileSystem.from_uri(absolute(path))


def absolute(path: str) -> str:
    """A URI as it is; a path of this machine from its root."""
    return path if "://" in path else str(Path(path).resolve())


def file_name(path: str) -> str:
    """The last part of a path within a filesystem."""
    return path.rsplit("/", 1)[-1]


def list_files(filesystem: pafs.FileSystem, directory: str, prefix: str = "") -> list[str]:
    """Paths of the files right beneath a directory whose names begin with the prefix, sorted."""
    listing = filesystem.get_file_info(pafs.FileSelector(directory))
    return sorted(info.path for info in listing if info.is_file and file_name(info.path).startswith(prefix))


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """How tables of logs and samples are written: options of `pq.write_table` and `pq.ParquetWriter`.

    Names and ids repeat and are worth a dictionary. The float columns are not: to build one, find that it does not pay
    and write the values plainly after all takes as long as everything else. Pages carry checksums, so that a flipped
    byte is seen where the file is read.
    """
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    return {"compression": "zstd", "use_dictionary": texts, "write_page_checksum": True}


def write_parquet(table: pa.Table, path: str | Path, filesystem: pafs.FileSystem | None = None) -> None:
    """Writes a table of logs or samples as one file; equal tables give equal bytes."""
    pq.write_table(table, path, filesystem=filesystem, **parquet_options(table.schema))


class DirectoryWriter:
    """Writes Parquet files beneath a directory: each to a temporary name of its own, then renamed.

    A task that Ray believes dead may still be writing beside its successor; each renames a whole file.

    Args:
        filesystem: where the directory lies.
        directory: its path there.
    """

    def __init__(self, filesystem: pafs.FileSystem, directory: str) -> None:
        self._filesystem, self._directory = filesystem, directory

    def write(self, name: str, table: pa.Table) -> None:
        """Writes `name`, which may lie in a directory beneath that exists."""
        target = f"{self._directory}/{name}"
        parent, file = target.rsplit("/", 1)
        temporary = f"{parent}/{TEMPORARY}{file}.{uuid.uuid4().hex[:8]}"
        write_parquet(table, temporary, self._filesystem)
        self._filesystem.move(temporary, target)
