"""A log read whole: order of equal times, rows that were not drawn, what the account says."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import session_logs
from session_logs import row, table, vocabulary

from recfuse.logs.reading import ReadingConfig, read_log

# These logs end while their users are there; their last requests are looked at all the same.
WHOLE = ReadingConfig(cut="bootstrap")


def states(log):
    return [int(state[0]) for state in log.sessions.rows["state"].to_pylist()]


def test_requests_of_one_second_follow_their_ids_as_people_count_and_are_counted(tmp_path):
    logs = session_logs.write(tmp_path / "logs", table([row(k, seconds=0.0) for k in (10, 2, 11, 1)]))
    log = read_log(str(logs), WHOLE)
    assert states(log) == [1, 2, 10, 11]
    assert log.account.ties == 3
    assert "3 requests at the time of the one before, in the order of their ids" in str(log.account)


@pytest.mark.parametrize("name", ["position", "turn"])
def test_a_column_orders_requests_of_one_second(tmp_path, name):
    rows = table([row(k, seconds=0.0) for k in (1, 2, 3)]).drop_columns("position")
    rows = rows.append_column(name, pa.array([3, 1, 2], pa.int32()))
    logs = session_logs.write(tmp_path / "logs", rows)
    log = read_log(str(logs), WHOLE.replace(order_column="" if name == "position" else name))
    assert (states(log), log.account.ties) == ([2, 3, 1], 0)


def test_an_action_that_is_its_mean_was_not_drawn(tmp_path):
    logp = -np.log(2 * np.pi)
    taken = [row(k, action=[0.0, 0.0], action_logp=logp, explored=said) for k, said in enumerate((None, True, False))]
    logs = session_logs.write(tmp_path / "logs", table([*taken, row(3, explored=None)]))
    log = read_log(str(logs), WHOLE)
    assert log.sessions.rows["explored"].to_pylist() == [False, True, False, True]
    assert log.account.not_drawn == 2


@pytest.mark.parametrize(("wrong", "words"), [
    (lambda logp: np.exp(logp), "probabilities"), (lambda logp: logp / np.log(2), "logarithms to base 2"),
    (lambda logp: logp / 2, "the mean over the parameters"), (lambda logp: 0 * logp, "zero everywhere")])
def test_densities_that_contradict_their_gaussian_say_what_they_look_like(tmp_path, wrong, words):
    rng = np.random.default_rng(0)
    rows = []
    for number in range(20):
        action = rng.normal(size=2).astype(np.float32).astype(float)
        logp = -.5 * (action**2).sum() - np.log(2 * np.pi)
        rows.append(row(number, action=action.tolist(), action_logp=float(wrong(logp))))
    log = read_log(str(session_logs.write(tmp_path / "logs", table(rows))))
    assert log.account.kept == 0
    [reason] = log.account.quarantined
    assert reason.startswith("action_logp (allowed: log N(action; mu, sigma²), within .001")
    assert words in reason


def test_what_was_assumed_is_said_once(tmp_path):
    rows = table([row(k) for k in range(4)])
    plain = rows.set_column(rows.column_names.index("ts"), "ts", rows["ts"].cast(pa.timestamp("s")))
    logs = session_logs.write(tmp_path / "logs", plain.slice(0, 2), plain.slice(2), of=vocabulary())
    assert read_log(str(logs)).account.notes == ("ts: times without a zone, taken as UTC",)


def test_a_column_that_contradicts_its_directory_counts_and_is_noted(tmp_path):
    logs = session_logs.write(tmp_path / "logs")
    for scene, number in (("feed", 1), ("cart", 2)):
        (logs / f"scene={scene}").mkdir()
        pq.write_table(table([row(number, scene="feed")]), logs / f"scene={scene}" / "p.parquet")
    log = read_log(str(logs), WHOLE)
    assert log.sessions.rows["scene"].to_pylist() == ["feed", "feed"]
    assert log.account.notes == ("scene: some files have other values than their directories scene=…; theirs count",)
