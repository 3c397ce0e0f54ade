"""Passes over samples in windows of consecutive rows; minibatches of them, and which rows are held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from recfuse.behaviours import Behaviour
from recfuse.learning.allocation import return_freed_memory
from recfuse.learning.candidates import ReplayShape, replay_arrays
from recfuse.learning.moments import rewards
from recfuse.learning.samples import InMemory, arrays, drawn_rows

if TYPE_CHECKING:
    import ray.data

# Columns of replay may take so many bytes of a window, as long as it holds so many rows.
_REPLAY_BYTES, _LEAST_ROWS = 256 << 20, 8_192


class Rows(Protocol):
    """Windows of samples, as phases read them.

    Attributes:
        rows: of all windows together.
    """

    rows: int

    def __iter__(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """(position of the first row, columns) of every window, in order."""
        ...


class Windows:
    """All samples in windows, each a dict of tensors on the learner's device: the columns of samples, and `explored`,
    whether the action was drawn; for replay also those of `candidates.ARRAYS`.

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
        drawn: how many samples have an action that was drawn; None for all.
        replay: how wide the columns of replay are, where these are read too.
        moved: called with every window, so that somebody knows that there was one.
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
        drawn: int | None = None,
        replay: ReplayShape | None = None,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self._iterator, self._behaviours, self._device = iterator, behaviours, device
        self._reward_std = np.asarray(reward_std, np.float32)
        self.rows, self._memory_bytes, self._replay = rows, memory_bytes, replay
        self._window_rows = window_rows if replay is None else min(
            window_rows, max(_LEAST_ROWS, _REPLAY_BYTES // replay.row_bytes))
        self.drawn_rows = rows if drawn is None else drawn
        self._kept: list[dict[str, Tensor]] | None = None
        self._moved = moved

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

    def drawn(self) -> Rows:
        """The samples whose action was drawn; the same windows where all were."""
        return self if self.drawn_rows == self.rows else DrawnWindows(self)

    def _positioned(self, windows: Iterator[dict[str, Tensor]]) -> Iterator[tuple[int, dict[str, Tensor]]]:
        position = 0
        for window in windows:
            self._moved()
            yield position, window
            position += len(window["done"])
        if position != self.rows:
            raise RuntimeError(f"samples changed while they were read: {position} rows; expected {self.rows}")

    def _read(self) -> Iterator[dict[str, Tensor]]:
        batches = self._iterator.iter_batches(batch_size=self._window_rows, batch_format="pyarrow", prefetch_batches=1)
        for table in batches:
            columns: dict[str, NDArray[Any]] = {**arrays(table)}
            if self._replay is not None:
                columns |= replay_arrays(table, self._replay)
            columns["feedback"] = rewards(columns["feedback"], self._behaviours) / self._reward_std
            window = {name: torch.from_numpy(_own(values)).to(self._device) for name, values in columns.items()}
            window["explored"] = torch.from_numpy(drawn_rows(table)).to(self._device)
            del table, columns
            pa.default_memory_pool().release_unused()
            yield window
            del window
            return_freed_memory()


def _own(values: NDArray[Any]) -> NDArray[Any]:
    """A copy where the memory is Arrow's, which is read-only, and shared with the object store."""
    return np.ascontiguousarray(values) if values.flags.writeable else np.array(values)


class DrawnWindows:
    """The windows without the samples whose action was not drawn; `row` is each sample's place among all of them."""

    def __init__(self, windows: Windows) -> None:
        self._windows = windows
        self.rows = windows.drawn_rows

    def __iter__(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """(position of the first row among those drawn, columns) of every window with such rows, in order."""
        position = 0
        for start, window in self._windows:
            places = window["explored"].nonzero()[:, 0]
            if len(places):
                rows = {name: column.index_select(0, places) for name, column in window.items()}
                yield position, {**rows, "row": places + start}
            position += len(places)
        if position != self.rows:
            raise RuntimeError(f"samples changed while they were read: {position} rows drawn; expected {self.rows}")


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


def is_held_out(
    position: int, rows: int, share: float, seed: int, run: int = 64, places: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """Which of the rows from `position` on are held out, bool[rows]: whole runs of consecutive rows, which are mostly
    of one user, drawn by a hash of their number.

    Args:
        places: of the rows among all samples, where they are not consecutive, so that a sample is held out of every
            phase or of none.
    """
    numbers = np.arange(position, position + rows) if places is None else places
    number = (numbers // run + np.uint64(seed << 32)).astype(np.uint64)
    with np.errstate(over="ignore"):
        number = (number ^ (number >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        number = (number ^ (number >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        number ^= number >> np.uint64(31)
    return (number >> np.uint64(11)).astype(np.float64) / float(1 << 53) < share
