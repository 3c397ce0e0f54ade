"""The way from the decision log to the session-log table: every row once, whatever dies in between."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import deltalake
import numpy as np
import orjson
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError
from recfuse.logs.reading import ReadingConfig, read_log
from recfuse.logs.schema import session_log_schema
from recfuse.logs.validation import check
from recfuse.serving import mover_process
from recfuse.serving.decision_log import DECISION, FEEDBACK
from recfuse.serving.mover import MoveAccount, Mover, only_mover
from recfuse.serving.mover_process import MoverProcess

from .test_decision_log import STATE, decision, event, write
from .test_meters import Recorded


def rows_of(output: Path, name: str) -> list[dict[str, Any]]:
    table = DeltaTable((output / name).as_uri()).to_pyarrow_table().sort_by("ts")
    return table.to_pylist()


def counts(account: MoveAccount) -> dict[str, Any]:
    """What became of the rows; of most decisions in these logs nothing tells the vocabulary."""
    left_out = ("waiting_bytes", "oldest", "unnamed")
    return {name: value for name, value in vars(account).items() if value and name not in left_out}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """a: 3.5 + 2.5 watched in two events, one of them sent twice; b: one event after the window; c: young; d: of
    another vocabulary; z: events without a decision."""
    write(tmp_path / "log",
          (DECISION, decision("a", 10.25)), (DECISION, decision("b", 20.0)), (DECISION, decision("a", 11.0)),
          (DECISION, decision("d", 30.0, state=[1.0])),
          (FEEDBACK, event("a", 12.0, "1", watch_time=3.5)), (FEEDBACK, event("a", 13.0, "1", watch_time=3.5)),
          (FEEDBACK, event("a", 14.0, "2", watch_time=2.5, like=1.0, session_end=True)),
          (FEEDBACK, event("z", 15.0, like=1.0)), (FEEDBACK, event("b", 121.0, like=1.0)),
          (DECISION, decision("c", 1000.0)), (FEEDBACK, event("c", 1010.0, like=1.0)))
    return tmp_path / "log"


def test_join_by_hand(log: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    mover = Mover(log, tmp_path / "out", vocabulary, window_seconds=100.0)
    account = mover.move(now=500.0)
    assert counts(account) == {"written": 2, "without_feedback": 1, "joined": 2, "late": 1, "orphan": 1,
                               "duplicates": 2, "misfits": 1}
    assert account.oldest == 1000.0
    first, second = rows_of(tmp_path / "out", "sessions")
    assert (first["request_id"], second["request_id"]) == ("a", "b")
    assert (first["feedback"], first["last"]) == ({"watch_time": 6.0, "like": 1.0}, True)
    assert (second["feedback"], second["last"]) == ({"watch_time": 0.0, "like": 0.0}, False)
    assert first["ts"].timestamp() == 10.25
    np.testing.assert_array_equal(np.array(first["state"], np.float32), STATE)
    kept = rows_of(tmp_path / "out", "events")
    assert sorted((row["request_id"], row["status"]) for row in kept) == [
        ("a", "duplicate"), ("a", "duplicate"), ("a", "joined"), ("a", "joined"), ("b", "late"), ("d", "misfit"),
        ("z", "orphan")]
    assert json.loads(next(row["row"] for row in kept if row["status"] == "misfit"))["state"] == [1.0]
    assert counts(mover.move(now=1250.0)) == {"written": 1, "joined": 1}
    assert counts(mover.move(now=1250.0)) == {}
    table = DeltaTable(tmp_path / "out" / "sessions").to_pyarrow_table()
    checked = check(pa.table(table), vocabulary, "sessions")
    assert (checked.rows.num_rows, checked.quarantine.num_rows) == (3, 0)


@pytest.mark.parametrize("dies", ["before the commit", "after the commit"])
@pytest.mark.parametrize("table", ["sessions", "events"])
def test_a_death_around_a_commit_moves_every_row_once(
    log: Path, tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch, dies: str, table: str
) -> None:
    write_table = deltalake.write_deltalake

    class Death(BaseException):
        pass

    def dying(uri: str, *arguments: Any, **options: Any) -> None:
        if uri.endswith(table) and dies == "before the commit":
            raise Death
        write_table(uri, *arguments, **options)
        if uri.endswith(table):
            raise Death

    monkeypatch.setattr(deltalake, "write_deltalake", dying)
    with pytest.raises(Death):
        Mover(log, tmp_path / "out", vocabulary, window_seconds=100.0).move(now=2000.0)
    monkeypatch.undo()
    Mover(log, tmp_path / "out", vocabulary, window_seconds=100.0).move(now=2000.0)
    assert [row["request_id"] for row in rows_of(tmp_path / "out", "sessions")] == ["a", "b", "c"]
    assert len(rows_of(tmp_path / "out", "events")) == 8


def test_two_logs_one_table(tmp_path: Path, vocabulary: Vocabulary) -> None:
    for name in ("m1", "m2"):
        write(tmp_path / name, (DECISION, decision(name, 1.0)), (FEEDBACK, event(name, 2.0, like=1.0)))
        assert counts(Mover(tmp_path / name, tmp_path / "out", vocabulary).move(now=1e6)) == {
            "written": 1, "joined": 1}
    assert {row["request_id"] for row in rows_of(tmp_path / "out", "sessions")} == {"m1", "m2"}


def test_the_retry_of_an_event_in_a_later_pass_is_a_duplicate(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path / "log", (DECISION, decision("a", 1.0)), (FEEDBACK, event("a", 2.0, like=1.0)))
    mover = Mover(tmp_path / "log", tmp_path / "out", vocabulary, window_seconds=10.0)
    mover.move(now=1e3)
    write(tmp_path / "log", (FEEDBACK, event("a", 2e3, like=1.0)), (FEEDBACK, event("a", 2e3, "other", like=1.0)))
    assert counts(mover.move(now=1e4)) == {"duplicates": 1, "late": 1}


def test_moved_segments_are_dropped_after_a_while(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path / "log", (DECISION, decision("a", 1.0)))
    mover = Mover(tmp_path / "log", tmp_path / "out", vocabulary, keep_seconds=0.0, window_seconds=0.0)
    mover.move(now=4e9)
    assert list((tmp_path / "log").glob("*.jsonl")) == []


def test_only_one_moves_a_log(tmp_path: Path) -> None:
    with only_mover(tmp_path, wait=False), pytest.raises(InvalidFieldError, match="nobody else moves"), \
            only_mover(tmp_path, wait=False):
        pass
    with pytest.raises(InvalidFieldError, match="decision_log"), only_mover(tmp_path / "nowhere", wait=False):
        pass


def test_a_table_keeps_its_vocabulary(log: Path, tmp_path: Path, vocabulary: Vocabulary) -> None:
    Mover(log, tmp_path / "out", vocabulary).move(now=1e6)
    other = Vocabulary.from_dict({**vocabulary.to_dict(), "fusion_parameters": ["click", "long_view", "like"]})
    write(log, (DECISION, decision("new", 2e6, mu=[0.0] * 3, sigma=[1.0] * 3, action=[0.0] * 3)))
    assert counts(Mover(log, tmp_path / "out", other).move(now=4e6)) == {"misfits": 1}


def reordered(vocabulary: Vocabulary) -> Vocabulary:
    return vocabulary.replace(fusion_parameters=vocabulary.fusion_parameters[::-1])


def test_a_decision_of_another_meaning_is_no_row_of_the_table(tmp_path: Path, vocabulary: Vocabulary) -> None:
    other = reordered(vocabulary)
    write(tmp_path / "log", (DECISION, decision("a", 1.0, vocabulary_hash=vocabulary.meaning, explored=True)),
          (DECISION, decision("b", 2.0, vocabulary_hash=other.meaning, scorer_version="scenes-1")),
          (DECISION, decision("old", 3.0)))
    assert counts(Mover(tmp_path / "log", tmp_path / "out", vocabulary).move(now=1e6)) == {
        "written": 2, "without_feedback": 2, "misfits": 1}
    assert [row["request_id"] for row in rows_of(tmp_path / "out", "sessions")] == ["a", "old"]
    [misfit] = rows_of(tmp_path / "out", "events")
    assert misfit["reason"] == f"vocabulary_hash: {other.meaning}, not {vocabulary.meaning}"
    assert json.loads(misfit["row"])["scorer_version"] == "scenes-1", "the row is kept whole"


def test_a_new_model_of_another_meaning_adds_no_rows(tmp_path: Path, vocabulary: Vocabulary) -> None:
    other = reordered(vocabulary)
    write(tmp_path / "log", (DECISION, decision("a", 1.0)))
    Mover(tmp_path / "log", tmp_path / "out", vocabulary).move(now=1e6)
    write(tmp_path / "log", (DECISION, decision("b", 2e6, vocabulary_hash=other.meaning)),
          (DECISION, decision("c", 2e6)))
    assert counts(Mover(tmp_path / "log", tmp_path / "out", other).move(now=4e6)) == {"misfits": 2}
    reasons = {row["request_id"]: row["reason"] for row in rows_of(tmp_path / "out", "events")}
    assert reasons["b"].endswith("(other fusion_parameters)")
    assert reasons["c"] == "vocabulary: the model that serves has other fusion_parameters"


def test_feedback_that_the_table_has_no_column_for_is_named(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path / "log", (DECISION, decision("a", 1.0)), (FEEDBACK, event("a", 2.0, "1", like=1.0, share=2.0)),
          (FEEDBACK, event("a", 2.0, "2", share=1.0)), (FEEDBACK, event("a", 2.0, "2", share=1.0)))
    account = Mover(tmp_path / "log", tmp_path / "out", vocabulary).move(now=1e6)
    assert counts(account) == {"written": 1, "joined": 2, "duplicates": 1, "unknown_behaviours": {"share": 2}}
    assert [row["reason"] for row in rows_of(tmp_path / "out", "events")] == ["feedback: the table lacks share"] * 3
    assert rows_of(tmp_path / "out", "sessions")[0]["feedback"] == {"watch_time": 0.0, "like": 1.0}


def test_a_table_that_lacks_newer_columns_goes_on(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """Whether an action was drawn, the scorer, the vocabulary's hash and candidates are newer than many tables."""
    first = pa.table({name: column for name, column in zip(
        session_log_schema(vocabulary).names, _columns(vocabulary, "a"), strict=True)
        if name not in ("explored", "position", "scorer_version", "vocabulary_hash", "candidates", "candidates_total",
                        "shown")})
    (tmp_path / "out").mkdir()
    vocabulary.save(tmp_path / "out" / "vocabulary.yaml")
    deltalake.write_deltalake(tmp_path / "out" / "sessions", first)
    deltalake.write_deltalake(tmp_path / "out" / "events", pa.table({
        "request_id": ["a"], "event_id": ["e"], "ts": pa.array([0], pa.timestamp("us", "UTC")), "status": ["joined"],
        "row": ["{}"]}))
    write(tmp_path / "log", (DECISION, decision("b", 1.0, explored=True)),
          (DECISION, decision("c", 2.0, explored=False)),
          (FEEDBACK, event("b", 3.0, like=1.0)))
    Mover(tmp_path / "log", tmp_path / "out", vocabulary).move(now=1e6)
    assert [(row["request_id"], row["explored"]) for row in rows_of(tmp_path / "out", "sessions")] == [
        ("a", None), ("b", True), ("c", False)]
    assert len(rows_of(tmp_path / "out", "events")) == 2
    rows = read_log(str(tmp_path / "out"), ReadingConfig(cut="bootstrap")).sessions.rows
    assert rows.sort_by("request_id")["explored"].to_pylist() == [True, True, False], "inferred where it is not told"


