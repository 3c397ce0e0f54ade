"""Publication: verified copies, what is not given stays, and what must not be served moves no pointer."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recfuse.behaviours import Vocabulary
from recfuse.bundle import BundleError
from recfuse.bundle.pointer import Pointer, read_pointer
from recfuse.config import InvalidFieldError
from recfuse.serving.publish import publish
from recfuse.state.store import UserState, UserStateStore

from .conftest import write_policy

ITEMS = pa.table({"item_id": [1, 2], "price": [1.0, 2.0]})


@pytest.fixture
def bundles(tmp_path: Path, vocabulary: Vocabulary) -> list[Path]:
    return [write_policy(tmp_path / "trained", vocabulary, seed) for seed in (1, 2)]


def test_everything_then_a_policy_alone(tmp_path: Path, bundles: list[Path]) -> None:
    models = tmp_path / "models"
    first = publish(models, fusion=bundles[0], catalogue=ITEMS, users={"7": UserState(features={"age": 50})})
    assert first == read_pointer(models)
    assert first.catalogue is not None
    assert pq.read_table(models / first.catalogue).equals(ITEMS)
    shutil.rmtree(bundles[0])  # serving needs nothing from where it was trained
    second = publish(models, fusion=bundles[1])
    assert second == Pointer(fusion=bundles[1].name, catalogue=first.catalogue, users="users.sqlite")
    assert read_pointer(models) == second
    assert not [path for path in models.iterdir() if path.name.startswith(".")]


def test_the_same_again_changes_nothing(tmp_path: Path, bundles: list[Path]) -> None:
    models = tmp_path / "models"
    pointers = {publish(models, fusion=bundles[0], catalogue=ITEMS) for _ in range(2)}
    assert len(pointers) == 1
    assert len(list(models.glob("catalogue-*"))) == 1


def test_states_that_feedback_updated_survive(tmp_path: Path) -> None:
    models = tmp_path / "models"
    publish(models, users={"7": UserState(features={"age": 50})})
    with UserStateStore(models / "users.sqlite") as users:
        users.record("7", items=[3], features={"age": 51})
    publish(models, users={"7": UserState(features={"age": 1}), "8": UserState(features={"age": 2})})
    with UserStateStore(models / "users.sqlite") as users:
        assert users.get("7") == UserState(features={"age": 51}, history=(3,))
        assert users.get("8") == UserState(features={"age": 2})


def test_tonights_features_replace_last_nights_but_not_later_feedback(tmp_path: Path) -> None:
    """Row by row: 7 was told of before the export and 8 after it; nobody told of 9."""
    models, tonight = tmp_path / "models", 2e9
    publish(models, users={"9": UserState(features={"age": "old", "gone": 1}, history=(1,))})
    with UserStateStore(models / "users.sqlite") as users:
        users.record("7", items=[3], features={"age": 51, "mood": "good"})
    publish(models, users={"7": UserState(features={"age": 1}), "8": UserState(features={"age": 2})},
            users_time=tonight)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recfuse.state.store.time.time", lambda: tonight + 1)
        with UserStateStore(models / "users.sqlite") as users:
            users.record("8", items=[4])
    publish(models, users={user: UserState(features={"age": 60}) for user in "789"}, users_time=tonight)
    with UserStateStore(models / "users.sqlite") as users:
        assert users.get("7") == UserState(features={"age": 60, "mood": "good"}, history=(3,))
        assert users.get("8") == UserState(features={"age": 2}, history=(4,))
        assert users.get("9") == UserState(features={"age": 60}, history=(1,))


def test_a_bad_bundle_moves_no_pointer(tmp_path: Path, bundles: list[Path]) -> None:
    models = tmp_path / "models"
    before = publish(models, fusion=bundles[0])
    (bundles[1] / "policy.safetensors").write_bytes(b"")
    for bundle, kind in ((bundles[1], "fusion"), (tmp_path / "nowhere", "fusion"), (bundles[0], "scenes")):
        with pytest.raises(BundleError):
            publish(models, **{kind: bundle})  # type: ignore[arg-type]
    with pytest.raises(InvalidFieldError, match="each id once"):
        publish(models, catalogue=pa.table({"item_id": [1, 1]}))
    assert read_pointer(models) == before


@pytest.mark.parametrize("statement", [
    "CREATE TABLE customers (name TEXT)", "CREATE TABLE users (id INTEGER, mail TEXT)",
    "CREATE VIEW users AS SELECT 1 AS user_id, 2 AS features, 3 AS history"])
def test_a_database_of_somebody_else_is_refused_untouched(
    tmp_path: Path, bundles: list[Path], statement: str
) -> None:
    models = tmp_path / "models"
    models.mkdir()
    with contextlib.closing(sqlite3.connect(models / "users.sqlite")) as database:
        database.execute(statement)
    before = (models / "users.sqlite").read_bytes()
    with pytest.raises(InvalidFieldError, match=r"users: got .*users.sqlite with (table|view) .*a file of user states"):
        publish(models, fusion=bundles[0], users={"7": UserState()})
    assert (models / "users.sqlite").read_bytes() == before
    assert [path.name for path in models.iterdir()] == ["users.sqlite"]


def test_a_directory_in_place_of_the_users_is_named(tmp_path: Path) -> None:
    (tmp_path / "users.sqlite").mkdir()
    with pytest.raises(InvalidFieldError, match=r"users: got .*users.sqlite'; allowed: a SQLite file, or none"):
        publish(tmp_path, users={"7": UserState()})
