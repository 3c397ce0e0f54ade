"""Figures of who gains and of what is traded: data in, a figure out, None where nothing was measured."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure

from recfuse.report.data import Plain, ReportData, number, numbers
from recfuse.report.section import Table
from recfuse.report.style import COLOURS, GREY


def frontier(data: ReportData) -> Figure | None:
    """The arms of the simulated test: the first measure against the mean of the others, in percent."""
    if data.ab_test is None or len(data.ab_test["measures"]) < 2:
        return None
    arms = data.ab_test["arms"]
    points = np.array([_trade(arm) for arm in arms])
    figure = Figure(figsize=(8, 3.6))
    axes = figure.subplots()
    for place, (arm, (x, y)) in enumerate(zip(arms, points, strict=True)):
        axes.plot([x], [y], "o", ms=7, color=COLOURS[place % len(COLOURS)])
        axes.annotate(arm["name"], (x, y), (7, 5), textcoords="offset points")
    best = points[[not ((points >= point).all(1) & (points > point).any(1)).any() for point in points]]
    best = best[np.argsort(best[:, 0])]
    axes.plot(best[:, 0], best[:, 1], "-", color=GREY, lw=.9, zorder=0)
    axes.axhline(0, color=GREY, lw=.6, ls=":")
    axes.axvline(0, color=GREY, lw=.6, ls=":")
    axes.margins(x=.2, y=.2)
    first, base = data.ab_test["measures"][0], arms[0]["name"]
    axes.set(xlabel=f"{first} per user, difference to {base} (%)", ylabel="mean of the other measures (%)")
    return figure


def _trade(arm: Plain) -> tuple[float, float]:
    """The change of the first measure and the mean change of those of the others that are known, in percent."""
    first, *others = 100 * numbers(arm["estimate"])
    known = np.array(others)[np.isfinite(others)]
    return float(first), float(known.mean()) if len(known) else 0.0


def segments(data: ReportData) -> Figure | None:
    """The change of the first behaviour per group of requests."""
    known = [group for group in data.segments if not group["refused"] and group["change"][0] is not None]
    if len(known) < 2:  # everybody alone is no comparison
        return None
    figure = Figure(figsize=(8, .9 + .27 * len(known)))
    axes = figure.subplots()
    for place, group in enumerate(known[::-1]):
        low, middle, high = (100 * number(group[key][0]) for key in ("low", "change", "high"))
        sure = low > 0 or high < 0
        colour = COLOURS[0] if middle >= 0 else COLOURS[1]
        axes.plot([low, high], [place, place], color=colour, lw=1.6)
        axes.plot([middle], [place], "o", ms=5, color=colour, mfc=colour if sure else "white")
    axes.set_yticks(range(len(known)), [_name(group) for group in known[::-1]])
    axes.axvline(0, color=GREY, lw=.8)
    first = ((data.off_policy or {}).get("behaviours") or ["long-term behaviour"])[0]
    axes.set_xlabel(f"{first} per request, change from the group's log (%)")
    return figure


def segment_rows(data: ReportData) -> Table:
    """A row a group: every behaviour's change, or why there is none."""
    rows = []
    for group in data.segments:
        cells = [f"{100 * number(change):+.1f}% [{100 * number(low):+.1f}, {100 * number(high):+.1f}]"
                 for change, low, high in zip(group["change"], group["low"], group["high"], strict=True)]
        rows.append([_name(group), f"{group['requests']:,}",
                     *([f"no answer: {group['refused']}"] if group["refused"] else cells)])
    return ["group", "requests", *((data.off_policy or {}).get("behaviours") or ())], rows


def _name(group: Plain) -> str:
    return f"{group['feature']} {group['value']}".strip()
