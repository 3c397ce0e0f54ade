"""Going on from a trained scorer: scenes come and go by config, and a number has a head of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recfuse.bundle import read_bundle
from recfuse.config import InvalidFieldError
from recfuse.logs.account import Account
from recfuse.logs.exposures import SCORER_SHARE, Exposures
from recfuse.scenes.config import GENERATORS, ModelConfig, TrainScenesConfig
from recfuse.scenes.dataset import scene_rows, split_by_time
from recfuse.scenes.evaluation import TestDay
from recfuse.scenes.features import Feature
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.registry import Registry, Scene
from recfuse.scenes.train_scenes import train_scenes
from recfuse.scenes.training.config import TrainingConfig
from recfuse.scenes.training.fit import train
from recfuse.scenes.training.problem import prepare
from recfuse.simulation import sources
from recfuse.simulation.exposures import generate
from recfuse.simulation.simulate import load_scorer

PAIR = ("click", "long_view")
BEFORE = Registry(scenes=(Scene(name="0", tasks=PAIR), Scene(name="1", tasks=PAIR), Scene(name="4", tasks=PAIR)))
AFTER = Registry(scenes=(Scene(name="0", tasks=PAIR), Scene(name="1", tasks=PAIR),
                         Scene(name="2", tasks=PAIR, like="1")))
MODEL = ModelConfig(embedding_size=4, history_length=3, experts=2, expert_layers=(8, 6), tower_layers=(4,))
TRAINING = TrainingConfig(workers=0, bfloat16=False, minimum_positives=1, batch_size=128)
USER, ITEMS = {"user_id": 3, "hour": 9}, {"item_id": np.arange(20)}


@pytest.fixture(scope="module")
def source() -> Exposures:
    torch.set_num_threads(1)
    return generate(seed=4, users=150, items=60, rows=3_000)


@pytest.fixture(scope="module")
def bundle(source: Exposures, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("before")
    return train_scenes(config(output), source, BEFORE).bundle


def config(output: Path, **changes: object) -> TrainScenesConfig:
    return TrainScenesConfig(output=str(output), model=MODEL, training=TRAINING, **changes)  # type: ignore[arg-type]


def changed(bundle: Path, source: Exposures, output: Path, epochs: int, registry: Registry = AFTER) -> SceneScorer:
    job = config(output, start_from=str(bundle), registry=registry)
    job = job.replace(training=TRAINING.replace(epochs=epochs))
    return SceneScorer.from_bundle(read_bundle(train_scenes(job, source, BEFORE).bundle))


def test_a_scene_added_and_one_retired_leave_the_others_bitwise(bundle: Path, source: Exposures,
                                                                tmp_path: Path) -> None:
    """With no epoch nothing is trained: the others answer with the same bits, the new scene as the one it is like."""
    before = SceneScorer.from_bundle(read_bundle(bundle))
    after = changed(bundle, source, tmp_path, epochs=0)
    assert set(after.tasks) == {"0", "1", "2"}
    for scene in ("0", "1"):
        old, new = before.score(scene, USER, ITEMS), after.score(scene, USER, ITEMS)
        for task in PAIR:
            np.testing.assert_array_equal(new.probabilities[task], old.probabilities[task])
    mine, theirs = after.parameters(), before.parameters()
    pair = {name: index for index, name in enumerate(("0", "1", "2"))}
    for name, value in mine.items():
        if name.startswith("towers."):
            assert torch.equal(value[2 * pair["2"]:2 * pair["2"] + 2], theirs[name][2:4])
            assert torch.equal(value[:4], theirs[name][:4])
        elif not name.startswith("first."):
            assert torch.equal(value, theirs[name])


def test_training_goes_on_from_a_bundle(bundle: Path, source: Exposures, tmp_path: Path) -> None:
    """One epoch more starts at the old model: its first loss is that of a trained one, not of an untrained one."""
    exposures = scene_rows(source, AFTER)
    split = split_by_time(exposures)
    start = SceneScorer.from_bundle(read_bundle(bundle))
    problem = prepare(exposures, split.training, AFTER, MODEL, TRAINING, start=start)
    assert problem.encoder is start.encoder
    from recfuse.scenes.training.problem import untrained
    for name, value in untrained(problem).state_dict().items():
        if not name.startswith(("towers.", "first.")):
            torch.testing.assert_close(value, start.parameters()[name], rtol=0, atol=0)
    after = changed(bundle, source, tmp_path, epochs=1)
    assert not np.array_equal(after.score("0", USER, ITEMS).probabilities["click"],
                              start.score("0", USER, ITEMS).probabilities["click"])


@pytest.mark.parametrize(("scene", "message"), [
    (Scene(name="2", tasks=PAIR), "scene 2: like: got ''; allowed: 0, 1, 4"),
    (Scene(name="2", tasks=PAIR, like="9"), "scene 2: like: got '9'; allowed: 0, 1, 4"),
    (Scene(name="2", tasks=("like",), like="1"), "scene 2: task: got 'like'; allowed: click, long_view"),
])
def test_bad_starts_are_named(bundle: Path, source: Exposures, tmp_path: Path, scene: Scene, message: str) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        changed(bundle, source, tmp_path, 0, Registry(scenes=(*BEFORE.scenes, scene)))


def test_no_epochs_need_a_start(source: Exposures, tmp_path: Path) -> None:
    job = config(tmp_path).replace(training=TRAINING.replace(epochs=0))
    with pytest.raises(InvalidFieldError, match="epochs: got 0; allowed: an integer ≥ 1 without a start"):
        train_scenes(job, source, BEFORE)


def test_a_number_is_predicted_in_its_own_unit(source: Exposures, tmp_path: Path) -> None:
    """Watch time cut at 60 s: the mean is right, longer ones come first, and the bundle keeps the unit."""
    registry = Registry(scenes=(Scene(name="1", tasks=("click", "watch_time")),), numbers={"watch_time": 60.0})
    exposures = scene_rows(source, registry)
    split = split_by_time(exposures)
    training = TRAINING.replace(epochs=6, batch_size=64)
    scorer = train(prepare(exposures, split.training, registry, MODEL, training), tmp_path)
    seconds = np.minimum(exposures.column("watch_time"), 60.0)
    predicted = scorer.score_exposures(exposures)["watch_time"]
    own = split.training
    # The shift is fitted to the last training day alone, some hundred rows, whose own mean is that uncertain.
    assert predicted[own].mean() == pytest.approx(seconds[own].mean(), rel=.2)
    assert np.corrcoef(predicted[own], seconds[own])[0, 1] > .3
    day = TestDay.of(exposures, split, scorer.history_length)
    assert set(day.predict(scorer)) == {"click"}
    (figures,) = day.number_metrics(scorer)
    assert (figures.scene, figures.task, figures.rows) == ("1", "watch_time", split.test.sum())
    assert figures.root_mean_squared_error >= figures.mean_absolute_error > 0
    path = scorer.export(tmp_path, training={}, data_fingerprint="f", metrics={})
    loaded = SceneScorer.from_bundle(read_bundle(path)).score("1", USER, ITEMS).probabilities["watch_time"]
    np.testing.assert_array_equal(loaded, scorer.score("1", USER, ITEMS).probabilities["watch_time"])
    assert loaded.max() > 1


NEW = Scene(name="kitchen", tasks=("click",), optional_tasks=("long_view",), like="1")


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_new_page_needs_no_rows_yet(bundle: Path, source: Exposures, tmp_path: Path, epochs: int) -> None:
    """It answers as the page that it is like, save for the name of the page; its towers stay while experts learn."""
    after = changed(bundle, source, tmp_path, epochs, Registry(scenes=(*BEFORE.scenes, NEW)))
    assert after.tasks["kitchen"] == PAIR
    before, new = (scorer.score(scene, USER, ITEMS).probabilities for scorer, scene in (
        (SceneScorer.from_bundle(read_bundle(bundle)), "1"), (after, "kitchen")))
    for task in PAIR:
        np.testing.assert_allclose(new[task], before[task], rtol=.5 if epochs else 5e-3)


def test_an_optional_task_that_the_bundle_lacks_is_left_out(bundle: Path, source: Exposures, tmp_path: Path) -> None:
    scenes = (Scene(name="0", tasks=PAIR, optional_tasks=("like",)),
              Scene(name="4", tasks=(), optional_tasks=("like",)))
    assert changed(bundle, source, tmp_path, 0, Registry(scenes=scenes)).tasks == {"0": PAIR}


def test_a_number_keeps_its_cut(source: Exposures, tmp_path: Path) -> None:
    def registry(**numbers: float) -> Registry:
        return Registry(scenes=(Scene(name="1", tasks=("click", "watch_time")),), numbers=numbers)
    first = train_scenes(config(tmp_path / "a", registry=registry(watch_time=60)), source, BEFORE).bundle
    for other, message in ((registry(watch_time=120), "numbers.watch_time: got 120.0; allowed: 60, as the scorer was"),
                           (registry(watch_time=60, click=1), "numbers.click: got 1.0; allowed: a label, as the")):
        with pytest.raises(InvalidFieldError, match=message):
            changed(first, source, tmp_path / "b", 0, other)


def test_what_a_start_ignores_is_named(bundle: Path, source: Exposures, tmp_path: Path,
                                       caplog: pytest.LogCaptureFixture) -> None:
    job = config(tmp_path, start_from=str(bundle), features=(Feature(name="hour", source="context"),))
    job = job.replace(training=TRAINING.replace(epochs=0), model=MODEL.replace(experts=3))
    train_scenes(job, source, BEFORE)
    assert "ignored: model.experts, features" in caplog.text


def test_a_page_without_positives_is_left_out_and_rows_add_up(source: Exposures, tmp_path: Path) -> None:
    """Page 4 has no follow, and 0 alone is left: every row trains, or it is said why not."""
    rows = source.rows.set_column(source.rows.column_names.index("follow"), "follow",
                                  pa.array(np.zeros(source.rows.num_rows, np.int8)))
    registry = Registry(scenes=(Scene(name="0", tasks=PAIR), Scene(name="4", tasks=(), optional_tasks=("follow",))))
    quarantine = rows.slice(0, 2).append_column("reason", pa.array(["broken", "odd"]))
    count = source.rows.num_rows
    exposures = replace(source, rows=rows, quarantine=quarantine,
                        account=Account(count + 2, count, {"broken": 1, "odd": 1}))
    job = config(tmp_path, registry=registry).replace(exposures="mine")
    for _ in range(2):  # a finished run says the same
        result = train_scenes(job, exposures, registry)
        assert SceneScorer.from_bundle(read_bundle(result.bundle)).tasks == {"0": PAIR}
        scene, day = exposures.column("scene"), exposures.column("day")
        last = day == day.max()
        assert result.rows == {
            "train": ((scene == "0") & ~last).sum(), "quarantined": 2,
            "of a scene that the registry lacks": (~np.isin(scene, ["0", "4"])).sum(),
            "of a scene that is left out": ((scene == "4") & ~last).sum(),
            f"of the test day {day.max()}": (np.isin(scene, ["0", "4"]) & last).sum()}
        assert sum(result.rows.values()) == count + 2
        assert result.tables()[0][0] == f"Rows of the exposures: {count + 2:,}"
        written = pq.read_table(tmp_path / "quarantine" / "part-00000.parquet")
        assert written["reason"].to_pylist() == ["broken", "odd"]
    train_scenes(job, source, registry)
    assert not (tmp_path / "quarantine" / "part-00000.parquet").exists()
    (tmp_path / "quarantine" / "part-00000.parquet").write_text("mine")
    for given in (exposures, source):
        with pytest.raises(InvalidFieldError, match=r"output: got .*part-00000.parquet'; allowed: a directory"):
            train_scenes(job, given, registry)
    assert (tmp_path / "quarantine" / "part-00000.parquet").read_text() == "mine"


def test_all_rows_train_where_no_simulator_is_asked_for() -> None:
    assert TrainScenesConfig(exposures="mine").training_share == 1
    assert {TrainScenesConfig(exposures=name).training_share for name in sources.GENERATORS} == {SCORER_SHARE}
    assert set(sources.GENERATORS) == set(GENERATORS)
    assert TrainScenesConfig(exposures="mine", share=.5).training_share == .5


def test_a_world_refuses_a_scorer_that_saw_its_rows(bundle: Path, source: Exposures, tmp_path: Path) -> None:
    assert load_scorer(bundle).tasks == {scene.name: PAIR for scene in BEFORE.scenes}
    whole = train_scenes(config(tmp_path, share=1.0), source, BEFORE).bundle
    with pytest.raises(InvalidFieldError, match=r"scorer: got .*share of 1 of the rows.*train-scenes --share 0\.7"):
        load_scorer(whole)
