"""A section of a page: one figure, what it shows, and the job that measures it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

Table = tuple[Sequence[str], list[list[str]]]


@dataclass(frozen=True)
class Section:
    """One figure of the page.

    Attributes:
        name: its id; title: its heading.
        sentence: on what the figure shows.
        job: that measures it.
        draw: the page's data → the figure, None where nothing was measured.
        rows: the page's data → columns and cells of the table below it, no cells where nothing was measured.
    """

    name: str
    title: str
    sentence: str
    job: str
    draw: Callable[[Any], Figure | None]
    rows: Callable[[Any], Table] | None = None