def _columns(vocabulary: Vocabulary, request_id: str) -> list[pa.Array]:
    row = decision(request_id, 0.0) | {"feedback": {"watch_time": 1.0, "like": 0.0}, "last": False, "ts": 0}
    return [pa.array([row.get(field.name)], field.type) for field in session_log_schema(vocabulary)]


def test_a_served_log_is_a_log_for_every_reader(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """The directory, its table and the table after compaction and deletes are the same rows."""
    mover = None
    for number in range(4):
        write(tmp_path / "a b#%41", (DECISION, decision(f"r{number}", 1000.0 * number, session_id="s")),
              (FEEDBACK, event(f"r{number}", 1000.0 * number + 1, watch_time=2.0)))
        mover = mover or Mover(tmp_path / "a b#%41", tmp_path / "out é?=1", vocabulary, window_seconds=1.0)
        mover.move(now=1000.0 * number + 500.0)
    served = tmp_path / "out é?=1"
    expected = rows_of(served, "sessions")
    assert len(expected) == 4
    assert [row["session_id"] for row in expected] == ["s"] * 4

    def read(path: Path) -> list[dict[str, Any]]:
        log = read_log(str(path), ReadingConfig(cut="bootstrap"))
        assert (log.account.rows_in, log.account.quarantined) == (len(log.sessions.rows), {})
        return [{name: row[name] for name in ("request_id", "ts", "feedback", "action")}
                for row in log.sessions.rows.sort_by("ts").to_pylist()]

    wanted = [{name: row[name] for name in ("request_id", "ts", "feedback", "action")} for row in expected]
    assert read(served) == read(served / "sessions") == wanted
    DeltaTable((served / "sessions").as_uri()).optimize.compact()
    assert read(served) == read(served / "sessions") == wanted
    DeltaTable((served / "sessions").as_uri()).delete("request_id = 'r1'")
    assert read(served) == [row for row in wanted if row["request_id"] != "r1"]


def test_a_directory_with_other_logs_is_no_place_for_the_tables(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path / "log", (DECISION, decision("a", 1.0)))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "part-0.parquet").write_text("a year of session logs")
    with pytest.raises(InvalidFieldError, match=r"output: got .*mine: part-0.parquet.*an empty directory, or one with"):
        Mover(tmp_path / "log", tmp_path / "mine", vocabulary)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["part-0.parquet"]
    with pytest.raises(InvalidFieldError, match=r"output: got .*%41.*without % before two hexadecimal digits"):
        Mover(tmp_path / "log", tmp_path / "a%41", vocabulary)


