"""The report of a sweep: every figure is drawn, names its axes, and says what was found."""

from __future__ import annotations

import numpy as np

from recfuse.report.page import render
from recfuse.tune.frontier import Point, cheapest
from recfuse.tune.judges import Worth
from recfuse.tune.plots import SECTIONS, SweepData, discount_pairs, lambda_series, sections


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


def test_what_no_trial_varied_has_no_figure():
    assert [one.name for one in sections(data())] == [one.name for one in SECTIONS]
    scorer = [point(k, 0.6, 0.5, model__experts=k) for k in (1, 8)]
    assert [one.name for one in sections(data(points=scorer))] == ["frontier", "parallel", "trials"]
    rates = [point(k, 0.6, 0.5, multipliers__total=k) for k in (1, 8)]
    assert "lambdas" in [one.name for one in sections(data(points=rates))]


def test_a_sweep_without_finished_trials_still_has_a_page():
    page = render(data(points=[], rows=[]), SECTIONS, "Recfuse sweep")
    assert page.count("Not measured in this run") == len(SECTIONS)


def test_trials_that_differ_in_more_than_lambda_stand_alone():
    loose = [point(k, 0.01 * k, 0.02, multipliers__total=0.1 * k, network__hidden=f"[{k}]") for k in range(1, 5)]
    draw = next(section for section in SECTIONS if section.name == "lambdas").draw
    assert lambda_series(loose) == {}
    axes = draw(data(points=loose)).axes[0]
    assert axes.get_legend_handles_labels()[1] == ["other choices differ too"]
    assert draw(data(points=loose[:1])) is None


def test_side_by_side_each_field_is_an_axis_with_its_own_ends():
    of = {one.key: {"discounts.like": 0.95 if one.number == 2 else 0.0, "multipliers.total": one.choices.get(
        "multipliers.total", 0.5)} for one in POINTS}
    axes = next(section for section in SECTIONS if section.name == "parallel").draw(data(fields=of)).axes[0]
    assert len(axes.lines) == len(POINTS)
    shown = dict(zip([tick.get_text() for tick in axes.get_xticklabels()], zip(*[iter(axes.texts)] * 2, strict=True),
                     strict=True))
    assert {name: [one.get_text() for one in ends] for name, ends in shown.items() if name in ("Λ", "γ like")} == {
        "Λ": ["0.01", "100"], "γ like": ["0", "0.95"]}


def test_lists_stand_in_the_order_of_their_numbers():
    sizes = ["[128, 128]", "[32]", "[64, 64]", "[]"]
    some = [point(k, 0.01 * k, 0.02, network__hidden=size) for k, size in enumerate(sizes)]
    axes = next(section for section in SECTIONS if section.name == "parallel").draw(data(points=some)).axes[0]
    assert [one.get_text() for one in axes.texts[:2]] == ["[]", "[128, 128]"]
    assert sorted(float(line.get_ydata()[0]) for line in axes.lines) == [0, 1 / 3, 2 / 3, 1]
