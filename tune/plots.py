"""Figures of a sweep, for the HTML report: plain values in, figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from recfuse.report.page import write_report
from recfuse.report.section import Section
from recfuse.report.style import COLOURS
from recfuse.tune.frontier import Point, frontier, keeps
from recfuse.tune.space import DISCOUNTS, MULTIPLIERS, TOTAL, decode, label, symbol

_JOB = "python -m tune.sweep"
# Discounts that are compared: none, and that of the long-term behaviours.
_LOW, _HIGH = 0.0, 0.95


@dataclass(frozen=True, kw_only=True)
class SweepData:
    """What the figures draw.

    Attributes:
        points: finished trials; objective, guarded: measures.
        floors: of the guarded measures; winner: key of the point that keeps them at the least cost, "" for none.
        relative: worths are changes, shown in percent.
        fields: trial's key → value of every field that any trial chose.
        discounts: of the config, by behaviour, and by kind where its behaviours share one.
        last: the winner's worth on users that no trial saw.
        subject: title lines.
        rows: of the ledger, for the table of all trials.
    """

    points: Sequence[Point]
    objective: str
    guarded: Sequence[str]
    floors: Mapping[str, float]
    winner: str
    relative: bool
    fields: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    discounts: Mapping[str, float] = field(default_factory=dict)
    last: Mapping[str, Sequence[float]] = field(default_factory=dict)
    subject: Mapping[str, str] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] = ()

    @property
    def measures(self) -> list[str]:
        return [self.objective, *self.guarded]

    @property
    def scale(self) -> float:
        return 100.0 if self.relative else 1.0

    def axis(self, name: str) -> str:
        """Label of a measure's axis."""
        return f"{name}, change (%)" if self.relative else f"{name} (AUC)"

    def values(self, name: str, points: Sequence[Point] | None = None) -> np.ndarray:
        """[3, n]: estimate, low, high."""
        points = self.points if points is None else points
        return self.scale * np.array([point.worth[name] for point in points], float).reshape(-1, 3).T


def text(worth: Sequence[float], relative: bool) -> str:
    """An estimate with its interval, for tables."""
    if relative:
        return f"{100 * worth[0]:+.1f}% [{100 * worth[1]:+.1f}, {100 * worth[2]:+.1f}]"
    return f"{worth[0]:.4f} [{worth[1]:.4f}, {worth[2]:.4f}]"


def _whiskers(values: np.ndarray) -> np.ndarray:
    return np.nan_to_num(np.stack([values[0] - values[1], values[2] - values[0]]).clip(min=0.0))


