"""The job on a local Ray: it learns, writes bundle and metrics, and a rerun reuses them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jobs.train_scenes import TrainScenesConfig, main, read_logs
from recfuse.bundle import read_bundle
from recfuse.scenes.dataset import scene_rows, split_by_time
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.model import ModelConfig
from recfuse.scenes.trainer import TrainingConfig, prepare, train

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
def test_ray_and_in_process_training_agree(config: TrainScenesConfig, tmp_path: Path) -> None:
    """One epoch in the same order of rows: the same model but for rounding."""
    exposures = scene_rows(read_logs("embedded"), config.registry)
    exposures = exposures.filter(np.arange(exposures.rows.num_rows) % 6 == 0)
    split = split_by_time(exposures)
    training = TrainingConfig(threads=1, bfloat16=False, minimum_positives=5, batch_size=512)
    predictions = []
    for workers in (0, 1):
        problem = prepare(exposures, split.training, config.registry, SMALL,
                          dataclasses.replace(training, workers=workers))
        predictions.append(train(problem, tmp_path).score_exposures(exposures)["click"])
    np.testing.assert_allclose(predictions[0], predictions[1], atol=1e-4)
