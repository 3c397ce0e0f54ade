"""Samples on their way into the learner: opened and checked, columns all the way."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError, require
from recfuse.fusion.networks import Normalisation
from recfuse.learning.candidates import COLUMNS as REPLAY_COLUMNS
from recfuse.learning.candidates import NEEDED, ReplayShape, ReplayTotals, replay_arrays, shape_of, to_arrow
from recfuse.learning.moments import Totals
from recfuse.logs.schema import sample_schema
from recfuse.logs.source import BROKEN, LogFile, LogSource, open_log
from recfuse.stats.gaussian import Range

if TYPE_CHECKING:
    import ray.data

logger = logging.getLogger("recfuse")
COLUMNS = ("state", "action", "action_logp", "feedback", "next_state", "done")
EXPLORED = "explored"
# Rows and bytes that are checked at a time; the first is Arrow's own number.
_BATCH_ROWS, _BATCH_BYTES = 131_072, 256 << 20


@dataclass(frozen=True)
class SampleSet:
    """Samples (design 3.2), checked, with the moments that the networks are normalised by.

    Samples whose action was not drawn (`explored` is false) train critics and nothing else: no policy, density, ratio,
    weight or moment of the actions reads them. Null counts as drawn. A sample that is truncated is one that is not
    done: it bootstraps.

    Attributes:
        vocabulary: of the samples.
        rows: how many there are.
        normalisation: moments of states, and of actions that were drawn.
        reward_std: of every behaviour's transformed and scaled feedback; 1 where it never varies.
        reward_mean: likewise.
        done_mean: share of samples that end their session.
        fingerprint: of every byte of the files, and of the vocabulary.
        has_density: whether every sample whose action was drawn has the density of it.
        not_drawn: how many samples have an action that was not drawn.
        has_candidates: whether every sample whose action was drawn says what there was to rank, what was shown, and
            which policy drew it.
        candidates, page: the most candidates and the longest page of a sample; 0 where none are known.
        files: paths of the Parquet files on the filesystem, in order.
        filesystem: of pyarrow.
    """

    vocabulary: Vocabulary
    rows: int
    normalisation: Normalisation
    reward_mean: tuple[float, ...]
    reward_std: tuple[float, ...]
    done_mean: float
    fingerprint: str
    has_density: bool = True
    not_drawn: int = 0
    has_candidates: bool = False
    candidates: int = 0
    page: int = 0
    files: tuple[str, ...] = ()
    filesystem: pafs.FileSystem = field(default_factory=pafs.LocalFileSystem)

    @classmethod
    def open(cls, directory: str | Path, action_range: Range | None = None) -> SampleSet:
        """Reads the samples once, in batches.

        Args:
            directory: or URI, of any filesystem that pyarrow knows.
            action_range: (low, high) that the actions lie in; the moments are then of what they were before they were
                squashed.

        Raises:
            InvalidFieldError: no samples, a file that cannot be read, a column that is missing or has another type, a
                value that is no number, or no action that was drawn.
        """
        source = open_log(str(directory), name="samples")
        vocabulary, files = source.vocabulary, tuple(file.path for file in source.files)
        for_replay = NEEDED if _check_files(source) else ()
        total, replay = Totals(vocabulary, action_range), ReplayTotals()
        for batch in _batches(source, for_replay):
            if batch.num_rows:
                table = pa.Table.from_batches([batch])
                replay.add(table, drawn_rows(table))
                total.add(arrays(table), drawn_rows(table))
        require(total.rows > 0, "samples", str(directory), "at least one row")
        require(total.drawn > 0, "samples.explored", f"false in all {total.rows:,} rows",
                "at least one action that was drawn, or there is nothing to learn a policy from")
        pa.default_memory_pool().release_unused()
        moments = total.moments()
        return cls(vocabulary, total.rows, Normalisation(*moments["state"], *moments["action"]), *moments["feedback"],
                   done_mean=total.ends / total.rows, fingerprint=fingerprint_of(source),
                   has_density=total.lacking == 0, not_drawn=total.rows - total.drawn,
                   has_candidates=replay.lacking == 0, candidates=replay.candidates, page=replay.page, files=files,
                   filesystem=source.table.filesystem)

    @classmethod
    def of(cls, columns: Mapping[str, NDArray[Any]], vocabulary: Vocabulary, name: str) -> SampleSet:
        """Samples in memory, by the names of COLUMNS, and of `candidates.ARRAYS` where replay is to read them; `name`
        tells them from others."""
        total = Totals(vocabulary)
        rows = len(columns["done"])
        total.add({column: columns[column] for column in COLUMNS}, columns.get(EXPLORED, np.ones(rows)).astype(bool))
        moments = total.moments()
        shape = shape_of(columns, vocabulary)
        return cls(vocabulary, rows, Normalisation(*moments["state"], *moments["action"]), *moments["feedback"],
                   done_mean=float(columns["done"].mean()), fingerprint=name, not_drawn=rows - total.drawn,
                   has_candidates=shape is not None, candidates=shape.candidates if shape else 0,
                   page=shape.page if shape else 0)

    @property
    def mean_values(self) -> tuple[float, ...]:
        """What each critic's value is on average, in its own units: mean reward over 1 − γ (1 − share of ends)."""
        moments = zip(self.vocabulary.behaviours, self.reward_mean, self.reward_std, strict=True)
        return tuple(mean / std / (1.0 - behaviour.gamma * (1.0 - self.done_mean)) for behaviour, mean, std in moments)

    @property
    def replay_shape(self) -> ReplayShape:
        """How wide the columns of replay are."""
        return ReplayShape(self.vocabulary.action_size, self.candidates, self.page, self.vocabulary.scenes)

    @property
    def schema(self) -> pa.Schema:
        """Of what the learner reads without replay."""
        return _read_schema(self.vocabulary)

    def dataset(self, replay: bool = False, cpus: float | None = None) -> ray.data.Dataset:
        """The samples as a Ray dataset, whose rows come in the same order every time.

        Args:
            replay: with the columns of `candidates.COLUMNS`.
            cpus: one task reads at a time, and takes so many; absent, many may, a whole one each.
        """
        from recfuse.runtime.cluster import read_parquet  # brings Ray, which settings and their help do without

        schema = _read_schema(self.vocabulary, REPLAY_COLUMNS if replay else ())
        # Whole files: of four that are cut to 200 blocks the handing over took longer than the reading.
        data = read_parquet(self.files, filesystem=self.filesystem, schema=schema, blocks=len(self.files),
                            readers=None if cpus is None else 1, cpus=cpus)
        data = data.select_columns(schema.names)
        data.context.execution_options.preserve_order = True
        data.context.enable_progress_bars = False
        return data

    def columns(self, replay: bool = False) -> dict[str, NDArray[Any]]:
        """All of it in memory, by the names of COLUMNS, and `explored` (1 or 0) where an action was not drawn.

        Args:
            replay: with `candidates.ARRAYS`.
        """
        import pyarrow.dataset  # brings pandas

        data = pyarrow.dataset.dataset(
            list(self.files), schema=_read_schema(self.vocabulary, REPLAY_COLUMNS if replay else ()),
            format="parquet", filesystem=self.filesystem)
        table = data.to_table()
        columns = arrays(table) | (replay_arrays(table, self.replay_shape) if replay else {})
        return {**columns, EXPLORED: drawn_rows(table).astype(np.float32)} if self.not_drawn else columns


