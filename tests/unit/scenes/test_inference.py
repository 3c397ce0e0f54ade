"""The scorer: bundle round trip, one request against rows, extraction, bad requests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from recfuse.bundle import read_bundle, write_bundle
from recfuse.config import InvalidFieldError
from recfuse.logs.exposures import Exposures
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.training.fit import train
from recfuse.scenes.training.problem import Problem


@pytest.fixture(scope="module")
def scorer(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> SceneScorer:
    return train(problem, tmp_path_factory.mktemp("storage"))


def export(scorer: SceneScorer, root: Path) -> Path:
    return scorer.export(root, training={"epochs": 1}, data_fingerprint="f", metrics={"auc": 0.5})


def request(exposures: Exposures, scorer: SceneScorer, row: int) -> tuple[str, dict, dict]:
    """What a server would send for one row."""
    from recfuse.scenes.histories import NO_ITEM, row_histories

    data = exposures.rows.slice(row, 1).to_pylist()[0]
    user = next(u for u in exposures.users.to_pylist() if u["user_id"] == data["user_id"])
    items = exposures.items.slice(0, 12)
    history = [int(i) for i in row_histories(exposures, 5)[row] if i != NO_ITEM]
    columns = {name: np.array(items[name].to_pylist()) for name in items.column_names}
    return data["scene"], {**user, "hour": data["hour"], "history": history}, columns


def test_bundle_gives_back_the_same_scores(scorer: SceneScorer, exposures: Exposures, tmp_path: Path) -> None:
    path = export(scorer, tmp_path)
    loaded = SceneScorer.from_bundle(read_bundle(path, "scenes"))
    assert loaded.version == path.name
    assert loaded.tasks == scorer.tasks
    before, after = scorer.score_exposures(exposures), loaded.score_exposures(exposures)
    for task, values in before.items():
        np.testing.assert_array_equal(values, after[task])


def test_export_is_deterministic(scorer: SceneScorer, tmp_path: Path) -> None:
    assert export(scorer, tmp_path / "a").name == export(scorer, tmp_path / "b").name


@pytest.mark.parametrize("row", [0, 700, 1300])
def test_one_request_scores_as_rows_do(scorer: SceneScorer, exposures: Exposures, row: int) -> None:
    """The served path and the columnar path are the same function: no skew between serving and training."""
    import pyarrow as pa

    from recfuse.scenes.histories import row_histories

    scene, user, items = request(exposures, scorer, row)
    scores = scorer.score(scene, user, items)
    count = len(items["item_id"])
    rows = pa.table({"user_id": np.full(count, user["user_id"]), "item_id": items["item_id"], "scene": [scene] * count,
                     "hour": np.full(count, user["hour"], np.int8)})
    histories = np.repeat(row_histories(exposures, 5)[row:row + 1], count, axis=0)
    expected = scorer.score_rows(rows, exposures.users, exposures.items, histories)
    assert set(scores.probabilities) == set(scorer.tasks[scene])
    for task, values in scores.probabilities.items():
        assert values.dtype == np.float32
        np.testing.assert_allclose(values, expected[task], rtol=0, atol=1e-6)


def test_s3_scene_alone_scores_as_the_whole(scorer: SceneScorer, exposures: Exposures, tmp_path: Path) -> None:
    for scene in scorer.tasks:
        alone = SceneScorer.from_bundle(read_bundle(export(scorer.only(scene), tmp_path)))
        assert set(alone.tasks) == {scene}
        own = exposures.filter(np.array([s == scene for s in exposures.rows["scene"].to_pylist()]))
        whole = scorer.score_rows(own.rows, own.users, own.items)
        for task, values in alone.score_rows(own.rows, own.users, own.items).items():
            np.testing.assert_allclose(values, whole[task], rtol=0, atol=1e-6)


def test_retired_scene_is_gone_and_the_others_stay(scorer: SceneScorer, exposures: Exposures, tmp_path: Path) -> None:
    path = export(scorer.without_scene("1"), tmp_path)
    fewer = SceneScorer.from_bundle(read_bundle(path))
    assert set(fewer.tasks) == {"0", "4"}
    own = exposures.filter(np.isin(exposures.rows["scene"].to_pylist(), ["0", "4"]))
    whole = scorer.score_exposures(own)
    for task, values in fewer.score_exposures(own).items():
        np.testing.assert_allclose(values, whole[task], rtol=0, atol=1e-6)


def test_new_scene_starts_as_the_one_it_is_made_from(scorer: SceneScorer, exposures: Exposures) -> None:
    """Only the scene's own id differs, which the model has never seen: with it given alike, so are the predictions."""
    more = scorer.with_scene("checkout", like="1")
    assert more.tasks["checkout"] == scorer.tasks["1"]
    user = {"user_id": 1, "hour": 12}
    items = {"item_id": np.arange(8)}
    for scene in scorer.tasks:
        old, new = scorer.score(scene, user, items), more.score(scene, user, items)
        for task, values in old.probabilities.items():
            np.testing.assert_allclose(new.probabilities[task], values, rtol=0, atol=1e-6)
    copy = more.score("checkout", user, items)
    assert copy.unknown["scene"] == 1
    rows, old_model, new_model = 16, scorer._model, more._model
    inputs = (torch.zeros(rows, old_model.fields, dtype=torch.int32), torch.zeros(rows, old_model.numeric),
              torch.zeros(rows, 5, dtype=torch.int32))
    with torch.inference_mode():
        first = old_model(*inputs, torch.full((rows,), 1))[:, [p == 1 for p in old_model.pair_scene]]
        second = new_model(*inputs, torch.full((rows,), 3))[:, [p == 3 for p in new_model.pair_scene]]
    torch.testing.assert_close(first, second)


