"""The one way in which logs and samples are written, on any filesystem that pyarrow knows."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from recfuse.runtime.locations import Location

# Begins the name of a file that is being written.
TEMPORARY = "_"


def file_name(path: str) -> str:
    """The last part of a path within a filesystem."""
    return path.rsplit("/", 1)[-1]


def list_files(filesystem: pafs.FileSystem, directory: str, prefix: str = "") -> list[str]:
    """Paths of the files right beneath a directory whose names begin with the prefix, sorted."""
    listing = filesystem.get_file_info(pafs.FileSelector(directory))
    return sorted(info.path for info in listing if info.is_file and file_name(info.path).startswith(prefix))


def visible_files(location: Location) -> list[pafs.FileInfo]:
    """Files beneath a directory in the order of their paths; names that begin with `_` or `.` are left out, as writers
    call what is none of the data. A file that links lead to again is taken once, by the shortest of its paths."""
    selector = pafs.FileSelector(location.root, recursive=True)
    infos = (info for info in location.filesystem.get_file_info(selector) if info.is_file)
    visible = [info for info in infos
               if not any(part.startswith(("_", ".")) for part in location.relative(info.path).split("/"))]
    if isinstance(location.filesystem, pafs.LocalFileSystem):
        by_place: dict[str, pafs.FileInfo] = {}
        for info in sorted(visible, key=lambda info: (info.path.count("/"), info.path)):
            by_place.setdefault(os.path.realpath(info.path), info)
        visible = list(by_place.values())
    return sorted(visible, key=lambda info: info.path)


def parquet_options(schema: pa.Schema) -> dict[str, Any]:
    """How tables of logs and samples are written: options of `pq.write_table` and `pq.ParquetWriter`.

    Names and ids repeat and are worth a dictionary. The float columns are not: to build one, find that it does not pay
    and write the values plainly after all takes as long as everything else. Pages carry checksums, so that a flipped
    byte is seen where the file is read.
    """
    texts = [field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)]
    texts += [f"{field.name}.{part.name}.list.element" for field in schema if pa.types.is_struct(field.type)
              for part in field.type if pa.types.is_list(part.type) and pa.types.is_string(part.type.value_type)]
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

    @contextmanager
    def open(self, name: str) -> Iterator[pa.NativeFile]:
        """A stream that becomes the file `name` when it is closed; its directory exists."""
        target = f"{self._directory}/{name}"
        parent, file = target.rsplit("/", 1)
        temporary = f"{parent}/{TEMPORARY}{file}.{uuid.uuid4().hex[:8]}"
        with self._filesystem.open_output_stream(temporary) as stream:
            yield stream
        self._filesystem.move(temporary, target)

    def write(self, name: str, table: pa.Table) -> None:
        """Writes a Parquet file."""
        with self.open(name) as stream:
            pq.write_table(table, stream, **parquet_options(table.schema))

    def write_all(self, name: str, tables: Iterable[pa.Table], schema: pa.Schema) -> Written:
        """Writes a Parquet file with one row group a table."""
        with self.open(name) as stream:
            digest = _Digest(stream)
            with pq.ParquetWriter(pa.PythonFile(digest, "w"), schema, **parquet_options(schema)) as file:
                for table in tables:
                    file.write_table(table, row_group_size=max(table.num_rows, 1))
        return Written(digest.size, digest.sha.hexdigest())

    def write_text(self, name: str, text: str) -> None:
        """Writes a small text file; its directory is made where it does not exist."""
        self._filesystem.create_dir(f"{self._directory}/{name}".rsplit("/", 1)[0], recursive=True)
        with self.open(name) as stream:
            stream.write(text.encode())


@dataclass(frozen=True)
class Written:
    """Attributes:
        size: of a file, in bytes; sha256: of its bytes, in hexadecimal digits.
    """

    size: int
    sha256: str


class _Digest:
    """A stream that takes the digest of what passes through it to another."""

    closed = False

    def __init__(self, stream: pa.NativeFile) -> None:
        self._stream, self.size, self.sha = stream, 0, hashlib.sha256()

    def write(self, content: bytes) -> int:
        self.sha.update(content)
        self.size += len(content)
        self._stream.write(content)
        return len(content)

    def tell(self) -> int:
        return self.size

    def flush(self) -> None:
        """The stream beneath is flushed by whoever opened it."""

    def close(self) -> None:
        """Likewise."""
