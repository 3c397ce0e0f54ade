"""The job, and Ray Train beneath it: it learns, writes bundle and metrics, resumes, and workers agree."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from recfuse.bundle import read_bundle
from recfuse.jobs.train_scenes import main
from recfuse.logs.exposures import Exposures
from recfuse.scenes.config import ModelConfig, TrainScenesConfig
from recfuse.scenes.dataset import TimeSplit, scene_rows, split_by_time
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.registry import KUAIRAND, Registry, Scene
from recfuse.scenes.training.blocks import batches, windows
from recfuse.scenes.training.config import TrainingConfig
from recfuse.scenes.training.fit import train
from recfuse.scenes.training.problem import prepare
from recfuse.simulation.exposures import generate
from recfuse.stats.ranking import auc

SMALL = ModelConfig(embedding_size=8, history_length=5, experts=2, expert_layers=(16, 8), tower_layers=(8,))
TRAINING = TrainingConfig(bfloat16=False, minimum_positives=5, batch_size=256)


@pytest.fixture(scope="module")
def data() -> tuple[Exposures, TimeSplit]:
    exposures = scene_rows(generate(seed=0, users=1_500, items=300, rows=10_000), KUAIRAND)
    return exposures, split_by_time(exposures)


def test_job_trains_evaluates_and_exports(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = TrainScenesConfig(output=str(tmp_path), model=SMALL, training=TrainingConfig(epochs=2, workers=0))
    result = main(config)
    assert not result.reused
    assert "AUC" in capsys.readouterr().out
    assert result.pooled("click").auc > 0.6
    assert 0.8 < result.pooled("click").predicted_over_observed < 1.25
    bundle = read_bundle(result.bundle, "scenes")
    assert bundle.manifest["metrics"]["test_day"] == result.test_day
    assert json.loads((tmp_path / "metrics.json").read_text())["bundle"] == result.bundle.name
    scores = SceneScorer.from_bundle(bundle).score("1", {"user_id": 1}, {"item_id": np.arange(5)})
    assert scores.probabilities["click"].shape == (5,)
    again = main(config)
    assert again.reused
    assert again.bundle == result.bundle


def test_details_of_the_job(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Intervals, transfer, gates and a number's metrics are printed and written, and survive a rerun."""
    registry = Registry(scenes=(Scene(name="1", tasks=("click", "long_view", "watch_time")),
                                Scene(name="4", tasks=("click",))), numbers={"watch_time": 60.0})
    job = TrainScenesConfig(output=str(tmp_path), registry=registry, model=SMALL, intervals=20, transfer=True,
                            test_day=20220504, training=TrainingConfig(workers=0))
    result = main(job)
    assert result.test_day == 20220504
    printed = capsys.readouterr().out
    for title in ("95% intervals over users", "Before the correction by", "Joint training against that scene alone",
                  "Gates: mean share", "Predicted means of numbers", "Slopes of realised on predicted"):
        assert title in printed
    saved = json.loads((tmp_path / "metrics.json").read_text())
    assert [(one["scene"], one["task"]) for one in saved["details"]["transfer"]] == [
        ("1", "click"), ("1", "long_view"), ("4", "click")]
    assert len(saved["details"]["intervals"]) == len(saved["by_pair"])
    slopes = read_bundle(result.bundle, "scenes").manifest["slopes"]
    assert saved["slopes"] == slopes
    assert set(slopes["watch_time"]) == {"1", "all"}
    assert set(slopes["click"]["4"]) == {"slope", "error", "rows"}
    again = main(job)
    assert again.reused
    assert again.numbers == result.numbers
    assert again.slopes == result.slopes