def _frontier(data: SweepData) -> Figure | None:
    if not data.points or not data.guarded:
        return None
    across = min(2, len(data.guarded))
    down = -(-len(data.guarded) // across)
    figure = Figure(figsize=(8, 3.1 * down))
    for panel, name in enumerate(data.guarded):
        axes = figure.add_subplot(down, across, panel + 1)
        best = frontier(data.points, [data.objective, name])
        x, y = data.values(name), data.values(data.objective)
        axes.errorbar(x[0], y[0], xerr=_whiskers(x), yerr=_whiskers(y), fmt="o", ms=3, lw=.6, color="#999999",
                      label="trials")
        best = sorted(best, key=lambda point: point.worth[name].estimate)
        bx, by = data.values(name, best)[0], data.values(data.objective, best)[0]
        axes.plot(bx, by, "o-", ms=5, color=COLOURS[0], label="no other dominates")
        for point, left, up in zip(best, bx, by, strict=True):
            axes.annotate(f"#{point.number}", (left, up), textcoords="offset points", xytext=(4, 4), fontsize=7)
        chosen = [point for point in data.points if point.key == data.winner]
        if chosen:
            axes.plot(data.values(name, chosen)[0], data.values(data.objective, chosen)[0], "*", ms=13,
                      color=COLOURS[1], label="cheapest that keeps every floor")
        if name in data.floors:
            axes.axvline(data.scale * data.floors[name], color="#666", ls="--", lw=.8, label="floor")
        axes.set(xlabel=data.axis(name), ylabel=data.axis(data.objective))
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    return figure


def _frontier_rows(data: SweepData) -> tuple[Sequence[str], list[list[str]]]:
    best = frontier(data.points, data.measures)
    return ["trial", *data.measures, "keeps every floor"], [
        [point.name, *(text(point.worth[name], data.relative) for name in data.measures),
         ("yes, the cheapest" if point.key == data.winner else "yes") if keeps(point, data.floors) else "no"]
        for point in sorted(best, key=lambda point: -point.worth[data.objective].estimate)]


def discount_pairs(points: Sequence[Point], base: Mapping[str, float]) -> dict[str, list[tuple[Point, Point]]]:
    """Discount → pairs of trials that differ in it alone: 0 and 0.95.

    Args:
        base: the discounts of the config, which a trial without the choice has.
    """
    pairs: dict[str, list[tuple[Point, Point]]] = {}
    for name in sorted({name for point in points for name in point.choices if name.startswith(DISCOUNTS + ".")}):
        value = {point.key: point.choices.get(name, base.get(name.removeprefix(DISCOUNTS + "."))) for point in points}
        rest = {point.key: {key: choice for key, choice in point.choices.items() if key != name} for point in points}
        of_name = [(low, high) for low in points for high in points
                   if value[low.key] == _LOW and value[high.key] == _HIGH and rest[low.key] == rest[high.key]]
        if of_name:
            pairs[name] = of_name
    return pairs


def _discounts(data: SweepData) -> Figure | None:
    pairs = discount_pairs(data.points, data.discounts)
    if not pairs:
        return None
    measures = data.measures
    figure = Figure(figsize=(8, 1.0 + .55 * len(pairs) * max(1, len(measures)) / 2))
    axes = figure.subplots()
    place, ticks = 0.0, []
    for name, of_name in pairs.items():
        middle = place + (len(measures) - 1) / 2
        ticks.append((middle, f"{name.removeprefix(DISCOUNTS + '.')}\npairs: {len(of_name)}"))
        for index, measure in enumerate(measures):
            change = [data.scale * (high.worth[measure].estimate - low.worth[measure].estimate)
                      for low, high in of_name]
            axes.plot([min(change), max(change)], [place, place], color=COLOURS[index % len(COLOURS)], lw=1)
            axes.plot(float(np.mean(change)), place, "o", ms=5, color=COLOURS[index % len(COLOURS)],
                      label=measure if place == index else None)
            place += 1
        place += 1
    axes.axvline(0, color="#666", lw=.8)
    axes.set_yticks([tick for tick, _ in ticks], [name for _, name in ticks])
    axes.invert_yaxis()
    unit = "percentage points" if data.relative else "AUC"
    axes.set_xlabel(f"γ = {_HIGH} minus γ = {_LOW:g} ({unit}; dot: mean of the pairs, line: their range)")
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    return figure


def _discount_rows(data: SweepData) -> tuple[Sequence[str], list[list[str]]]:
    rows = [[name, f"#{low.number} → #{high.number}",
             *(f"{text(low.worth[measure], data.relative)} → {text(high.worth[measure], data.relative)}"
               for measure in data.measures)]
            for name, pairs in discount_pairs(data.points, data.discounts).items() for low, high in pairs]
    return ["discount, 0 → 0.95", "trials", *data.measures], rows


def lambda_series(points: Sequence[Point]) -> dict[str, list[Point]]:
    """What else was chosen → the trials over Λ in its order, where there are at least two."""
    series: dict[str, list[Point]] = {}
    for point in points:
        if TOTAL in point.choices:
            rest = {key: value for key, value in sorted(point.choices.items()) if key != TOTAL}
            series.setdefault(label(rest), []).append(point)
    return {name: sorted(members, key=lambda point: float(point.choices[TOTAL]))
            for name, members in series.items() if len(members) > 1}


def _lambdas(data: SweepData) -> Figure | None:
    series = lambda_series(data.points)
    joined = {point.key for members in series.values() for point in members}
    alone = [point for point in data.points if TOTAL in point.choices and point.key not in joined]
    if len(alone) < 2 and not series:
        return None
    measures = data.measures
    down = -(-len(measures) // 2)
    figure = Figure(figsize=(8, 2.5 * down))
    for panel, measure in enumerate(measures):
        axes = figure.add_subplot(down, 2, panel + 1)
        for index, (name, members) in enumerate(series.items()):
            x, y = [float(point.choices[TOTAL]) for point in members], data.values(measure, members)
            colour = COLOURS[index % len(COLOURS)]
            axes.plot(x, y[0], "o-", ms=4, color=colour, label=name)
            axes.fill_between(x, y[1], y[2], color=colour, alpha=.15, lw=0)
        if alone:
            y = data.values(measure, alone)
            axes.errorbar([float(point.choices[TOTAL]) for point in alone], y[0], yerr=_whiskers(y), fmt="o", ms=3,
                          lw=.6, color="#999999", label="other choices differ too")
        if measure in data.floors:
            axes.axhline(data.scale * data.floors[measure], color="#666", ls="--", lw=.8)
        axes.set(xscale="log", xlabel="temperature Λ, the sum of all multipliers λ", ylabel=data.axis(measure))
    handles, names = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=2, frameon=False)
    return figure


def _parallel(data: SweepData) -> Figure | None:
    if len(data.points) < 2:
        return None
    columns: dict[str, np.ndarray] = {}
    ends: dict[str, tuple[str, str]] = {}
    for name in dict.fromkeys(name for point in data.points for name in point.choices):
        values = [data.fields.get(point.key, point.choices).get(name) for point in data.points]
        columns[symbol(name)], ends[symbol(name)] = _unit([decode(value) for value in values])
    for name in data.measures:
        columns[name], ends[name] = _unit(list(data.values(name)[0]))
    figure = Figure(figsize=(8, 4))
    axes = figure.subplots()
    height = columns[data.objective]
    for index in np.argsort(height):
        point = data.points[index]
        chosen = point.key == data.winner
        axes.plot(range(len(columns)), [values[index] for values in columns.values()],
                  color=COLOURS[1] if chosen else COLOURS[0], lw=2.2 if chosen else .8,
                  alpha=1.0 if chosen else .25 + .6 * float(height[index]), zorder=3 if chosen else 2)
    for place, name in enumerate(columns):
        low, high = ends[name]
        axes.text(place, -.04, low, ha="center", va="top", fontsize=7)
        axes.text(place, 1.03, high, ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(columns)), columns, rotation=25, ha="right")
    axes.tick_params(axis="x", pad=12)
    axes.set(yticks=[], ylim=(-.02, 1.02), ylabel="from lowest to highest (each axis has its own unit)")
    return figure


