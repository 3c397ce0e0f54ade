"""Files of rows by partition, as tasks exchange them: one slice a partition, read alone and by column.

A file is Arrow IPC with one record batch a partition that has rows. Whoever collects a partition reads its slice of
every file, so that what an exchange holds in memory is what one task looks at, and all else lies on the filesystem.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from numpy.typing import NDArray

from recfuse.logs.files import DirectoryWriter, list_files

_SLICES = b"slices"


def write_slices(writer: DirectoryWriter, name: str, rows: pa.Table, partition: NDArray[np.int64]) -> None:
    """Writes rows by partition.

    Args:
        partition: int64[n], from 0.
    """
    order = np.argsort(partition, kind="stable")
    counts = np.bincount(partition)
    numbers = np.flatnonzero(counts)
    ends = np.cumsum(counts[numbers])
    sorted_rows = rows.take(pa.array(order)).combine_chunks()
    parts = [sorted_rows.slice(end - count, count) for end, count in zip(ends, counts[numbers], strict=True)]
    slices = [(int(number), part.num_rows, part.nbytes) for number, part in zip(numbers, parts, strict=True)]
    schema = rows.schema.with_metadata({_SLICES: json.dumps(slices).encode()})
    with writer.open(name) as stream, pa.ipc.new_file(
            stream, schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as file:
        for part in parts:
            [batch] = part.to_batches()
            file.write_batch(batch.replace_schema_metadata(schema.metadata))


@dataclass(frozen=True)
class Slice:
    """Attributes:
        path: of the file; batch: in it; rows, nbytes: how much it is in memory.
    """

    path: str
    batch: int
    rows: int
    nbytes: int


class Partition:
    """The rows of one partition in all files of a directory whose names begin alike.

    Args:
        budget: in bytes; more than that is never held in memory at once, and read anew for every use.
    """

    def __init__(self, filesystem: pafs.FileSystem, directory: str, prefix: str, number: int, budget: int) -> None:
        self._filesystem = filesystem
        self._slices = [found for path in list_files(filesystem, directory, prefix)
                        if (found := self._find(path, number)) is not None]
        self.rows = sum(each.rows for each in self._slices)
        self._whole: pa.Table | None = None
        self._fits = sum(each.nbytes for each in self._slices) <= budget

    def columns(self, names: Sequence[str]) -> pa.Table:
        """These columns of all rows; there is at least one row."""
        if self._fits:
            return self._all().select(names)
        return pa.concat_tables([self._read(each, names) for each in self._slices])

    def take(self, places: NDArray[np.int64]) -> pa.Table:
        """These rows, in this order."""
        if self._fits:
            return self._all().take(pa.array(places)).combine_chunks()
        order = np.argsort(places, kind="stable")
        parts = list(self._taken(places[order]))
        back = np.empty(len(order), np.int64)
        back[order] = np.arange(len(order))
        return pa.concat_tables(parts).combine_chunks().take(pa.array(back))

    def tables(self, names: Sequence[str]) -> Iterator[pa.Table]:
        """These columns of every slice, one after the other."""
        for each in self._slices:
            yield self._read(each, names)

    def _all(self) -> pa.Table:
        if self._whole is None:
            self._whole = pa.concat_tables([self._read(each) for each in self._slices]).combine_chunks()
        return self._whole

    def _taken(self, places: NDArray[np.int64]) -> Iterator[pa.Table]:
        """Rows at rising places, slice by slice."""
        first = 0
        for each in self._slices:
            begin, end = np.searchsorted(places, [first, first + each.rows])
            if begin < end:
                yield self._read(each).take(pa.array(places[begin:end] - first))
            first += each.rows
        if not len(places):
            yield self._read(self._slices[0]).slice(0, 0)

    def _find(self, path: str, number: int) -> Slice | None:
        with self._filesystem.open_input_file(path) as stream:
            slices = json.loads(pa.ipc.open_file(stream).schema.metadata[_SLICES])
        for batch, (partition, rows, nbytes) in enumerate(slices):
            if partition == number:
                return Slice(path, batch, rows, nbytes)
        return None

    def _read(self, place: Slice, names: Sequence[str] | None = None) -> pa.Table:
        with self._filesystem.open_input_file(place.path) as stream:
            schema = pa.ipc.open_file(stream).schema
            fields = None if names is None else [schema.get_field_index(name) for name in names]
            options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
            file = pa.ipc.open_file(stream, options=options)
            table = pa.Table.from_batches([file.get_batch(place.batch)]).replace_schema_metadata()
            return table if names is None else table.select(names)
