"""Going on from a trained scorer: scenes come and go by config, and a number has a head of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recfuse.bundle import read_bundle
from recfuse.config import InvalidFieldError
from recfuse.logs.exposures import Exposures
from recfuse.scenes.config import ModelConfig, TrainScenesConfig
from recfuse.scenes.dataset import scene_rows, split_by_time
from recfuse.scenes.evaluation import TestDay
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.registry import Registry, Scene
from recfuse.scenes.train_scenes import train_scenes
from recfuse.scenes.training.config import TrainingConfig
from recfuse.scenes.training.fit import train
from recfuse.scenes.training.problem import prepare
from recfuse.simulation.exposures import generate

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