class InMemory:
    """One batch of samples as the learner reads a dataset: what it uses of Ray Data's iterator."""

    def __init__(self, columns: Mapping[str, NDArray[Any]]) -> None:
        self._columns = columns
        self.rows = len(columns["done"])

    @property
    def drawn(self) -> int:
        """Rows whose action was drawn."""
        return int(self._columns[EXPLORED].sum()) if EXPLORED in self._columns else self.rows

    def iter_batches(self, *, batch_size: int, **_: Any) -> Iterator[pa.Table]:
        """Tables of so many rows."""
        for start in range(0, self.rows, batch_size):
            part = {name: values[start : start + batch_size] for name, values in self._columns.items()}
            table = {name: _arrow(part[name]) for name in COLUMNS}
            table |= to_arrow(part)
            if EXPLORED in part:
                table[EXPLORED] = pa.array(part[EXPLORED].astype(bool))
            yield pa.table(table)


def _arrow(values: NDArray[np.float32]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def arrays(table: pa.Table) -> dict[str, NDArray[np.float32]]:
    """The sample columns as arrays [n] or [n, width], without a copy where a column is one chunk."""
    result = {}
    for name in COLUMNS:
        column = table[name]
        if name == "action_logp":  # a request whose policy is not known
            column = pc.fill_null(column, math.nan)
        require(column.null_count == 0, f"samples.{name}", f"{column.null_count} nulls", "no nulls")
        parts = [_flat(chunk) for chunk in column.chunks if len(chunk)] or [_flat(pa.array([], column.type))]
        result[name] = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return result


def _flat(column: pa.Array) -> NDArray[np.float32]:
    if not pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.to_numpy(zero_copy_only=False))
    return np.asarray(column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size))