def test_only_segments_of_the_log_are_dropped(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path / "log", (DECISION, decision("a", 1.0)))
    (tmp_path / "log" / "copy of mine.jsonl").write_bytes(next((tmp_path / "log").glob("*.jsonl")).read_bytes())
    Mover(tmp_path / "log", tmp_path / "out", vocabulary, keep_seconds=0.0, window_seconds=0.0).move(now=4e9)
    assert [path.name for path in (tmp_path / "log").glob("*.jsonl")] == ["copy of mine.jsonl"]


def lines_of(*rows: tuple[str, dict[str, Any]]) -> list[bytes]:
    return [orjson.dumps({"kind": kind, **row}, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE)
            for kind, row in rows]


GOOD, FAR, AFTER = lines_of(*((DECISION, decision(name, 10.0)) for name in ("good", "far", "after")))
IN_THE_FUTURE = FAR.replace(b'"ts":10.0', b'"ts":1e9')
DAMAGED: dict[str, tuple[bytes, str]] = {
    "a flipped bit in a key": (FAR.replace(b'"kind"', b'"kinc"'), "kind"),
    "another kind": (FAR.replace(b'"decision"', b'"decisiom"'), "kind|row"),
    "a number": (b"12\n", "row"),
    "null": (b"null\n", "row"),
    "a list": (b"[1]\n", "row"),
    "no JSON": (b"{\n", "no JSON"),
    "an empty line": (b"\n", "no JSON"),
    "bytes that are no text": (FAR.replace(b'"far"', b'"\xff\xfe"'), "no JSON"),
    "a digit that became a letter": (FAR.replace(b"0.4", b"0.x"), "no JSON"),
    "a list that became a text": (FAR.replace(b"[0.3,0.4]", b'"[0.3,0.4]"'), "action: "),
    "a null among numbers": (FAR.replace(b"[0.3,0.4]", b"[null,0.4]"), "action.0: "),
    "no request": (FAR.replace(b'"request_id"', b'"request_ie"'), "request_id: "),
    "no time": (FAR.replace(b'"ts"', b'"tr"'), "ts: "),
    "a time that is none": (FAR.replace(b'"ts":10.0', b'"ts":-1e300'), "ts: "),
    "a clock ahead": (IN_THE_FUTURE, "ts: .* in the future"),
    "feedback that is no number": (lines_of((FEEDBACK, event("a", 1.0, like="x")))[0], "feedback.like: "),
    "candidates cut short": (lines_of((DECISION, decision("far", 10.0, candidates={
        "item_ids": ["1"], "predictions": "AAA", "seen": None}, shown=[0])))[0], "candidates.predictions: "),
    "shown that nobody had": (lines_of((DECISION, decision("far", 10.0, candidates={
        "item_ids": ["1"], "predictions": "AAAAAA==", "seen": None}, shown=[3])))[0], "shown: "),
    "zeros between rows": (bytes(8), "a hole of 8 zeros"),
    "a lost block": (FAR[:100] + bytes(512) + FAR[:50] + b"\n", "."),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_line_is_kept_with_its_place_and_all_others_are_moved(
    name: str, tmp_path: Path, vocabulary: Vocabulary
) -> None:
    line, reason = DAMAGED[name]
    (tmp_path / "log").mkdir()
    segment = tmp_path / "log" / "0123456789ab-00000.jsonl"
    segment.write_bytes(GOOD + line + AFTER)
    mover = Mover(tmp_path / "log", tmp_path / "out", vocabulary, keep_seconds=0.0, window_seconds=0.0)
    account = mover.move(now=1e6)
    assert {row["request_id"] for row in rows_of(tmp_path / "out", "sessions")} == {"good", "after"}
    kept = [row for row in rows_of(tmp_path / "out", "events") if row["status"] == "damaged"]
    assert len(kept) == account.damaged >= 1
    assert re.search(f"^{segment.name}, bytes {len(GOOD)} to [0-9]+: .*({reason})", kept[0]["reason"])
    if not line.startswith(b"\0") and "text" not in name and "block" not in name:
        assert kept[0]["row"].encode() == line
    assert segment.exists(), "written a moment ago"
    os.utime(segment, (0, 0))
    mover.move(now=1e6)
    assert not segment.exists(), "all of it is moved or kept"
    assert len(rows_of(tmp_path / "out", "sessions")) == 2


def test_a_segment_with_rows_that_wait_is_never_deleted(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """Neither behind a hole nor where it cannot be read."""
    (tmp_path / "log").mkdir()
    young = lines_of((DECISION, decision("young", 1e6 + 5.0)))[0]
    segment, other = (tmp_path / "log" / f"0123456789ab-0000{n}.jsonl" for n in range(2))
    segment.write_bytes(GOOD + bytes(64) + young)
    other.mkdir()
    for file in (segment, other):
        os.utime(file, (0, 0))
    mover = Mover(tmp_path / "log", tmp_path / "out", vocabulary, keep_seconds=0.0, window_seconds=0.0)
    account = mover.move(now=1e6)
    assert list(account.unreadable) == [other.name]
    assert segment.exists()
    assert account.waiting_bytes == len(young)
    other.rmdir()
    assert counts(mover.move(now=1e6 + 1e5)) == {"written": 1, "without_feedback": 1}
    assert [row["request_id"] for row in rows_of(tmp_path / "out", "sessions")] == ["good", "young"]


def test_a_row_of_the_future_is_not_lost_when_the_clock_comes_to_it(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """`sessions` has passed it, `events` not yet."""
    (tmp_path / "log").mkdir()
    waits = lines_of((FEEDBACK, event("good", 970.0, like=1.0)))[0]
    (tmp_path / "log" / "1.jsonl").write_bytes(GOOD + waits + FAR.replace(b'"ts":10.0', b'"ts":3000.0'))
    mover = Mover(tmp_path / "log", tmp_path / "out", vocabulary, window_seconds=0.0)
    assert counts(mover.move(now=1e3)) == {"written": 1, "without_feedback": 1}
    assert counts(mover.move(now=1e4)) == {"late": 1, "damaged": 1}


def test_a_commit_that_fails_is_made_by_the_next_mover(
    log: Path, tmp_path: Path, vocabulary: Vocabulary, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(deltalake, "write_deltalake", failing)
    with pytest.raises(OSError, match="no space"):
        Mover(log, tmp_path / "out", vocabulary, window_seconds=100.0).move(now=2000.0)
    monkeypatch.undo()
    account = Mover(log, tmp_path / "out", vocabulary, window_seconds=100.0).move(now=2000.0)
    assert account.written == 3


def test_a_process_that_dies_is_started_again_and_meanwhile_somebody_says_so(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its table cannot be reached at first; then it is killed."""
    monkeypatch.setattr(mover_process, "_PAUSE_SECONDS", 1.0)
    monkeypatch.setattr(mover_process, "_TICK_SECONDS", 0.05)
    write(tmp_path / "log", (DECISION, decision("a", 10.0)))
    (tmp_path / "bucket").write_text("not there yet")
    meters = Recorded()
    process = MoverProcess(str(tmp_path / "log"), str(tmp_path / "bucket" / "out"), str(models), 0.0, 0.1, meters)
    try:
        _until(lambda: process.state.error is not None)
        first = process._process
        assert first is not None
        (tmp_path / "bucket").unlink()
        (tmp_path / "bucket").mkdir()
        _until(lambda: process.state.error is None and process.state.failures > 0)
        assert first.poll() is None, "it went on by itself"
        failures = process.state.failures
        first.kill()
        _until(lambda: process.state.error is not None)
        assert "ended with -9" in process.describe()["error"]
        assert process.state.failures == failures + 1
        ages = len(meters.values["recfuse_log_pass_age_s"])
        _until(lambda: len(meters.values["recfuse_log_pass_age_s"]) > ages + 5)
        dead = meters.values["recfuse_log_pass_age_s"][ages + 1:]
        assert sorted(dead) == dead, "it rises"
        write(tmp_path / "log", (DECISION, decision("b", 20.0)))
        _until(lambda: process.state.error is None)
    finally:
        process.close()
    assert [row["request_id"] for row in rows_of(tmp_path / "bucket" / "out", "sessions")] == ["a", "b"]


def test_the_process_beside_the_replicas_moves_and_reports(models: Path, tmp_path: Path) -> None:
    write(tmp_path / "log", (DECISION, decision("a", 10.0)), (FEEDBACK, event("a", 11.0, like=1.0)),
          (DECISION, decision("young", time.time() + 60)))
    meters = Recorded()
    process = MoverProcess(str(tmp_path / "log"), str(tmp_path / "out"), str(models), 0.0, 0.1, meters)
    try:
        _until(lambda: "recfuse_log_pending_bytes" in meters.values)
    finally:
        process.close()
    assert meters.values["recfuse_log_lag_s"][0] >= 0.0
    assert meters.values["recfuse_log_pending_bytes"][0] > 0
    assert [row["request_id"] for row in rows_of(tmp_path / "out", "sessions")] == ["a"]
    with only_mover(tmp_path / "log", wait=False):  # it has let go of the log
        pass


def _until(done: Any) -> None:
    deadline = time.monotonic() + 180
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)
