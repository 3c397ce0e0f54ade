"""Ids of a team's own, integers or text, from exposures through scorer, catalogue and users to answers."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recfuse.bundle import read_bundle
from recfuse.bundle.pointer import read_pointer
from recfuse.logs.exposure_files import read_exposures
from recfuse.scenes.config import ModelConfig, TrainScenesConfig
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.registry import Registry, Scene
from recfuse.scenes.sources import read_logs
from recfuse.scenes.train_scenes import train_scenes
from recfuse.scenes.training.config import TrainingConfig
from recfuse.serving.config import ExportConfig
from recfuse.serving.export import export
from recfuse.state.store import UserStateStore

TASKS = ("click", "long_view")
REGISTRY = Registry(scenes=tuple(Scene(name=name, tasks=TASKS) for name in ("feed", "shop")))
MODEL = ModelConfig(embedding_size=4, history_length=3, experts=2, expert_layers=(8, 6), tower_layers=(4,))
# What the ids 0, 1, … of the test are written as; serving is asked with the same.
KINDS: dict[str, Callable[[int], Any]] = {
    "integers": lambda number: 2**53 + number,
    "text": lambda number: f"sku/{number}-ü",
    "digits": lambda number: str(2**62 + number),
    "unsigned": lambda number: 2**63 + number,
}


def column(values: list[Any]) -> pa.Array:
    return pa.array(values, pa.string() if isinstance(values[0], str) else pa.uint64() if values[0] >= 2**63 else None)


def write(root: Path, written: Callable[[int], Any], rows: int = 900) -> Path:
    """60 users whose first items are 1 and 2, 40 items, 3 days."""
    rng = np.random.default_rng(0)
    users, items, root = rng.integers(0, 60, rows).tolist(), rng.integers(0, 40, rows), root / "exposures"
    root.mkdir()
    pq.write_table(pa.table({
        "user_id": column([written(user) for user in users]).dictionary_encode(),
        "item_id": column([written(item) for item in items.tolist()]), "scene": rng.choice(["feed", "shop"], rows),
        "ts": pa.array(rng.integers(0, 3 * 86_400, rows) * 10**6, pa.timestamp("us", "UTC")),
        **{task: rng.random(rows) < .2 + .6 * (items % 2) for task in TASKS}}), root / "rows.parquet")
    pq.write_table(pa.table({"user_id": column([written(user) for user in range(60)]), "age": [20.0, 50.0] * 30}),
                   root / "users.parquet")
    pq.write_table(pa.table({"item_id": column([written(item) for item in range(40)]),
                             "price": [Decimal("9.5") + item for item in range(40)]}), root / "items.parquet")
    pq.write_table(pa.table({"user_id": column([written(user) for user in range(60)]),
                             "items": pa.ListArray.from_arrays(np.arange(0, 121, 2), column(
                                 [written(1), written(2)] * 60))}), root / "history.parquet")
    return root


def trained(logs: Path, output: Path) -> Path:
    config = TrainScenesConfig(exposures=str(logs), layout="native", output=str(output), model=MODEL, intervals=0,
                               training=TrainingConfig(workers=0, bfloat16=False))
    source = read_logs(str(logs), "native", registry=REGISTRY)
    return train_scenes(config, source.exposures, REGISTRY).bundle


@pytest.fixture(scope="module")
def trained_scorer(tmp_path_factory: pytest.TempPathFactory) -> SceneScorer:
    directory = tmp_path_factory.mktemp("integers")
    return SceneScorer.from_bundle(read_bundle(trained(write(directory, int), directory / "scenes")))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_from_exposures_to_answers(start: Callable[..., Any], models: Path, tmp_path: Path, kind: str) -> None:
    written = KINDS[kind]
    logs = write(tmp_path, written)
    bundle = trained(logs, tmp_path / "scenes")
    for part in ("catalogue.parquet", "users.sqlite"):
        (models / part).unlink()
    export(ExportConfig(models=str(models), scenes=str(bundle), logs=str(logs), layout="native"),
           lambda _: pytest.fail("native files are read here"), lambda _: pytest.fail("there is no world"))
    (models / str(read_pointer(models).catalogue)).rename(models / "catalogue.parquet")
    scorer = SceneScorer.from_bundle(read_bundle(bundle))
    application = start(scorer)
    asked = [written(item) for item in (7, 8, 9)]
    body = {"user": {"user_id": written(5), "hour": 9}, "candidates": {"item_id": asked}}
    answer = application.post("/v1/scenes/feed/rank", body).json()
    assert answer["unknown"] == {}
    assert {item["item_id"] for item in answer["items"]} == set(asked)
    told = {item["item_id"]: item for item in answer["items"]}
    assert [told[each]["catalogue"]["price"] for each in asked] == [16.5, 17.5, 18.5]
    # As of a row of the exposures, with the keys that training made.
    exposures = read_exposures(str(logs), TASKS)
    keys = dict(zip(pq.read_table(logs / "items.parquet")["item_id"].to_pylist(),
                    exposures.items["item_id"].to_pylist(), strict=True))
    rows = pa.table({"user_id": [keys[written(5)]] * 3, "item_id": [keys[each] for each in asked],
                     "scene": ["feed"] * 3, "hour": [9] * 3})
    history = np.array([[np.iinfo(np.int64).min, keys[written(1)], keys[written(2)]]] * 3)
    expected = scorer.score_rows(rows, exposures.users, exposures.items, history)
    for task in TASKS:
        np.testing.assert_allclose([told[each]["probabilities"][task] for each in asked], expected[task], rtol=1e-5)
    # Feedback goes into the history as it came, and recommendations are logged.
    sent = {"request_id": "r", "feedback": {}, "user_id": written(5), "items": [written(9)]}
    assert application.post("/v1/feedback", sent).status_code == 202
    with UserStateStore(models / "users.sqlite") as users:
        state = users.get(str(written(5)))
        assert state is not None
        assert state.history == (written(1), written(2), written(9))
    recommended = application.post("/v1/recommend", {**body, "scene": "feed"})
    assert recommended.status_code == 200, recommended.text
    assert {item["item_id"] for item in orjson.loads(recommended.content)["items"]} == set(asked)


@pytest.mark.parametrize("number", [2**53 + 1, 2**63 - 1, 2**64 - 1, -(2**63), 1e300])
def test_integers_beyond_the_floats_are_numbers(start: Callable[..., Any], trained_scorer: SceneScorer,
                                                number: float) -> None:
    application = start(trained_scorer)
    body = {"user": {"user_id": 5, "age": number, "hour": 2**60},
            "candidates": {"item_id": [7, 2**64 - 1], "price": [number, 1.5]}}
    assert application.post("/v1/scenes/feed/rank", body).status_code == 200
    body["candidates"]["price"] = [number, None]
    answer = application.post("/v1/recommend", {**body, "scene": "feed", "context": {"age": 1}})
    assert answer.status_code == 200, answer.text
    assert {item["item_id"] for item in orjson.loads(answer.content)["items"]} == {7, 2**64 - 1}


def test_digits_and_integers_are_one_id(tmp_path: Path) -> None:
    """Training on "7" gives the bits of training on 7."""
    parameters = []
    for name, written in (("integers", int), ("digits", str)):
        (tmp_path / name).mkdir()
        bundle = trained(write(tmp_path / name, written), tmp_path / name / "scenes")
        parameters.append(SceneScorer.from_bundle(read_bundle(bundle)).parameters())
    for name, values in parameters[0].items():
        assert torch.equal(values, parameters[1][name]), name
