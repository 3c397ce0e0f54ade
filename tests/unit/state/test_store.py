"""The user-state store."""

import contextlib
import json
import sqlite3
import threading
from collections import Counter
from pathlib import Path

import pytest

from recfuse.config import InvalidFieldError
from recfuse.state.store import REMEMBERED_EVENTS, UserState, UserStateError, UserStateStore


def test_round_trip(tmp_path: Path) -> None:
    ada = UserState(features={"age": 36, "device": "phone", "premium": True, "city": None, "x": 0.5}, history=(3, 1, 2))
    with UserStateStore(tmp_path / "users.sqlite") as store:
        assert store.get("ada") is None
        assert store.put_many([("ada", ada), ("bob", UserState())]) == 2
        assert store.get("ada") == ada
        assert store.get_many(["bob", "eve", "ada"]) == {"ada": ada, "bob": UserState()}
        assert len(store) == 2
    with UserStateStore(tmp_path / "users.sqlite") as again:
        assert again.get("ada") == ada


def test_many_users_in_batches(tmp_path: Path) -> None:
    users = {f"u{i}": UserState(features={"n": i}) for i in range(1_200)}
    with UserStateStore(tmp_path / "users.sqlite") as store:
        store.put_many(users.items())
        assert store.get_many(list(users)) == users


def test_record_appends_and_overrides(tmp_path: Path) -> None:
    with UserStateStore(tmp_path / "users.sqlite", history_size=3) as store:
        store.record("ada", [1, 2], {"age": 36, "likes": 1})
        store.record("ada", [3, 4], {"likes": 2})
        assert store.get("ada") == UserState(features={"age": 36, "likes": 2}, history=(2, 3, 4))


