"""The job on a local Ray: it learns, writes bundle and metrics, and a rerun reuses them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jobs.train_scenes import TrainScenesConfig, main
from recfuse.bundle import read_bundle
from recfuse.evaluation.ranking import auc
from recfuse.logs.exposures import Exposures
from recfuse.scenes.dataset import TimeSplit, scene_rows, split_by_time
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.model import ModelConfig
from recfuse.scenes.registry import Registry, Scene
from recfuse.scenes.trainer import TrainingConfig, prepare, train
from recfuse.simulation.simulate import load_exposures

SMALL = ModelConfig(embedding_size=8, history_length=5, experts=2, expert_layers=(16, 8), tower_layers=(8,))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> TrainScenesConfig:
    return TrainScenesConfig(output=str(tmp_path_factory.mktemp("scenes")), model=SMALL,
                             training=TrainingConfig(epochs=2, threads=1))


@pytest.mark.usefixtures("local_ray")
def test_job_trains_evaluates_and_exports(config: TrainScenesConfig, capsys: pytest.CaptureFixture) -> None:
    result = main(config)
    assert not result.reused
    assert "AUC" in capsys.readouterr().out
    assert result.pooled("click").auc > 0.6
    assert 0.8 < result.pooled("click").predicted_over_observed < 1.25
    bundle = read_bundle(result.bundle, "scenes")
    assert bundle.manifest["metrics"]["test_day"] == result.test_day
    assert json.loads((Path(config.output) / "metrics.json").read_text())["bundle"] == result.bundle.name
    scores = SceneScorer.from_bundle(bundle).score("1", {"user_id": 1}, {"item_id": np.arange(5)})
    assert scores.probabilities["click"].shape == (5,)
    again = main(config)
    assert again.reused
    assert again.bundle == result.bundle


@pytest.mark.usefixtures("local_ray")
def test_two_workers_give_the_same_auc(config: TrainScenesConfig, tmp_path: Path) -> None:
    """Gradients are averaged over the workers, so a step of two half batches is a step of the whole one."""
    exposures, split = small(config)
    training = TrainingConfig(epochs=2, bfloat16=False, minimum_positives=5, batch_size=256, final_rate=.1)
    areas = []
    for workers in (1, 2):
        problem = prepare(exposures, split.training, config.registry, SMALL,
                          dataclasses.replace(training, workers=workers))
        predictions = train(problem, tmp_path, f"of{workers}").score_exposures(exposures)["click"]
        areas.append(auc(exposures.column("click")[split.test], predictions[split.test]))
    assert abs(areas[0] - areas[1]) < 1e-3


@pytest.mark.usefixtures("local_ray")
def test_training_that_was_cut_off_goes_on(config: TrainScenesConfig, tmp_path: Path) -> None:
    """The same name and storage: a second run takes up the checkpoint of the first, and has nothing left to do."""
    exposures, split = small(config)
    problem = prepare(exposures, split.training, config.registry, SMALL,
                      TrainingConfig(epochs=1, bfloat16=False, minimum_positives=5))
    first = train(problem, tmp_path, "same").score_exposures(exposures)["click"]
    (checkpoint,) = tmp_path.glob("same/**/checkpoint.pt")
    written = checkpoint.stat().st_mtime_ns
    again = train(problem, tmp_path, "same").score_exposures(exposures)["click"]
    np.testing.assert_array_equal(first, again)
    assert checkpoint.stat().st_mtime_ns == written


def test_details_of_the_job(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """In this process, without Ray Train: intervals, transfer and gates are printed and written."""
    registry = Registry(scenes=(Scene(name="1", tasks=("click", "long_view")), Scene(name="4", tasks=("click",))))
    job = TrainScenesConfig(output=str(tmp_path), registry=registry, model=SMALL, intervals=20, transfer=True,
                            test_day=20220504, training=TrainingConfig(workers=0))
    result = main(job)
    assert result.test_day == 20220504
    printed = capsys.readouterr().out
    for title in ("95% intervals over users", "Joint training against that scene alone", "Gates: mean share"):
        assert title in printed
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert [(one["scene"], one["task"]) for one in saved["details"]["transfer"]] == [
        ("1", "click"), ("1", "long_view"), ("4", "click")]
    assert len(saved["details"]["intervals"]) == len(saved["by_pair"])


def small(config: TrainScenesConfig) -> tuple[Exposures, TimeSplit]:
    exposures = scene_rows(load_exposures("embedded"), config.registry)
    exposures = exposures.filter(np.arange(exposures.rows.num_rows) % 6 == 0)
    return exposures, split_by_time(exposures)


@pytest.mark.usefixtures("local_ray")
def test_ray_and_in_process_training_agree(config: TrainScenesConfig, tmp_path: Path) -> None:
    """One epoch in the same order of rows: the same model but for rounding."""
    exposures, split = small(config)
    training = TrainingConfig(threads=1, bfloat16=False, minimum_positives=5, batch_size=512)
    predictions = []
    for workers in (0, 1):
        problem = prepare(exposures, split.training, config.registry, SMALL,
                          dataclasses.replace(training, workers=workers))
        predictions.append(train(problem, tmp_path, str(workers)).score_exposures(exposures)["click"])
    np.testing.assert_allclose(predictions[0], predictions[1], atol=1e-4)
