"""What a log says of staying: by hand, and of exposures whose times and answers are known."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.staying import effects, within_users
from tests.unit.simulation import worlds

MINUTE = 60 * 10**6


def test_within_users_by_hand():
    """User a: x = 0, 0, 1, 1 and y = x; user b: x = 1, 1, 1, 0 and always y = 1. Less their means Σ x² is 1 + ¾ and
    Σ xy is 1, so that the slope is 4/7; the users' scores are 1 − 4/7 and −¾ · 4/7, ± 3/7, over 7/4."""
    x = np.array([0, 0, 1, 1, 1, 1, 1, 0.0])[:, None]
    y = np.array([0, 0, 1, 1, 1, 1, 1, 1.0])
    (slope,), (half,) = within_users(x, y, np.repeat(["a", "b"], 4), 1)
    assert slope == pytest.approx(4 / 7)
    assert half == pytest.approx(1.96 * np.sqrt(2) * 3 / 7 / (7 / 4))


def timed(exposures, gap):
    """The exposures with each user's rows so many microseconds [n] after the user's last one, from one day on."""
    user = exposures.column("user_id")
    order = np.argsort(user, kind="stable")
    passed = np.cumsum(gap[order])
    first = np.searchsorted(user[order], user[order])
    ts = np.empty(len(user), np.int64)
    ts[order] = 1_650_000_000 * 10**6 + passed - passed[first]
    rows = exposures.rows
    for name, column in (("ts", pa.array(ts, pa.timestamp("us", "UTC"))),
                         ("day", pa.array((ts // (86_400 * 10**6)).astype(np.int32)))):
        rows = rows.set_column(rows.schema.get_field_index(name), name, column)
    return dataclasses.replace(exposures, rows=rows)


@pytest.mark.parametrize("liked", [False, True])
def test_whom_a_like_keeps_is_seen_and_nobody_else(liked):
    """The next exposure comes in 10 minutes, or in 2 hours, at even odds; after a like always soon, where likes keep
    people: then half of them are kept by it."""
    exposures, rng = worlds.exposures()[0], np.random.default_rng(0)
    like, user = exposures.column("like") > 0, exposures.column("user_id")
    order = np.argsort(user, kind="stable")
    before = np.zeros(len(user), bool)
    before[order[1:]] = like[order[:-1]] & (user[order[1:]] == user[order[:-1]])
    soon = (rng.random(len(user)) < .5) | (before & liked)
    found = effects(timed(exposures, np.where(soon, 10, 120) * MINUTE))["within 30 minutes"]
    point, half = found["like"]
    assert abs(point - (.5 if liked else 0.0)) < 1.6 * half + (.1 if liked else 0.0), "a user's last row has no next"
    for name in ("click", "long view"):
        assert abs(found[name][0]) < 1.6 * found[name][1], name
    assert half < .1
