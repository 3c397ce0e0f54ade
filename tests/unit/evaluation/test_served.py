"""Users of a served log: what each did, by hand; and the same moments however the log lies in row groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from served_logs import BASE, BEGIN, CANARY, DAY, Traffic, rows_of, write

from recfuse.bundle.arms import Arms, Canary
from recfuse.config import InvalidFieldError
from recfuse.evaluation import served
from recfuse.evaluation.served import Split, first_decision, read_served
from recfuse.logs.source import open_log


def split(share: float = .5, days: float = 3, known: float = 3, **changes: object) -> Split:
    begin = BEGIN * 1_000_000
    values = {"base": BASE, "canary": CANARY, "share": share, "begin": begin, "end": begin + round(days * DAY * 1e6),
              "known_from": begin - round(known * DAY * 1e6), "known_until": begin}
    return Split(**values | changes)


@pytest.fixture(scope="module")
def traffic(tmp_path_factory) -> tuple[Traffic, str]:
    of = Traffic(users=300)
    return of, write(tmp_path_factory.mktemp("served") / "log", of.table())


def user_of(treated: bool, number: int = 0) -> int:
    """The `number`-th user whom the canary's hash takes, or does not."""
    canary = Canary(None, CANARY, .5)
    return [user for user in range(100) if canary.takes(f"u{user}") is treated][number]


