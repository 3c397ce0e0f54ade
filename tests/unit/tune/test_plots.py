"""The report of a sweep: every figure is drawn, names its axes, and says what was found."""

from __future__ import annotations

import numpy as np

from recfuse.evaluation.report import render
from tune.frontier import Point, cheapest
from tune.judges import Worth
from tune.plots import SECTIONS, SweepData, discount_pairs, lambda_series


def point(number: int, watch: float, like: float, **choices) -> Point:
    named = {name.replace("__", "."): value for name, value in choices.items()}
    return Point(f"k{number}", number, named, {
        "watch_time": Worth(watch, watch - 0.01, watch + 0.01), "like": Worth(like, like - 0.02, like + 0.02)})


POINTS = [
    point(1, 0.10, 0.02), point(2, 0.08, 0.03, discounts__like=0.95), point(3, 0.02, 0.05, discounts__watch_time=0.0),
    *(point(10 + 2 * k + twin, 0.2 - 0.03 * k, 0.01 * k, discounts__short_term=gamma, multipliers__total=10.0 ** k)
      for k in range(-2, 3) for twin, gamma in enumerate((0.0, 0.95))),
]
OWN = {"watch_time": 0.95, "like": 0.0, "long_term": 0.95, "short_term": 0.0}


def data(points=POINTS, **changes):
    best = cheapest(points, "watch_time", {"like": 0.0})
    return SweepData(**{
        "points": points, "objective": "watch_time", "guarded": ("like",), "floors": {"like": 0.0},
        "winner": best.key if best else "",
        "relative": True, "discounts": OWN, "subject": {"winner": "<none>"},
        "rows": [{"key": "k1", "number": 1, "status": "failed", "reason": "a < b", "seconds": 2.0}], **changes})


def test_discounts_are_compared_where_nothing_else_differs():
    pairs = discount_pairs(POINTS, OWN)
    assert [(a.number, b.number) for a, b in pairs["discounts.like"]] == [(1, 2)]
    assert [(a.number, b.number) for a, b in pairs["discounts.watch_time"]] == [(3, 1)]
    assert len(pairs["discounts.short_term"]) == 5
    assert all(a.choices["multipliers.total"] == b.choices["multipliers.total"]
               for a, b in pairs["discounts.short_term"])


def test_a_series_over_lambda_keeps_all_else_equal_and_is_sorted():
    series = lambda_series(POINTS)
    assert set(series) == {"γ short_term=0", "γ short_term=0.95"}
    assert all(np.all(np.diff([one.choices["multipliers.total"] for one in some]) > 0) for some in series.values())


def test_the_page_holds_every_figure_and_escapes_text():
    page = render(data(), SECTIONS, "Recfuse sweep")
    assert page.count("data:image/svg+xml;base64,") == len(SECTIONS)
    assert "Not measured" not in page
    assert "&lt;none&gt;" in page
    assert "a &lt; b" in page
    assert "yes, the cheapest" in page
    assert "http" not in page.split("</head>")[1].replace("http://www.w3.org", "")


def test_a_sweep_without_finished_trials_still_has_a_page():
    page = render(data(points=[], rows=[]), SECTIONS, "Recfuse sweep")
    assert page.count("Not measured in this run") == len(SECTIONS)