def _unit(values: list[Any]) -> tuple[np.ndarray, tuple[str, str]]:
    """Places in [0, 1] and what stands at the ends: numbers by size (by their logarithm where they span a decade),
    lists by their numbers, anything else by its text."""
    if all(isinstance(value, int | float) for value in values):
        numbers = np.array(values, float)
        shown = np.log(numbers) if (numbers > 0).all() and numbers.max() > 10 * numbers.min() else numbers
        span = float(np.ptp(shown)) or 1.0
        return (shown - shown.min()) / span, (f"{numbers.min():.4g}", f"{numbers.max():.4g}")
    def rank(value: Any) -> tuple[int, Any]:
        if isinstance(value, int | float):
            return 0, value
        return (1, value) if isinstance(value, list) else (2, str(value))
    order = sorted({str(value): value for value in values}.values(), key=rank)
    texts = [str(value) for value in order]
    places = np.array([order.index(value) for value in values], float)
    return places / max(len(order) - 1, 1), (texts[0], texts[-1])


def _trials(data: SweepData) -> Figure | None:
    timed = [row for row in data.rows if row.get("seconds") is not None]
    if not timed:
        return None
    figure = Figure(figsize=(8, 2.4))
    axes = figure.subplots()
    for index, status in enumerate(("finished", "stopped", "failed")):
        rows = [row for row in timed if row["status"] == status]
        if rows:
            axes.bar([row["number"] for row in rows], [row["seconds"] for row in rows], label=status,
                     color=COLOURS[(2, 4, 1)[index]])
    axes.set(xlabel="trial (number)", ylabel="time (s)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, ncols=3)
    return figure


def _trial_rows(data: SweepData) -> tuple[Sequence[str], list[list[str]]]:
    columns = list(dict.fromkeys(name for row in data.rows for name in row if name != "key"))

    def cell(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)
    return columns, [[cell(row.get(name)) for name in columns]
                     for row in sorted(data.rows, key=lambda row: row["number"])]


SECTIONS = (
    Section("frontier", "Frontier",
            "Each trial's objective against each guarded behaviour, with intervals over users that did not train; "
            "joined are the points that no other dominates on these two, by their estimates. The table has those that "
            "no other dominates on all of them.", _JOB, _frontier, _frontier_rows),
    Section("discounts", "Effect of each discount: 0 against 0.95",
            "Trials in pairs that differ in one discount alone: what the larger one changes. A change well below the "
            "width of the intervals in the table is not settled.", _JOB, _discounts, _discount_rows),
    Section("lambdas", "Effect of the multipliers λ",
            "Every measure over the temperature Λ, with its interval as a band and its floor dashed; joined are trials "
            "that differ in Λ alone. A larger Λ holds the policy closer to those of the short-term behaviours and to "
            "the logged one.",
            _JOB, _lambdas),
    Section("parallel", "All choices side by side",
            "A line per trial through its choices and what they brought; darker is more of the objective, and the "
            "thick one is the cheapest that keeps every floor.", _JOB, _parallel),
    Section("trials", "Trials", "What each trial took; the table is the ledger.", _JOB, _trials, _trial_rows),
)


def sections(data: SweepData) -> list[Section]:
    """The figures of a sweep; those of discounts and λ where it varied them."""
    varied = {name.partition(".")[0] for point in data.points for name in point.choices}
    needs = {"discounts": DISCOUNTS, "lambdas": MULTIPLIERS}
    return [section for section in SECTIONS if needs.get(section.name, "") in {*varied, ""}]


def write(path: Path, data: SweepData) -> Path:
    """Writes the report of a sweep, one self-contained HTML page, and returns its path."""
    return write_report(path, data, sections(data), "Recfuse sweep")