@pytest.mark.usefixtures("local_ray")
def test_two_workers_give_the_same_auc(data: tuple[Exposures, TimeSplit], tmp_path: Path) -> None:
    """Two workers' batches side by side are those of one process, and gradients are averaged: the same training."""
    exposures, split = data
    rows = split.training.copy()
    rows[np.flatnonzero(rows)[: rows.sum() % 2]] = False  # equal halves
    training = TRAINING.replace(dense_rate=1e-2, embedding_rate=.1)
    predictions = []
    for workers in (0, 2):
        problem = prepare(exposures, rows, KUAIRAND, SMALL, training.replace(workers=workers))
        predictions.append(train(problem, tmp_path, f"of{workers}").score_exposures(exposures)["click"])
    np.testing.assert_allclose(predictions[0], predictions[1], atol=1e-3)
    areas = [auc(exposures.column("click")[split.test], one[split.test]) for one in predictions]
    assert areas[0] > .55
    assert abs(areas[0] - areas[1]) < 1e-3


@pytest.mark.usefixtures("local_ray")
def test_early_stopping_ends_both_workers_alike(data: tuple[Exposures, TimeSplit], tmp_path: Path) -> None:
    """At this rate every epoch fits the rows better and the held-out day worse: the first one is kept."""
    exposures, split = data
    training = TRAINING.replace(workers=2, epochs=9, patience=1, dense_rate=3e-2, embedding_rate=1.0)
    problem = prepare(exposures, split.training, KUAIRAND, SMALL, training)
    train(problem, tmp_path, "stopped")
    states = [torch.load(path, weights_only=True) for path in tmp_path.glob("stopped/**/checkpoint.pt")]
    last = max(states, key=lambda state: state["epoch"])
    assert last["ended"]
    assert 1 < last["epoch"] < 9
    assert last["waited"] == 1


@pytest.mark.usefixtures("local_ray")
def test_ray_data_hands_over_every_row_once_an_epoch(data: tuple[Exposures, TimeSplit]) -> None:
    """In the first epoch in the order given, later ones shuffle; batches are full but for the last."""
    exposures, split = data
    problem = prepare(exposures, split.training, KUAIRAND, SMALL, TRAINING.replace(batch_size=1_000))
    shard = ray.data.from_arrow(windows(problem.rows, 1_000)).iterator()
    for epoch in (0, 1):
        found = list(batches(shard, problem, epoch))
        assert {len(batch) for batch in found[:-1]} == {1_000}
        seen = np.concatenate([np.c_[batch.user, batch.item, batch.labels] for batch in found])
        expected = np.c_[problem.rows.user, problem.rows.item, problem.rows.labels]
        assert np.array_equal(seen, expected) == (epoch == 0)
        np.testing.assert_array_equal(seen[np.lexsort(seen.T)], expected[np.lexsort(expected.T)])


@pytest.mark.usefixtures("local_ray")
def test_ray_train_agrees_with_this_process_and_goes_on(data: tuple[Exposures, TimeSplit], tmp_path: Path) -> None:
    """One epoch in the same order of rows: the same model but for rounding. Under the same name two epochs begin with
    the second one, and two epochs that are finished start no worker at all."""
    exposures, split = data
    predictions = []
    for workers in (0, 1):
        problem = prepare(exposures, split.training, KUAIRAND, SMALL, TRAINING.replace(workers=workers))
        predictions.append(train(problem, tmp_path, f"of{workers}").score_exposures(exposures)["click"])
    np.testing.assert_allclose(predictions[0], predictions[1], atol=1e-4)

    longer = dataclasses.replace(problem, training=problem.training.replace(epochs=2))
    second = train(longer, tmp_path, "of1").score_exposures(exposures)["click"]
    written = sorted(tmp_path.glob("of1/**/checkpoint.pt"), key=lambda path: path.stat().st_mtime_ns)
    assert [torch.load(path, weights_only=True)["epoch"] for path in written] == [1, 2]
    # Steps since the very first one: had the first epoch been repeated, there would be three epochs of them.
    assert torch.load(written[-1], weights_only=True)["taken"] == 2 * problem.steps
    again = train(longer, tmp_path, "of1").score_exposures(exposures)["click"]
    np.testing.assert_array_equal(second, again)
    assert len(list(tmp_path.glob("of1/**/checkpoint.pt"))) == 2
