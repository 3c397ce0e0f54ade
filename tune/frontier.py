"""What a sweep has found: the points that no other dominates, and the cheapest one that keeps every floor."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recfuse.tune.judges import Worth
from recfuse.tune.ledger import FINISHED, Row
from recfuse.tune.space import label

CONFIG = "config."


@dataclass(frozen=True)
class Point:
    """A finished trial: what it chose, and what that is worth by measure."""

    key: str
    number: int
    choices: Mapping[str, Any]
    worth: Mapping[str, Worth]

    @property
    def name(self) -> str:
        """For tables: its number and choices."""
        return f"#{self.number} {label(dict(self.choices))}"


def finished_points(rows: Sequence[Row], measures: Sequence[str], prefix: str = "") -> list[Point]:
    """The finished trials that have an estimate of every measure."""
    def worth(row: Row, name: str) -> Worth:
        return Worth(*(math.nan if (value := row.get(f"{prefix}{name}{suffix}")) is None else float(value)
                       for suffix in ("", "_low", "_high")))
    finished = [Point(row["key"], int(row["number"]),
                      {name[len(CONFIG):]: value for name, value in row.items() if name.startswith(CONFIG)
                       and value is not None}, {name: worth(row, name) for name in measures})
                for row in rows if row["status"] == FINISHED]
    return [point for point in finished if all(math.isfinite(worth.estimate) for worth in point.worth.values())]


def non_dominated(values: NDArray[np.float64]) -> NDArray[np.bool_]:
    """bool[n]: no other row of `values` [n, measures] is at least as large everywhere and larger somewhere."""
    others, each = values[None, :, :], values[:, None, :]
    dominated = np.all(others >= each, axis=2) & np.any(others > each, axis=2)
    return np.asarray(~np.any(dominated, axis=1))


def frontier(points: Sequence[Point], measures: Sequence[str]) -> list[Point]:
    """The points that no other dominates, by their estimates."""
    if not points:
        return []
    keep = non_dominated(np.array([[point.worth[name].estimate for name in measures] for point in points]))
    return [point for point, kept in zip(points, keep, strict=True) if kept]


def keeps(point: Point, floors: Mapping[str, float]) -> bool:
    """Whether the lower end of every interval is at or above the behaviour's floor."""
    return all(point.worth[name].low >= floor for name, floor in floors.items())


def shortfall(point: Point, floors: Mapping[str, float]) -> float:
    """By how much the worst behaviour's lower end misses its floor; ≤ 0 where all are kept."""
    return max((floor - point.worth[name].low for name, floor in floors.items()), default=0.0)


def cheapest(points: Sequence[Point], objective: str, floors: Mapping[str, float]) -> Point | None:
    """The point that keeps every floor at the least cost: with the most of the objective for sure, by the lower end of
    its interval. None where none does."""
    kept = [point for point in points if keeps(point, floors)]
    return max(kept, key=lambda point: point.worth[objective].low, default=None)


def closest(points: Sequence[Point], floors: Mapping[str, float]) -> Point | None:
    """The point whose worst shortfall is least."""
    return min(points, key=lambda point: shortfall(point, floors), default=None)
