"""What samples keep for replay (maths 5), as arrays: what there was to rank, what was shown, and by which policy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recfuse.behaviours import Vocabulary
from recfuse.config import require
from recfuse.logs.candidates import Lists

# Columns of samples that replay reads beside the others; of the first four each drawn sample needs a value.
NEEDED = ("open", "shown", "mu", "sigma")
COLUMNS = (*NEEDED, "predictions", "scene", "user_id")
# What the learner sees of them.
ARRAYS = ("predictions", "open", "shown", "mu", "sigma", "scene", "user")
_NO_NUMBER = np.uint16(0x7C00)


@dataclass(frozen=True)
class ReplayShape:
    """How wide a sample's columns of replay are.

    Attributes:
        parameters: M; candidates: N, the most of a sample; page: L, the longest; scenes: of the vocabulary.
    """

    parameters: int
    candidates: int
    page: int
    scenes: tuple[str, ...]

    @property
    def row_bytes(self) -> int:
        """Bytes of a sample."""
        return 2 * self.parameters * self.candidates + self.candidates + 2 * self.page + 8 * self.parameters + 16


class ReplayTotals:
    """What is counted in one reading of all samples.

    Attributes:
        lacking: drawn samples of which replay does not know all that it needs.
        candidates, page: the most of a sample.
    """

    def __init__(self) -> None:
        self.lacking, self.candidates, self.page = 0, 0, 0

    def add(self, table: pa.Table, drawn: NDArray[np.bool_]) -> None:
        """Counts some samples; a table without the columns lacks them in every row."""
        if not set(NEEDED) <= set(table.column_names):
            self.lacking += int(drawn.sum())
            return
        known = np.logical_and.reduce([table[name].is_valid().to_numpy() for name in NEEDED])
        self.lacking += int((drawn & ~known).sum())
        self.candidates = max(self.candidates, _longest(table["open"]))
        self.page = max(self.page, _longest(table["shown"]))


def _longest(column: pa.ChunkedArray) -> int:
    return int(pc.max(pc.list_value_length(column)).as_py() or 0)


def replay_arrays(table: pa.Table, shape: ReplayShape) -> dict[str, NDArray[Any]]:
    """ARRAYS of n samples.

    Returns:
        predictions: float16[n, M, N]; open: bool[n, N]; both 0 behind a sample's last candidate, and where it has none.
        shown: int16[n, L], −1 behind the end; mu, sigma: float32[n, M], 0 and 1 where they are not known.
        scene: int64[n], position among the vocabulary's scenes, 0 where these are any.
        user: int64[n], equal for the samples of one user.

    Raises:
        InvalidFieldError: widths that do not fit each other.
    """
    is_open, shown = (Lists.of(_whole(table[name])) for name in ("open", "shown"))
    every = np.arange(table.num_rows)
    places = shown.padded(every, shape.page, -1).astype(np.int16)
    wrong = places >= is_open.length[:, None]
    require(not wrong.any(), "samples.shown", places[wrong][:1].tolist(), "positions of the sample's candidates")
    return {
        "predictions": _predictions(table["predictions"], is_open.length, shape),
        "open": is_open.padded(every, shape.candidates, False).astype(bool), "shown": places,
        "mu": _matrix(table["mu"], shape.parameters, 0.0), "sigma": _matrix(table["sigma"], shape.parameters, 1.0),
        "scene": _scene(table["scene"], shape.scenes), "user": _user(table)}


def _predictions(column: pa.ChunkedArray, count: NDArray[np.int64], shape: ReplayShape) -> NDArray[np.float16]:
    result = np.empty((len(count), shape.parameters, shape.candidates), np.float16)
    first = 0
    for chunk in column.chunks:  # each is copied once, straight to its place
        rows = slice(first, first + len(chunk))
        _fill(result[rows], Lists.of(chunk), count[rows])
        first += len(chunk)
    return result


def _fill(result: NDArray[np.float16], values: Lists, count: NDArray[np.int64]) -> None:
    """Writes the predictions of n samples to [n, M, N]."""
    _, parameters, width = result.shape
    wrong = values.length != parameters * count
    require(not wrong.any(), "samples.predictions", values.length[wrong][:1].tolist(),
            f"{parameters} numbers for each of {count[wrong][:1].tolist()} candidates")
    half = values.values.astype(np.float16, copy=False)
    # All ones in the exponent; numpy looks at one half at a time.
    require(not bool((half.view(np.uint16) & _NO_NUMBER == _NO_NUMBER).any()), "samples.predictions",
            "nan or infinity", "finite numbers")
    if (count == width).all():
        result[:] = half.reshape(result.shape)
        return
    result[:] = 0.0
    for some in np.unique(count):
        rows = np.flatnonzero(count == some)
        flat = half[values.start[rows, None] + np.arange(parameters * some)]
        result[rows, :, :some] = flat.reshape(len(rows), parameters, some)


def _matrix(column: pa.ChunkedArray, width: int, absent: float) -> NDArray[np.float32]:
    result = np.full((len(column), width), absent, np.float32)
    known = column.is_valid().to_numpy()
    result[known] = _whole(column).drop_null().flatten().to_numpy(zero_copy_only=False).reshape(-1, width)
    return result


def _scene(column: pa.ChunkedArray, scenes: tuple[str, ...]) -> NDArray[np.int64]:
    if not pa.types.is_string(column.type):
        return np.asarray(column.to_numpy(), np.int64)
    place = pc.fill_null(pc.index_in(column, value_set=pa.array(scenes, pa.string())), 0)
    return np.asarray(place.to_numpy(), np.int64)


def _user(table: pa.Table) -> NDArray[np.int64]:
    """A hash of the user's id; pandas' has a fixed key, so that it is the same in every window, run and worker."""
    if "user" in table.column_names:
        return np.asarray(table["user"].to_numpy(), np.int64)
    users = _whole(pc.fill_null(table["user_id"], "")).dictionary_encode()
    names = users.dictionary.to_numpy(zero_copy_only=False).astype(object)
    import pandas as pd

    hashed = (pd.util.hash_array(names, categorize=False) >> np.uint64(1)).astype(np.int64)
    return np.asarray(hashed[users.indices.to_numpy()], np.int64)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)


def shape_of(columns: Mapping[str, NDArray[Any]], vocabulary: Vocabulary) -> ReplayShape | None:
    """Of samples in memory; None where these have no candidates."""
    if "predictions" not in columns:
        return None
    return ReplayShape(vocabulary.action_size, columns["open"].shape[1], columns["shown"].shape[1], vocabulary.scenes)


def to_arrow(columns: Mapping[str, NDArray[Any]]) -> dict[str, pa.Array]:
    """Columns of a table that `replay_arrays` reads, from what it gives."""
    return {name: pa.array(values) if values.ndim == 1 else
            pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), int(np.prod(values.shape[1:])))
            for name, values in columns.items() if name in ARRAYS}
