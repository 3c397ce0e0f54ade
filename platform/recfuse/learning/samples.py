"""Samples on their way into the learner: Parquet → Arrow → windows of tensors, columns all the way."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import ray.data
import torch
from numpy.typing import NDArray
from torch import Tensor

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.config import require
from recfuse.fusion.networks import Normalisation
from recfuse.fusion.squash import Range, unsquash_array
from recfuse.learning.allocation import return_freed_memory
from recfuse.logs.schema import VOCABULARY_FILE, sample_schema
from recfuse.runtime.cluster import read_parquet

COLUMNS = ("state", "action", "action_logp", "feedback", "next_state", "done")


@dataclass(frozen=True)
class SampleSet:
    """A directory of samples (design 3.2), checked, with the moments that the networks are normalised by.

    Attributes:
        directory: holds `*.parquet` and the vocabulary.
        vocabulary: of the samples.
        rows: how many there are.
        normalisation: moments of states and actions.
        reward_std: of every behaviour's transformed and scaled feedback; 1 where it never varies.
        reward_mean: likewise.
        done_mean: share of samples that end their session.
        fingerprint: of the content: vocabulary, files, rows and moments.
        has_density: whether every sample has the density of its action.
    """

    directory: Path
    vocabulary: Vocabulary
    rows: int
    normalisation: Normalisation
    reward_mean: tuple[float, ...]
    reward_std: tuple[float, ...]
    done_mean: float
    fingerprint: str
    has_density: bool = True

    @classmethod
    def open(cls, directory: str | Path, action_range: Range | None = None) -> SampleSet:
        """Reads the samples once, in batches.

        Args:
            action_range: (low, high) that the actions lie in; the moments are then of what they were before they were
                squashed.

        Raises:
            InvalidFieldError: no samples, a column that is missing or has another type, or a value that is no number.
        """
        directory = Path(directory)
        require(directory.is_dir(), "samples", str(directory), "a directory of samples that exists")
        vocabulary = Vocabulary.load(directory / VOCABULARY_FILE)
        files = sorted(directory.glob("*.parquet"))
        require(bool(files), "samples", str(directory), "a directory with at least one .parquet file")
        data = pyarrow.dataset.dataset(files, format="parquet")
        _check_schema(data.schema, vocabulary)
        total = _Totals(vocabulary, action_range)
        # Arrow reads ahead four files unless told otherwise, which would be most of the learner's memory.
        for batch in data.to_batches(columns=list(COLUMNS), batch_readahead=2, fragment_readahead=1):
            if batch.num_rows:
                total.add(arrays(pa.Table.from_batches([batch])))
        require(total.rows > 0, "samples", str(directory), "at least one row")
        pa.default_memory_pool().release_unused()
        moments = total.moments()
        content = [vocabulary.to_dict(), [file.name for file in files], total.rows, moments, total.ends, total.lacking]
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        return cls(directory, vocabulary, total.rows, Normalisation(*moments["state"], *moments["action"]),
                   *moments["feedback"], done_mean=total.ends / total.rows, fingerprint=digest[:20],
                   has_density=total.lacking == 0)

    @classmethod
    def of(cls, columns: Mapping[str, NDArray[np.float32]], vocabulary: Vocabulary, name: str) -> SampleSet:
        """Samples in memory, by the names of COLUMNS; `name` tells them from others."""
        sums = {column: _Sums() for column in ("state", "action", "feedback")}
        for column, total in sums.items():
            values = columns[column]
            total.add(rewards(values, vocabulary.behaviours) if column == "feedback" else values)
        rows = len(columns["done"])
        moments = {column: total.moments(rows) for column, total in sums.items()}
        return cls(Path(name), vocabulary, rows, Normalisation(*moments["state"], *moments["action"]),
                   *moments["feedback"], done_mean=float(columns["done"].mean()), fingerprint=name)

    @property
    def mean_values(self) -> tuple[float, ...]:
        """What each critic's value is on average, in its own units: mean reward over 1 − γ (1 − share of ends)."""
        moments = zip(self.vocabulary.behaviours, self.reward_mean, self.reward_std, strict=True)
        return tuple(mean / std / (1.0 - behaviour.gamma * (1.0 - self.done_mean)) for behaviour, mean, std in moments)

    def dataset(self) -> ray.data.Dataset:
        """The samples as a Ray dataset, whose rows come in the same order every time."""
        files = [str(file) for file in sorted(self.directory.glob("*.parquet"))]
        data = read_parquet(files).select_columns(list(COLUMNS))
        data.context.execution_options.preserve_order = True
        data.context.enable_progress_bars = False
        return data


