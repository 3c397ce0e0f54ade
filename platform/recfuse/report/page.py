"""One self-contained HTML page on a run: plain values in, a file out that opens without a network.

Every figure has axes with units and one sentence on what it shows. What was not measured is said to be missing, with
the job that measures it. The page itself is `templates/page.html`, which escapes whatever it is given.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from recfuse.evaluation.files import write_whole
from recfuse.report.data import ReportData
from recfuse.report.questions import alarms
from recfuse.report.section import Section
from recfuse.report.sections import SECTIONS
from recfuse.report.sentences import WORDS, summary
from recfuse.report.style import data_uri, styled
from recfuse.report.verdict import verdict


def write_report(path: str | Path, data: Any, sections: Sequence[Section] = SECTIONS,
                 title: str = "Recfuse report") -> Path:
    """Writes the page, whole or not at all, and returns its path; see `render`."""
    path = Path(path)
    write_whole(path, render(data, sections, title))
    return path


def render(data: Any, sections: Sequence[Section] = SECTIONS, title: str = "Recfuse report") -> str:
    """The page as a string.

    Args:
        data: what the sections draw, with a mapping `subject` of title lines; ReportData for the sections of a run,
            which are the default.
    """
    with styled():
        parts = [_part(section, data) for section in sections]
    of_run = isinstance(data, ReportData)
    return _templates().get_template("page.html").render(
        title=title, subject=data.subject, sections=parts, summary=summary(data) if of_run else [],
        alarms=alarms(data) if of_run else [],
        verdict=verdict(data) if of_run else None,
        words=WORDS if of_run else {})


def _part(section: Section, data: Any) -> dict[str, Any]:
    """What the template shows of a section."""
    figure = section.draw(data)
    columns, rows = section.rows(data) if section.rows is not None else ((), [])
    parts = section.parts(data) if section.parts is not None else []
    return {"name": section.name, "title": section.title, "sentence": section.sentence, "job": section.job,
            "chapter": section.chapter,
            "parts": parts, "image": None if figure is None else data_uri(figure), "columns": columns, "rows": rows}


@cache
def _templates() -> Environment:
    return Environment(loader=PackageLoader("recfuse.report"), autoescape=True, undefined=StrictUndefined,
                       trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True)
