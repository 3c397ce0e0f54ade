"""What is published, from what was trained and logged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recfuse.behaviours import Vocabulary
from recfuse.bundle.pointer import Pointer
from recfuse.config import InvalidFieldError
from recfuse.scenes.columns import align
from recfuse.serving.export import ExportConfig, export, user_states
from recfuse.state.store import UserState, UserStateStore

from .conftest import write_policy


def test_user_states_by_hand() -> None:
    """Features of the logs, over them those of the state; NaN is no JSON and becomes null."""
    users = pa.table({"user_id": [1, 2], "age": [30.0, float("nan")], "city": ["a", None]})
    history = pa.table({"user_id": [2], "items": pa.array([[5, 6]])})
    states = user_states(users, history, {"seen": np.array([4])}, np.array([1]))
    assert states == {"1": UserState(features={"age": 30.0, "city": "a", "seen": 4}),
                      "2": UserState(features={"age": None, "city": None}, history=(5, 6))}


def test_of_two_rows_of_a_user_both_training_and_serving_read_the_last() -> None:
    users = pa.table({"user_id": [1, 0, 1, 2], "age": ["first", "zero", "last", "two"]})
    history = pa.table({"user_id": pa.array([], pa.int64()), "items": pa.array([], pa.list_(pa.int64()))})
    served = user_states(users, history, {}, np.array([], np.int64))["1"].features["age"]
    assert served == align(users, "user_id", np.array([1]))["age"][0].as_py() == "last"
    assert align(users, "user_id", np.array([3, -1, 0]))["age"].to_pylist() == [None, None, "zero"]


def test_what_is_named_is_published_and_nothing_of_a_simulator(tmp_path: Path, vocabulary: Vocabulary) -> None:
    policy = write_policy(tmp_path / "trained", vocabulary, seed=1)
    models = tmp_path / "models"

    def refuse(*_: Any) -> Any:
        raise AssertionError("no exposures are named")

    pointer = export(ExportConfig(fusion=str(policy), models=str(models)), refuse, refuse)
    assert pointer == Pointer(fusion=policy.name)
    for options in ({}, {"fusion": str(policy), "parts": ("users",)}):
        with pytest.raises(InvalidFieldError):
            ExportConfig(**options)


def test_catalogue_and_users_of_native_exposures(tmp_path: Path, vocabulary: Vocabulary) -> None:
    """What an earlier export published stays."""
    own = tmp_path / "own"
    own.mkdir()
    pq.write_table(pa.table({"item_id": [5, 6], "price": [1.0, 2.0]}), own / "items.parquet")
    pq.write_table(pa.table({"user_id": [3], "segment": ["new"]}), own / "users.parquet")
    policy, models = write_policy(tmp_path / "trained", vocabulary, seed=1), str(tmp_path / "models")
    of_policy = ExportConfig(fusion=str(policy), models=models)
    first = export(of_policy, lambda _: no_exposures(), lambda _: ({}, np.zeros(0)))
    config = ExportConfig(exposures=str(own), layout="native", models=models)
    pointer = export(config, lambda _: no_exposures(), lambda _: ({}, np.zeros(0)))
    assert (pointer.fusion, pointer.scenes) == (first.fusion, None)
    assert pq.read_table(Path(models) / str(pointer.catalogue))["item_id"].to_pylist() == [5, 6]
    with UserStateStore(Path(models) / str(pointer.users)) as users:
        assert users.get("3") == UserState(features={"segment": "new"})


def no_exposures() -> Any:
    raise AssertionError("native exposures are read without their rows")
