"""Moments of samples in one reading: what networks are normalised by, and rewards divided by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.config import require
from recfuse.stats.gaussian import Range, unsquash_array

# A column that varies by less than the rounding of its values is constant.
_ROUNDING = float(np.finfo(np.float32).eps)
# A constant reward up to this size stays as it is; a larger one is divided by its size, or its square would overflow.
_LARGE = 1e6
# Rows in double that stay in the cache; of a whole batch they would be hundreds of fresh megabytes.
_CACHED_ROWS = 1024


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


class Sums:
    """Sums for mean and standard deviation, shifted by the first row so that large means lose no digits."""

    def __init__(self) -> None:
        self._shift: NDArray[np.float64] | None = None
        self._first: NDArray[np.float64] = np.zeros(1)
        self._second: NDArray[np.float64] = np.zeros(1)

    def add(self, values: NDArray[np.float32]) -> None:
        """Adds rows [n, width], n ≥ 0."""
        if not len(values):
            return
        if self._shift is None:
            self._shift = values[0].astype(np.float64)
        for start in range(0, len(values), _CACHED_ROWS):
            shifted = values[start : start + _CACHED_ROWS] - self._shift
            self._first = self._first + shifted.sum(0)
            self._second = self._second + np.einsum("nk,nk->k", shifted, shifted)

    def moments(self, rows: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each column; 1 for the latter where a column is constant."""
        assert self._shift is not None
        mean = self._first / rows
        std = np.sqrt(np.maximum(self._second / rows - mean**2, 0.0))
        center = self._shift + mean
        # Told by the values' own size, because σ 3e-7 and rewards of 1e-9 vary too. A constant column carries nothing;
        # dividing it by 1 leaves it alone.
        std = np.where(std > _ROUNDING * np.abs(center), std, 1.0)
        return tuple(center.tolist()), tuple(std.tolist())

    def reward_moments(self, rows: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """The same; of a constant column that is too large to be squared, its size in place of 1."""
        center, std = self.moments(rows)
        return center, tuple(abs(mean) if width == 1.0 and abs(mean) > _LARGE else width
                             for mean, width in zip(center, std, strict=True))


class Totals:
    """What is counted in one reading of all samples.

    Attributes:
        rows: samples; drawn: of which the action was drawn; ends: of sessions.
        lacking: drawn samples without the density of their action.
    """

    def __init__(self, vocabulary: Vocabulary, action_range: Range | None = None) -> None:
        self._behaviours, self._action_range = vocabulary.behaviours, action_range
        self._sums = {name: Sums() for name in ("state", "action", "feedback")}
        self.rows, self.drawn, self.ends, self.lacking = 0, 0, 0.0, 0

    def add(self, columns: dict[str, NDArray[np.float32]], drawn: NDArray[np.bool_]) -> None:
        """Checks and counts some samples.

        Raises:
            InvalidFieldError: a value that is no number, or an action outside its range.
        """
        columns["feedback"] = rewards(columns["feedback"], self._behaviours)
        # Nobody reads the density of an action that was not drawn.
        density = columns["action_logp"] if drawn.all() else columns["action_logp"][drawn]
        self.lacking += int(np.isnan(density).sum())
        for name, values in columns.items():
            finite = np.isfinite(values) if name != "action_logp" else ~np.isinf(density)
            require(bool(finite.all()), f"samples.{name}", "nan or infinity", "finite numbers")
        if self._action_range is not None:
            columns["action"] = _before_squashing(columns["action"], self._action_range)
        if not drawn.all():  # policies keep within the spread of what was drawn
            columns["action"] = columns["action"][drawn]
        for name, total in self._sums.items():
            total.add(columns[name])
        self.rows, self.drawn = self.rows + len(columns["done"]), self.drawn + int(drawn.sum())
        self.ends += float(columns["done"].sum(dtype=np.float64))

    def moments(self) -> dict[str, tuple[tuple[float, ...], tuple[float, ...]]]:
        """Mean and standard deviation of states, of actions that were drawn, and of rewards."""
        return {"state": self._sums["state"].moments(self.rows), "action": self._sums["action"].moments(self.drawn),
                "feedback": self._sums["feedback"].reward_moments(self.rows)}


def _before_squashing(action: NDArray[np.float32], bounds: Range) -> NDArray[np.float32]:
    low, high = bounds
    outside = action[(action < low) | (action > high)]
    require(not outside.size, "samples.action", float(outside[0]) if outside.size else None,
            f"numbers within network.action_range {bounds}")
    return unsquash_array(action, bounds).astype(np.float32)
