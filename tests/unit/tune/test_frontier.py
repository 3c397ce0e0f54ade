"""Domination, floors, and the cheapest point that keeps them, on cases worked out by hand."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recfuse.tune.frontier import cheapest, closest, finished_points, frontier, keeps, non_dominated
from recfuse.tune.ledger import FAILED, FINISHED, STOPPED


def rows():
    def one(number, watch, like, low, status=FINISHED):
        return {"key": f"k{number}", "number": number, "status": status, "config.multipliers.total": 10.0 ** number,
                "config.network.hidden": None,
                "watch_time": watch, "watch_time_low": watch - 0.01, "watch_time_high": watch + 0.01,
                "like": like, "like_low": low, "like_high": like + 0.01}
    return [one(1, 0.30, -0.10, -0.12), one(2, 0.20, 0.02, 0.01), one(3, 0.10, 0.05, 0.04), one(4, 0.05, 0.01, 0.0),
            one(5, 0.25, 0.01, -0.02), one(6, 0.90, 0.9, 0.9, FAILED), one(7, 0.90, 0.9, 0.9, STOPPED),
            one(8, 0.9, 0.9, 0.9) | dict.fromkeys(("watch_time", "watch_time_low", "watch_time_high"))]


MEASURES = ["watch_time", "like"]


def test_only_finished_trials_with_an_estimate_are_points():
    found = finished_points(rows(), MEASURES)
    assert [point.number for point in found] == [1, 2, 3, 4, 5]
    assert dict(found[0].choices) == {"multipliers.total": 10.0}


def test_the_frontier_is_what_no_other_dominates():
    assert [point.number for point in frontier(finished_points(rows(), MEASURES), MEASURES)] == [1, 2, 3, 5]
    assert frontier([], MEASURES) == []


def test_the_cheapest_keeps_the_floor_by_the_lower_end_and_has_most_of_the_objective():
    found = finished_points(rows(), MEASURES)
    best = cheapest(found, "watch_time", {"like": 0.0})
    assert best is not None
    assert best.number == 2, "5 has more watch time, but its interval reaches below the floor"
    assert cheapest(found, "watch_time", {"like": 0.1}) is None
    nearest = closest(found, {"like": 0.1})
    assert nearest is not None
    assert nearest.number == 3
    assert cheapest(found, "watch_time", {}).number == 1


def test_a_floor_is_kept_at_its_very_value():
    found = finished_points(rows(), MEASURES)
    assert keeps(found[3], {"like": 0.0})


@given(arrays(np.float64, st.tuples(st.integers(1, 12), st.integers(1, 3)), elements=st.integers(0, 4).map(float)))
def test_every_dominated_point_has_a_dominating_one_on_the_frontier(values):
    kept = non_dominated(values)
    assert kept.any()
    for value in values[~kept]:
        assert any((best >= value).all() and (best > value).any() for best in values[kept])
    for value in values[kept]:
        assert not any((other >= value).all() and (other > value).any() for other in values)
