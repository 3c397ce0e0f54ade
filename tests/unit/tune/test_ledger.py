"""One row per finished trial, whatever happens to the process that writes it."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from recfuse.config import InvalidFieldError
from recfuse.tune.ledger import EARLIER, FAILED, FINISHED, JSONL, PARQUET, Ledger

SWEEP = "s1"


def row(number, status=FINISHED, **more):
    return {"key": f"k{number}", "number": number, "status": status, "reason": "", "seconds": 1.5, **more}


def opened(directory, sweep=SWEEP):
    ledger = Ledger(directory, sweep)
    ledger.set_aside()
    return ledger


def test_rows_are_on_disk_as_they_are_appended(tmp_path):
    ledger = opened(tmp_path / "new")
    ledger.append(row(1, watch_time=0.1, **{"config.network.hidden": "[8]"}))
    ledger.append(row(2, watch_time=float("nan"), like=2))
    lines = [json.loads(line) for line in (tmp_path / "new" / JSONL).read_text().splitlines()]
    assert [line["number"] for line in lines] == [1, 2]
    assert lines[1]["watch_time"] is None, "there is no NaN in JSON"
    table = pq.read_table(tmp_path / "new" / PARQUET)
    assert table["watch_time"].to_pylist() == [0.1, None]
    assert table["like"].to_pylist() == [None, 2.0]
    assert table["config.network.hidden"].to_pylist() == ["[8]", None]
    assert Ledger(tmp_path / "new", SWEEP).keys == {"k1", "k2"}


def test_a_line_that_a_crash_cut_off_is_dropped_and_its_trial_runs_again(tmp_path):
    opened(tmp_path).append(row(1))
    with (tmp_path / JSONL).open("a") as file:
        file.write('{"key": "k2", "number"')
    again = opened(tmp_path)
    assert again.keys == {"k1"}
    again.append(row(2))
    assert [one["key"] for one in Ledger(tmp_path, SWEEP).rows] == ["k1", "k2"]
    assert pq.read_metadata(tmp_path / PARQUET).num_rows == 2


def test_failed_trials_can_be_dropped(tmp_path):
    ledger = opened(tmp_path)
    ledger.append(row(1))
    ledger.append(row(2, FAILED))
    ledger.drop(FAILED)
    assert Ledger(tmp_path, SWEEP).keys == {"k1"}


def test_rows_of_another_config_are_set_aside_and_kept(tmp_path):
    opened(tmp_path).append(row(1))
    other = opened(tmp_path, "s2")
    assert other.rows == []
    other.append(row(1))
    assert [json.loads(line)["sweep"] for line in (tmp_path / EARLIER).read_text().splitlines()] == [SWEEP]
    assert [json.loads(line)["sweep"] for line in (tmp_path / JSONL).read_text().splitlines()] == ["s2"]


def test_a_sweep_takes_its_own_rows_up_again(tmp_path):
    """A, B, A: no trial of A runs twice, and none of B is lost."""
    opened(tmp_path).append(row(1))
    opened(tmp_path, "s2").append(row(2))
    again = opened(tmp_path)
    assert again.keys == {"k1"}
    assert [json.loads(line)["sweep"] for line in (tmp_path / EARLIER).read_text().splitlines()] == ["s2"]
    again.drop(FINISHED)
    assert opened(tmp_path).keys == set(), "what was dropped does not come back"
    assert opened(tmp_path, "s2").keys == {"k2"}


def test_what_has_changed_is_said(tmp_path, caplog):
    first = Ledger(tmp_path, "s1")
    first.set_aside({"learning": {"rate": 1.0, "seed": 0}, "samples": "a"})
    first.append(row(1))
    with caplog.at_level("WARNING", "recfuse"):
        Ledger(tmp_path, "s2").set_aside({"learning": {"rate": 2.0, "seed": 0}, "samples": "b"})
    assert "1 trials of another sweep are kept in" in caplog.text
    assert "learning.rate 1.0 → 2.0; samples a → b" in caplog.text


@pytest.mark.parametrize("content", ["no JSON\n", "[1]\n", '{"no": "key"}\n'])
def test_a_file_of_something_else_is_named_and_kept(tmp_path, content):
    (tmp_path / JSONL).write_text(content)
    with pytest.raises(InvalidFieldError, match=r"output: got .*; allowed: trials as JSON lines"):
        Ledger(tmp_path, SWEEP)
    assert (tmp_path / JSONL).read_text() == content