def test_one_user_by_hand(tmp_path: Path) -> None:
    """Before: a session of two requests. In the test: two requests 29 minutes apart, one 31 minutes later, and one two
    days later; a request after its end does not count."""
    user, other = user_of(True), user_of(False)
    minutes = [-100, -90, 10, 39, 70, 2 * 1440 + 80, 3 * 1440 + 1, 0]
    who = [user] * 7 + [other]
    table = rows_of(who, BEGIN + 60 * np.array(minutes), [BASE, BASE, *[CANARY] * 5, BASE],
                    np.array([1, 2, 4, 8, 16, 32, 64, 5]), np.array([1, 0, 0, 1, 0, 0, 1, 0]), [None] * 8)
    found = read_served(open_log(write(tmp_path / "log", table)), split())
    assert found.measures == ("watch_time", "like", "requests", "sessions", "returns")
    base, canary = found.arms
    assert canary.mean.tolist() == [60, 1, 4, 3, 1, 3, 1, 2, 1, 0, 1]
    assert base.mean.tolist() == [5, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    assert (found.decisions, found.strays, found.left_out) == (5, 0, 0)
    assert found.last == round((BEGIN + 60 * minutes[5]) * 1e6)
    # The user's days are 24 hours from minute 10 on: 2 complete ones, the third lacks ten minutes.
    days = found.days[1, :, 0]
    assert days[:3].tolist() == [[1, 28, 28**2], [1, 0, 0], [0, 0, 0]]
    assert found.halves[1].mean[:4].tolist() == [28, 1, 3, 2]
    assert found.halves[1].mean[5:9].tolist() == [0, 0, 0, 0]


def test_named_sessions_have_no_pauses(tmp_path: Path) -> None:
    user = user_of(True)
    table = rows_of([user] * 3, BEGIN + np.array([0, 7_200, 7_300]), [CANARY] * 3, np.ones(3), np.zeros(3),
                    ["a", "a", "b"])
    canary = read_served(open_log(write(tmp_path / "log", table, 1)), split()).arms[1]
    assert canary.mean[3] == 2


@pytest.mark.parametrize("rows", [1_200, 700])
def test_slices_of_the_users_change_not_a_bit(traffic, tmp_path, monkeypatch, rows) -> None:
    """Of a log with bad rows, too; a slice is read with its own users alone."""
    of, _ = traffic
    table = of.table()
    place, users = table.schema.get_field_index("user_id"), table["user_id"].to_pylist()
    table = table.set_column(place, table.schema.field(place), [[None, None, *users[2:]]])
    log = open_log(write(tmp_path / "log", table, 300))
    monkeypatch.setattr(served, "_PARTITION_ROWS", 200)
    whole, pieces = read_served(log, split()), []
    monkeypatch.setattr(served, "_SLICE_ROWS", rows)
    grouped = served._grouped
    monkeypatch.setattr(served, "_grouped", lambda rows, *rest: pieces.append(rows.num_rows) or grouped(rows, *rest))
    sliced = read_served(log, split())
    assert whole.left_out == sliced.left_out == 2
    assert (sliced.decisions, sliced.strays, sliced.last) == (whole.decisions, whole.strays, whole.last)
    for one, other in zip((*whole.arms, *whole.halves), (*sliced.arms, *sliced.halves), strict=True):
        assert one.count == other.count
        np.testing.assert_array_equal(one.scatter, other.scatter)
        np.testing.assert_array_equal(one.mean, other.mean)
    np.testing.assert_array_equal(sliced.days, whole.days)
    assert sum(pieces) == table.num_rows - 2, "every good row is in one slice"


@pytest.mark.parametrize(("row_group", "rows"), [(70, 500_000), (400, 400), (10_000, 200)])
def test_row_groups_and_partitions_change_nothing(traffic, tmp_path, monkeypatch, row_group, rows) -> None:
    of, path = traffic
    whole = read_served(open_log(path), split())
    monkeypatch.setattr(served, "_PARTITION_ROWS", rows)
    table = of.table()
    # Without ids sessions are cut by pauses, also across row groups.
    no_ids = table.set_column(0, table.schema.field(0), pc.if_else(True, None, table["session_id"]))
    for content, expected in ((table, whole), (no_ids, read_served(open_log(write(tmp_path / "x", no_ids)), split()))):
        parts = read_served(open_log(write(tmp_path / "parts", content, row_group)), split())
        assert (parts.decisions, parts.last) == (expected.decisions, expected.last)
        np.testing.assert_allclose(parts.days, expected.days, rtol=1e-9)
        for arm, other in zip((*parts.arms, *parts.halves), (*expected.arms, *expected.halves), strict=True):
            assert arm.count == other.count
            np.testing.assert_allclose(arm.mean, other.mean, rtol=1e-9)
            np.testing.assert_allclose(arm.scatter, other.scatter, rtol=1e-6, atol=1e-6)


def test_users_are_in_the_arm_that_serves_them(traffic) -> None:
    of, path = traffic
    arms = Arms(BASE, Canary(CANARY, CANARY, of.share))
    table = of.table().filter(pc.greater_equal(pc.cast(of.table()["ts"], "int64"), BEGIN * 1_000_000))
    by_serving = {BASE: set(), CANARY: set()}
    for user in set(table["user_id"].to_pylist()):
        by_serving[arms.of(user)].add(user)
    found = read_served(open_log(path), split())
    assert [arm.count for arm in found.arms] == [len(by_serving[BASE]), len(by_serving[CANARY])]


def test_only_row_groups_near_the_test_are_read(traffic, monkeypatch) -> None:
    of, path = traffic
    reads = []
    original = served.read_piece
    monkeypatch.setattr(served, "read_piece", lambda *args: reads.append(args[1]) or original(*args))
    table = of.table()
    path = write(Path(path).parent / "groups", table, 100)
    read_served(open_log(path), split(days=.5, known=0))
    assert 0 < len(reads) < table.num_rows / 100 / 4


def test_bad_rows_are_counted(traffic, tmp_path) -> None:
    of, _ = traffic
    table = of.table()
    rows = table.slice(table.num_rows - 5).to_pylist()
    rows[0]["user_id"], rows[1]["ts"], rows[2]["feedback"]["like"] = None, None, float("nan")
    broken = table.slice(0, table.num_rows - 5)
    log = write(tmp_path / "log", pa.concat_tables([broken, pa.Table.from_pylist(rows, schema=table.schema)]))
    found = read_served(open_log(log), split())
    assert found.left_out == 3
    assert found.decisions == read_served(open_log(write(tmp_path / "whole", table)), split()).decisions - 3


def test_the_first_decision_of_a_model(traffic) -> None:
    of, path = traffic
    table = of.table().filter(pc.equal(of.table()["model_version"], CANARY))
    assert first_decision(open_log(path), "model_version", CANARY) == table["ts"].cast("int64")[0].as_py()
    assert first_decision(open_log(path), "model_version", "nobody") is None


def test_a_time_without_decisions_is_refused(traffic) -> None:
    with pytest.raises(InvalidFieldError, match=r"logs: got .*; allowed: decisions of the time of the test"):
        read_served(open_log(traffic[1]), split(begin=1, end=2))