def drawn_rows(table: pa.Table) -> NDArray[np.bool_]:
    """bool[n], whether the action of each sample was drawn; where nobody knows, it counts as drawn."""
    if EXPLORED not in table.column_names:
        return np.ones(table.num_rows, bool)
    explored: NDArray[np.bool_] = pc.fill_null(table[EXPLORED], True).to_numpy()
    return np.array(explored)


def fingerprint_of(source: LogSource) -> str:
    """Of every byte of a log's files, and of its vocabulary."""
    filesystem = source.table.filesystem

    def digest(file: LogFile) -> list[Any]:
        state = hashlib.blake2b(digest_size=20)
        with filesystem.open_input_stream(file.path) as stream:
            while block := stream.read(8 << 20):
                state.update(block)
        return [source.table.relative(file.path), dict(file.partition), state.hexdigest()]

    with ThreadPoolExecutor(4) as pool:
        content = [source.vocabulary.to_dict(), list(pool.map(digest, source.files))]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:20]


def _read_schema(vocabulary: Vocabulary, more: tuple[str, ...] = ()) -> pa.Schema:
    schema = sample_schema(vocabulary)
    return pa.schema([schema.field(name) for name in (*COLUMNS, EXPLORED, *more)])


def _batches(source: LogSource, more: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    schema = _read_schema(source.vocabulary, more)
    # Checksums of pages are looked at once, here; the learner's own reading trusts them.
    import pyarrow.dataset

    options = pyarrow.dataset.ParquetFragmentScanOptions(page_checksum_verification=True)
    files, filesystem = [file.path for file in source.files], source.table.filesystem
    data = pyarrow.dataset.dataset(
        files, schema=schema, format=pyarrow.dataset.ParquetFileFormat(default_fragment_scan_options=options),
        filesystem=filesystem)
    row = 4 * (2 * source.vocabulary.state_size + source.vocabulary.action_size + len(source.vocabulary.behaviours) + 3)
    try:
        # Arrow reads ahead four files unless told otherwise, which would be most of the learner's memory.
        yield from data.to_batches(columns=schema.names, batch_readahead=2, fragment_readahead=1,
                                   batch_size=min(_BATCH_ROWS, max(1024, _BATCH_BYTES // row)))
    except InvalidFieldError:
        raise
    except BROKEN as error:
        raise InvalidFieldError("samples", _broken_file(source, schema.names), f"Parquet that can be read ("
                                f"{_first_line(error)})") from None


def _broken_file(source: LogSource, columns: list[str]) -> str:
    """The first file that cannot be read."""
    for file in source.files:
        try:
            parquet = pq.ParquetFile(file.path, filesystem=source.table.filesystem, page_checksum_verification=True)
            for group in range(parquet.num_row_groups):
                parquet.read_row_group(group, [name for name in columns if name in parquet.schema_arrow.names])
        except BROKEN:
            return source.table.relative(file.path)
    return source.location.uri


def _check_files(source: LogSource) -> bool:
    """Whether a file has what replay needs; raises InvalidFieldError where one is unreadable, or lacks another column
    or has another type of one."""
    expected = sample_schema(source.vocabulary)

    def footer(file: LogFile) -> pa.Schema | str:
        try:
            schema: pa.Schema = pq.ParquetFile(file.path, filesystem=source.table.filesystem).schema_arrow
            return schema
        except BROKEN as error:
            return _first_line(error)

    with ThreadPoolExecutor(16) as pool:
        schemas = list(pool.map(footer, source.files))
    for file, schema in zip(source.files, schemas, strict=True):
        name = source.table.relative(file.path)
        require(file.kept is None, "samples", name, "files without deletion vectors; write the table anew")
        if isinstance(schema, str):
            raise InvalidFieldError("samples", name, f"Parquet that can be read ({schema})")
        where = f" (in {name})" if len(schemas) > 1 else ""
        is_log = source.kind == "session_log" and not {"next_state", "done"} & set(schema.names)
        require(not is_log or "session_id" not in schema.names, "samples", name,
                "samples, as the job `ingest` writes them; this is a session log")
        for column in COLUMNS:
            require(schema.names.count(column) == 1, f"samples.{column}", schema.names, f"a column of this name{where}")
            given, allowed = schema.field(column).type, expected.field(column).type
            require(given == allowed, f"samples.{column}", str(given), f"{allowed}{where}")
        for column in (EXPLORED, *NEEDED, "predictions"):
            if column in schema.names:
                given, allowed = schema.field(column).type, expected.field(column).type
                require(given == allowed, f"samples.{column}", str(given), f"{allowed}{where}")
    return any(set(REPLAY_COLUMNS) <= set(schema.names) for schema in schemas if isinstance(schema, pa.Schema))


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