class InMemory:
    """One batch of samples as the learner reads a dataset: what it uses of Ray Data's iterator."""

    def __init__(self, columns: Mapping[str, NDArray[np.float32]]) -> None:
        self._columns = columns
        self.rows = len(columns["done"])

    def iter_batches(self, *, batch_size: int, **_: Any) -> Iterator[pa.Table]:
        """Tables of so many rows."""
        for start in range(0, self.rows, batch_size):
            yield pa.table({name: _arrow(self._columns[name][start : start + batch_size]) for name in COLUMNS})


def _arrow(values: NDArray[np.float32]) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
    return flat if values.ndim == 1 else pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


class Windows:
    """Passes over the samples in windows of consecutive rows, each a dict of tensors on the learner's device.

    Samples within the memory limit are read once and kept; larger ones are streamed in every pass, while Ray Data
    reads ahead.

    Args:
        iterator: over the samples, in the same order every time.
        behaviours: whose feedback becomes the rewards.
        reward_std: divides the rewards.
        rows: of the samples.
        window_rows: of a window; the last one may be smaller.
        memory_bytes: the limit.
        device: where the tensors go.
    """

    def __init__(
        self,
        iterator: ray.data.DataIterator | InMemory,
        behaviours: tuple[Behaviour, ...],
        reward_std: tuple[float, ...],
        rows: int,
        window_rows: int,
        memory_bytes: int,
        device: torch.device,
    ) -> None:
        self._iterator, self._behaviours, self._device = iterator, behaviours, device
        self._reward_std = np.asarray(reward_std, np.float32)
        self.rows, self._window_rows, self._memory_bytes = rows, window_rows, memory_bytes
        self._kept: list[dict[str, Tensor]] | None = None

    def __iter__(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """(position of the first row, columns) of every window, in order."""
        if self._kept is not None:
            yield from self._positioned(iter(self._kept))
            return
        kept: list[dict[str, Tensor]] | None = []
        for position, window in self._positioned(self._read()):
            if kept is not None:
                size = sum(column.nbytes for column in window.values()) / len(window["done"])
                kept = [*kept, window] if size * self.rows <= self._memory_bytes else None
            yield position, window
        self._kept = kept

    def _positioned(self, windows: Iterator[dict[str, Tensor]]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        position = 0
        for window in windows:
            yield position, window
            position += len(window["done"])
        if position != self.rows:
            raise RuntimeError(f"samples changed while they were read: {position} rows; expected {self.rows}")

    def _read(self) -> Iterator[dict[str, Tensor]]:
        batches = self._iterator.iter_batches(batch_size=self._window_rows, batch_format="pyarrow", prefetch_batches=1)
        for table in batches:
            columns = arrays(table)
            columns["feedback"] = rewards(columns["feedback"], self._behaviours) / self._reward_std
            # A copy: Arrow's memory is read-only, and shared with the object store.
            window = {name: torch.from_numpy(np.array(values)).to(self._device) for name, values in columns.items()}
            del table, columns
            pa.default_memory_pool().release_unused()
            yield window
            del window
            return_freed_memory()


def arrays(table: pa.Table) -> dict[str, NDArray[np.float32]]:
    """The sample columns as arrays [n] or [n, width], without a copy where a column is one chunk."""
    result = {}
    for name in COLUMNS:
        column = table[name]
        if name == "action_logp":  # a request whose policy is not known
            column = pc.fill_null(column, math.nan)
        require(column.null_count == 0, f"samples.{name}", f"{column.null_count} nulls", "no nulls")
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = column.chunk(0)
        if pa.types.is_fixed_size_list(column.type):
            width = column.type.list_size
            result[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
        else:
            result[name] = column.to_numpy(zero_copy_only=False)
    return result


def _before_squashing(action: NDArray[np.float32], bounds: Range) -> NDArray[np.float32]:
    low, high = bounds
    outside = action[(action < low) | (action > high)]
    require(not outside.size, "samples.action", float(outside[0]) if outside.size else None,
            f"numbers within network.action_range {bounds}")
    return unsquash_array(action, bounds).astype(np.float32)


def rewards(feedback: NDArray[np.float32], behaviours: tuple[Behaviour, ...]) -> NDArray[np.float32]:
    """Transformed and scaled feedback [n, m], what the critics call r."""
    columns = []
    for index, behaviour in enumerate(behaviours):
        column = feedback[:, index]
        if behaviour.transform == "log1p":
            require(not len(column) or float(column.min()) > -1.0, f"samples.feedback.{behaviour.name}",
                    float(column.min(initial=0.0)), "numbers > -1 for the transform log1p")
            column = np.log1p(column)
        columns.append(column / np.float32(behaviour.scale))
    return np.stack(columns, axis=1).astype(np.float32, copy=False)


class _Sums:
    """Sums for mean and standard deviation, shifted by the first row so that large means lose no digits."""

    def __init__(self) -> None:
        self._shift: NDArray[np.float64] | None = None
        self._first: NDArray[np.float64] = np.zeros(1)
        self._second: NDArray[np.float64] = np.zeros(1)

    def add(self, values: NDArray[np.float32]) -> None:
        if self._shift is None:
            self._shift = values[0].astype(np.float64)
        shifted = values - self._shift
        self._first = self._first + shifted.sum(0)
        self._second = self._second + np.square(shifted).sum(0)

    def moments(self, rows: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        assert self._shift is not None
        mean = self._first / rows
        std = np.sqrt(np.maximum(self._second / rows - mean**2, 0.0))
        # A constant column carries nothing; dividing it by 1 leaves it alone.
        std = np.where(std > 1e-6 * np.maximum(1.0, np.abs(self._shift)), std, 1.0)
        return tuple((self._shift + mean).tolist()), tuple(std.tolist())


class _Totals:
    """What is counted in one reading of all samples.

    Attributes:
        rows: samples; ends: of sessions; lacking: samples without the density of their action.
    """

    def __init__(self, vocabulary: Vocabulary, action_range: Range | None) -> None:
        self._behaviours, self._action_range = vocabulary.behaviours, action_range
        self._sums = {name: _Sums() for name in ("state", "action", "feedback")}
        self.rows, self.ends, self.lacking = 0, 0.0, 0

    def add(self, columns: dict[str, NDArray[np.float32]]) -> None:
        """Checks and counts some samples."""
        columns["feedback"] = rewards(columns["feedback"], self._behaviours)
        self.lacking += int(np.isnan(columns["action_logp"]).sum())
        for name, values in columns.items():
            finite = np.isfinite(values) if name != "action_logp" else ~np.isinf(values)
            require(bool(finite.all()), f"samples.{name}", "nan or infinity", "finite numbers")
        if self._action_range is not None:
            columns["action"] = _before_squashing(columns["action"], self._action_range)
        for name, total in self._sums.items():
            total.add(columns[name])
        self.rows += len(columns["done"])
        self.ends += float(columns["done"].sum(dtype=np.float64))

    def moments(self) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
        """Mean and standard deviation of states, actions and rewards."""
        return {name: total.moments(self.rows) for name, total in self._sums.items()}


def minibatches(
    rows: int, size: int, seed: tuple[int, ...], rank: int, workers: int, parts: int
) -> Iterator[NDArray[np.int64]]:
    """Shuffled rows of this worker's share of each global minibatch.

    The order depends on the seed alone, so that any number of workers takes the same steps together. The rest that
    does not fill a minibatch is left out of this pass, unless it is all there is, which must then be a multiple of
    `parts`, itself one of `workers`.
    """
    order = np.random.default_rng(seed).permutation(rows)
    size = min(size, rows // parts * parts)
    share = size // workers
    for start in range(0, rows - size + 1, max(size, 1)) if size else ():
        first = start + rank * share
        yield order[first : first + share]


def is_held_out(position: int, rows: int, share: float, seed: int, run: int = 64) -> NDArray[np.bool_]:
    """Which of the rows from `position` on are held out, bool[rows]: whole runs of consecutive rows, which are mostly
    of one user, drawn by a hash of their number."""
    number = (np.arange(position, position + rows) // run + np.uint64(seed << 32)).astype(np.uint64)
    with np.errstate(over="ignore"):
        number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        number ^= number >> np.uint64(31)
    return (number >> np.uint64(11)).astype(np.float64) / float(1 << 53) < share


def _check_schema(schema: pa.Schema, vocabulary: Vocabulary) -> None:
    for expected in sample_schema(vocabulary):
        if expected.name not in COLUMNS:
            continue
        require(expected.name in schema.names, f"samples.{expected.name}", schema.names, "a column of this name")
        given = schema.field(expected.name).type
        require(given == expected.type, f"samples.{expected.name}", str(given), str(expected.type))
