"""Exposures still to come in a session: counted by hand, over all scenes, and as a task."""

from __future__ import annotations

import numpy as np
import pytest

from recfuse.config import InvalidFieldError
from recfuse.scenes.config import ModelConfig
from recfuse.scenes.dataset import label_matrix, scene_rows, split_by_time
from recfuse.scenes.depth import browsing_depth, with_depth
from recfuse.scenes.evaluation import TestDay
from recfuse.scenes.registry import Registry, Scene
from recfuse.scenes.training.config import TrainingConfig
from recfuse.scenes.training.fit import train
from recfuse.scenes.training.problem import prepare
from recfuse.simulation.exposures import generate

REGISTRY = Registry(scenes=(Scene(name="1", tasks=("click", "depth")),), numbers={"depth": 2.0})


def test_depth_is_what_follows_within_the_pause() -> None:
    minutes = np.array([0, 5, 40, 71, 10, 0, 71])  # user 1: 0, 5 | 40, | 71, 71 — 31 minutes after 40; user 2 apart
    users = np.array([1, 1, 1, 1, 2, 2, 1])
    found = browsing_depth(users, minutes * 60_000_000)
    assert found.tolist() == [1, 0, 0, 1, 0, 1, 0]
    assert browsing_depth(users, minutes * 60_000_000, pause_minutes=60).tolist() == [4, 3, 2, 1, 0, 1, 0]
    assert browsing_depth(users[:0], minutes[:0]).tolist() == []


def test_depth_counts_rows_of_every_scene_and_is_cut_by_the_registry() -> None:
    exposures = generate(seed=1, users=20, items=60, rows=1_500)
    everywhere = with_depth(exposures)
    inside = exposures.rows["scene"].to_numpy(zero_copy_only=False) == "1"
    kept = scene_rows(exposures, REGISTRY)
    assert kept.column("depth").tolist() == everywhere.column("depth")[inside].tolist()
    assert kept.column("depth").max() > 2
    np.testing.assert_allclose(label_matrix(kept.rows, REGISTRY)[:, 1], np.minimum(kept.column("depth"), 2) / 2)
    assert with_depth(kept) is kept
    with pytest.raises(InvalidFieldError, match=r"rows.depth: got .*a label column depth"):
        label_matrix(exposures.rows, REGISTRY)


def test_depth_is_predicted_as_a_mean_and_has_slopes(tmp_path) -> None:
    exposures = scene_rows(generate(seed=1, users=60, items=60, rows=3_000), REGISTRY)
    split = split_by_time(exposures)
    model = ModelConfig(embedding_size=4, history_length=3, experts=2, expert_layers=(8,), tower_layers=())
    training = TrainingConfig(workers=0, bfloat16=False, minimum_positives=5, batch_size=64)
    scorer = train(prepare(exposures, split.training, REGISTRY, model, training), tmp_path)
    day = TestDay.of(exposures, split, scorer.history_length)
    (figures,) = day.number_metrics(scorer)
    assert figures.task == "depth"
    assert figures.mean == pytest.approx(np.minimum(day.exposures.column("depth"), 2).mean())
    assert .7 < figures.predicted_over_observed < 1.4
    assert set(day.slopes(scorer)["depth"]) == {"1", "all"}