@pytest.mark.parametrize(("change", "message"), [
    (lambda scorer: scorer.without_scene("9"), "scene: got '9'; allowed: 0, 1, 4"),
    (lambda scorer: scorer.with_scene("4", like="1"), "scene: got '4'; allowed: a new name, none of 0, 1, 4"),
    (lambda scorer: scorer.with_scene("5", like="9"), "scene: got '9'; allowed: 0, 1, 4"),
    (lambda scorer: scorer.only("0").without_scene("0"), "scenes: got .*; allowed: at least one scene"),
])
def test_bad_changes_of_scenes_are_named(scorer: SceneScorer, change: Callable[[SceneScorer], SceneScorer],
                                         message: str) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        change(scorer)


def test_scenes_without_a_task_have_no_prediction_of_it(scorer: SceneScorer, exposures: Exposures) -> None:
    predictions = scorer.score_exposures(exposures)
    scene = np.array(exposures.rows["scene"].to_pylist())
    assert np.isnan(predictions["long_view"][scene == "0"]).all()
    assert np.isfinite(predictions["long_view"][scene != "0"]).all()
    assert ((predictions["click"] > 0) & (predictions["click"] < 1)).all()


def test_unknown_and_missing_values_are_counted_not_fatal(scorer: SceneScorer) -> None:
    scores = scorer.score("1", {"user_id": "stranger"}, {"item_id": np.array([1, 10**15])})
    assert scores.unknown["user_id"] == 1
    assert scores.unknown["item_id"] >= 1
    assert scores.unknown["duration"] == 2
    assert np.isfinite(scores.probabilities["click"]).all()


def test_a_bundle_is_loaded_onto_its_device(scorer: SceneScorer, tmp_path: Path) -> None:
    bundle = read_bundle(export(scorer, tmp_path), "scenes")
    for device in ("cpu", "meta"):
        loaded = SceneScorer.from_bundle(bundle, device=device)
        parts = (*loaded.parameters().values(), loaded._shift, loaded._positive_weight)
        assert {part.device.type for part in parts} == {device}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_model_on_a_gpu_scores_alike(problem: Problem, scorer: SceneScorer, exposures: Exposures,
                                       tmp_path: Path) -> None:
    """Numpy arrays go in and out, wherever the model is; a bundle holds its tensors as one of the CPU does."""
    from recfuse.scenes.training.problem import untrained

    model = untrained(problem)
    model.load_state_dict(scorer.parameters())
    moved = SceneScorer(model.cuda(), problem.registry, problem.encoder, problem.positive_weight,
                        shift=scorer._shift)
    scene, user, items = request(exposures, scorer, 700)
    here, there = scorer.score(scene, user, items), moved.score(scene, user, items)
    for task, values in here.probabilities.items():
        np.testing.assert_allclose(there.probabilities[task], values, rtol=0, atol=1e-5)
    before, after = scorer.score_exposures(exposures), moved.score_exposures(exposures)
    np.testing.assert_allclose(after["click"], before["click"], rtol=0, atol=1e-5)
    inputs = (exposures.rows, exposures.users, exposures.items, np.full((exposures.rows.num_rows, 5), -1))
    assert len(moved.expert_health(*inputs)) == len(scorer.expert_health(*inputs))
    assert export(moved, tmp_path / "a").name == export(scorer, tmp_path / "b").name
    assert set(moved.only("1").tasks) == {"1"}


def test_no_items_give_no_scores(scorer: SceneScorer) -> None:
    scores = scorer.score("1", {"user_id": 1}, {"item_id": np.array([], np.int64)})
    assert scores.probabilities["click"].shape == (0,)


@pytest.mark.parametrize(("scene", "user", "items", "message"), [
    ("9", {}, {"item_id": [1]}, "scene: got '9'; allowed: 0, 1, 4"),
    ("1", {}, {"tag": [1]}, r"items.item_id: got \['tag'\]; allowed: a column item_id"),
    ("1", {}, {"item_id": [1, 2], "duration": [1.0]}, "item.duration: got 1; allowed: 2 values"),
    ("1", {}, {"item_id": [1.5]}, "items.item_id: got .*; allowed: a list of 64-bit integers or strings"),
    ("1", {}, {"item_id": [1], "duration": ["long"]}, "item.duration: got 'string'; allowed: numbers"),
    ("1", {"history": [1.5]}, {"item_id": [1]}, "history: got .*a list of 64-bit integers or strings"),
    ("1", {"history": "x"}, {"item_id": [1]}, "history: got 'x'; allowed: a list of 64-bit integers or strings"),
    ("1", {"history": 3}, {"item_id": [1]}, "history: got 3; allowed: a list of 64-bit integers or strings"),
    ("1", {"user_id": 1.5}, {"item_id": [1]}, r"user_id: got \[1.5\]; allowed: a list of 64-bit integers or strings"),
])
def test_bad_requests_are_named(scorer: SceneScorer, scene: str, user: dict, items: dict, message: str) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        scorer.score(scene, user, items)


def test_bundle_of_another_kind_or_shape_is_refused(scorer: SceneScorer, tmp_path: Path) -> None:
    fusion = write_bundle(tmp_path, kind="fusion", tensors={"a": {"b": torch.zeros(1)}}, manifest={})
    with pytest.raises(InvalidFieldError, match="kind: got 'fusion'; allowed: scenes"):
        SceneScorer.from_bundle(read_bundle(fusion))
    bundle = read_bundle(export(scorer, tmp_path))
    bundle.tensors["model"].pop("first.bias")
    with pytest.raises(InvalidFieldError, match=r"model\.safetensors: got "):
        SceneScorer.from_bundle(bundle)