def test_records_of_two_processes_do_not_overwrite_each_other(tmp_path: Path) -> None:
    """Two connections stand for two processes; each adds its own 50 items."""
    stores = [UserStateStore(tmp_path / "users.sqlite", history_size=100) for _ in range(2)]

    def write(number: int) -> None:
        for i in range(50):
            stores[number].record("ada", [number * 1_000 + i])

    threads = [threading.Thread(target=write, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    user = stores[0].get("ada")
    assert user is not None
    assert sorted(user.history) == [*range(50), *range(1_000, 1_050)]
    for store in stores:
        store.close()


def test_a_bad_user_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    with UserStateStore(tmp_path / "users.sqlite") as store:
        store.put_many([("ada", UserState(features={"age": 36}))])
        with pytest.raises(InvalidFieldError, match="finite numbers"):
            store.put_many([("ada", UserState()), ("bob", UserState(features={"age": float("nan")}))])
        with pytest.raises(InvalidFieldError, match=r"features\.tags"):
            store.record("ada", features={"tags": [1]})
        with pytest.raises(InvalidFieldError, match="user_id"):
            store.record("", [1])
        assert store.get_many(["ada", "bob"]) == {"ada": UserState(features={"age": 36})}


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "users.sqlite"
    path.write_bytes(b"no database at all" * 100)
    with pytest.raises(InvalidFieldError, match="a SQLite file"):
        UserStateStore(path)


def test_rows_are_json(tmp_path: Path) -> None:
    with UserStateStore(tmp_path / "users.sqlite") as store:
        store.record("ada", [7], {"age": 36})
    row = sqlite3.connect(tmp_path / "users.sqlite").execute("SELECT * FROM users").fetchone()
    assert (row[0], json.loads(row[1]), json.loads(row[2])) == ("ada", {"age": 36}, [7])


def test_a_file_of_an_earlier_version_is_read_and_written(tmp_path: Path) -> None:
    """Its table lacks the time of feedback."""
    with contextlib.closing(sqlite3.connect(tmp_path / "users.sqlite", isolation_level=None)) as database:
        database.execute("CREATE TABLE users (user_id TEXT PRIMARY KEY, features TEXT NOT NULL, history TEXT NOT NULL)")
        database.execute("""INSERT INTO users VALUES ('7', '{"age":50}', '[1]')""")
    for _ in range(2):
        with UserStateStore(tmp_path / "users.sqlite") as users:
            users.record("7", items=[2])
            assert users.update_many([("7", UserState(features={"age": 1})), ("8", UserState())], since=None) == 1
            assert users.get("7").features == {"age": 50}  # type: ignore[union-attr]
def test_an_event_counts_once_and_histories_keep_what_the_model_reads(tmp_path: Path) -> None:
    with UserStateStore(tmp_path / "users.sqlite", history_size=2) as store:
        assert [store.record("ada", [1], {"n": 1}, event="a") for _ in range(3)] == [True, False, False]
        assert store.record("bob", [1], event="a")
        assert store.record("ada", [2, 3], event="b", history_size=3)
        assert store.get("ada") == UserState(features={"n": 1}, history=(1, 2, 3))
        for number in range(300):
            store.record("eve", event=str(number))
        assert not store.record("eve", event="299")
    [count] = sqlite3.connect(tmp_path / "users.sqlite").execute("SELECT count(*) FROM events WHERE user_id = 'eve'")
    assert count == (REMEMBERED_EVENTS,)


def test_a_file_of_an_earlier_version_remembers_events_from_now_on(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "users.sqlite") as old:
        old.execute("CREATE TABLE users (user_id TEXT PRIMARY KEY, features TEXT NOT NULL, history TEXT NOT NULL)")
        old.execute("INSERT INTO users VALUES ('ada', '{}', '[1]')")
    with UserStateStore(tmp_path / "users.sqlite") as store:
        assert [store.record("ada", [2], event="a") for _ in range(2)] == [True, False]
        assert store.get("ada") == UserState(history=(1, 2))


@pytest.mark.parametrize(("features", "history"), [
    ("{", "[]"), ("[]", "[]"), ("{}", "{}"), ("{}", "1"), ("null", "[]")])
def test_a_state_that_is_none_is_an_error_of_its_user_alone(tmp_path: Path, features: str, history: str) -> None:
    with UserStateStore(tmp_path / "users.sqlite") as store:
        store.put_many([("ada", UserState())])
        with sqlite3.connect(tmp_path / "users.sqlite") as other:
            other.execute("INSERT INTO users (user_id, features, history) VALUES ('bob', ?, ?)", (features, history))
        for act in (lambda: store.get("bob"), lambda: store.record("bob", [1])):
            with pytest.raises(UserStateError):
                act()
        assert store.get("ada") == UserState()
        assert store.record("ada", [1])


def test_a_lock_of_another_process_ends_writes_and_no_reads(tmp_path: Path) -> None:
    with UserStateStore(tmp_path / "users.sqlite", write_seconds=0.01) as store:
        store.put_many([("ada", UserState(history=(1,)))])
        other = sqlite3.connect(tmp_path / "users.sqlite", isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UserStateError, match="locked"):
            store.record("ada", [2])
        assert store.get("ada") == UserState(history=(1,))
        other.execute("ROLLBACK")
        assert store.record("ada", [2])


def test_a_full_disk_ends_writes_and_no_reads(tmp_path: Path) -> None:
    with UserStateStore(tmp_path / "users.sqlite") as store:
        store.put_many([("ada", UserState(history=(1,)))])
        store._connection.execute("PRAGMA max_page_count = 1")
        with pytest.raises(UserStateError, match="full"):
            store.record("ada", features={"long": "x" * 100_000})
        assert store.get("ada") == UserState(history=(1,))


def test_a_damaged_page_is_an_error_of_those_who_are_on_it(tmp_path: Path) -> None:
    path = tmp_path / "users.sqlite"
    with UserStateStore(path) as store:
        store.put_many((f"u{i}", UserState(features={"text": "x" * 200})) for i in range(2_000))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(b"\xff" * 8192)
    with UserStateStore(path) as store:
        answers = Counter()
        for i in range(2_000):
            try:
                answers[store.get(f"u{i}") is not None] += 1
            except UserStateError:
                answers["error"] += 1
    assert answers["error"] > 0
    assert answers[True] > 1_000
