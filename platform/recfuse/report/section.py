"""A section of a page: one figure, what it shows, and the job that measures it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure

Table = tuple[Sequence[str], list[list[str]]]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a section says on one matter, below its figure.

    Attributes:
        title: its heading; sentence: on what it is.
        alarms: sentences that nobody should miss; notes: other sentences.
        table: columns and cells; a row that is too short ends with a cell over all the rest.
    """

    title: str
    sentence: str
    alarms: Sequence[str]
    notes: Sequence[str]
    table: Table


@dataclass(frozen=True)
class Section:
    """One figure of the page.

    Attributes:
        name: its id; title: its heading.
        sentence: on what the figure shows.
        job: that measures it.
        draw: the page's data → the figure, None where nothing was measured.
        rows: the page's data → columns and cells of the table below it, no cells where nothing was measured.
        parts: the page's data → matters that follow the figure, each with its own table.
        chapter: of the page, to which it belongs; sections of a chapter follow each other.
    """

    name: str
    title: str
    sentence: str
    job: str
    draw: Callable[[Any], Figure | None]
    rows: Callable[[Any], Table] | None = None
    parts: Callable[[Any], list[Part]] | None = None
    chapter: str = ""
