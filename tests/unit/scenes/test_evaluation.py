"""Figures of a scorer: before and after correction, intervals, transfer, the experts' health."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from recfuse.logs.exposures import Exposures
from recfuse.scenes.config import ModelConfig
from recfuse.scenes.dataset import TimeSplit, scene_rows, split_by_time
from recfuse.scenes.evaluation import TestDay, Transfer, details, to_json
from recfuse.scenes.experts import ExpertHealth, collapsed
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.registry import Registry, Scene
from recfuse.scenes.training.config import TrainingConfig
from recfuse.scenes.training.fit import train
from recfuse.scenes.training.problem import prepare
from recfuse.simulation.exposures import generate
from recfuse.stats.ranking import AucDifference
from recfuse.stats.slopes import fit_slope

REGISTRY = Registry(scenes=(Scene(name="1", tasks=("click", "long_view")), Scene(name="4", tasks=("click",))))
MODEL = ModelConfig(embedding_size=4, history_length=3, experts=2, expert_layers=(8,), tower_layers=())
TRAINING = TrainingConfig(workers=0, bfloat16=False, minimum_positives=5, batch_size=64)


@pytest.fixture(scope="module")
def data() -> tuple[Exposures, TimeSplit]:
    torch.set_num_threads(1)
    exposures = scene_rows(generate(seed=2, users=150, items=60, rows=2_000), REGISTRY)
    return exposures, split_by_time(exposures)


@pytest.fixture(scope="module")
def scorer(data: tuple[Exposures, TimeSplit], tmp_path_factory: pytest.TempPathFactory) -> SceneScorer:
    exposures, split = data
    return train(prepare(exposures, split.training, REGISTRY, MODEL, TRAINING), tmp_path_factory.mktemp("checkpoints"))


def test_details_of_every_pair(data: tuple[Exposures, TimeSplit], scorer: SceneScorer, tmp_path: Path) -> None:
    exposures, split = data
    day = TestDay.of(exposures, split, scorer.history_length)

    def alone(scene: str) -> SceneScorer:
        own = scene_rows(exposures, REGISTRY.only(scene))
        return train(prepare(own, split_by_time(own).training, REGISTRY.only(scene), MODEL, TRAINING), tmp_path, scene)

    found = details(scorer, day, 50, alone)
    metrics = day.metrics(day.predict(scorer))
    assert len(found.intervals) == len(found.uncorrected) == len(metrics) == 5  # three pairs, two tasks pooled
    for one, raw, interval, before in zip(metrics, found.uncorrected, found.intervals, found.uncorrected_intervals,
                                          strict=True):
        assert raw.auc == pytest.approx(one.auc, abs=.05)
        for figures, bounds in ((one, interval), (raw, before)):
            assert bounds.auc[0] <= figures.auc <= bounds.auc[1]
            low, high = bounds.predicted_over_observed
            assert low <= figures.predicted_over_observed <= high
    assert [(t.scene, t.task) for t in found.transfer] == [("1", "click"), ("1", "long_view"), ("4", "click")]
    for one in found.transfer:
        assert one.joint - one.alone == pytest.approx(one.difference.difference)
    values = json.loads(json.dumps(to_json(found), allow_nan=False))
    assert values["transfer"][0]["verdict"] in ("gain", "loss", "no difference shown")


def test_few_positives_give_no_verdict() -> None:
    difference = AucDifference(.2, .1, .3)
    assert Transfer("1", "like", 500, .9, .7, difference).verdict == "gain"
    assert Transfer("1", "like", 6, .9, .7, difference).verdict == "too few positives"


def test_predictions_of_the_day_are_those_of_all_rows(data: tuple[Exposures, TimeSplit], scorer: SceneScorer) -> None:
    exposures, split = data
    day = TestDay.of(exposures, split, scorer.history_length)
    whole = scorer.score_exposures(exposures)
    for task, values in day.predict(scorer).items():
        np.testing.assert_allclose(values, whole[task][split.test], atol=1e-6)


def test_slopes_are_of_rows_that_training_did_not_see(data: tuple[Exposures, TimeSplit], scorer: SceneScorer) -> None:
    exposures, split = data
    assert not (split.unseen & split.training).any()
    assert (split.unseen | split.training).all()
    assert (split.test <= split.unseen).all()
    found = TestDay.of_rows(exposures, split.unseen, scorer.history_length).slopes(scorer)
    assert {task: tuple(scenes) for task, scenes in found.items()} == {
        "click": ("1", "4", "all"), "long_view": ("1", "all")}
    inside = split.unseen & (exposures.rows["scene"].to_numpy(zero_copy_only=False) == "4")
    users, label = exposures.column("user_id")[inside], exposures.column("click")[inside]
    assert found["click"]["4"] == fit_slope(label, scorer.score_exposures(exposures)["click"][inside], users)
    assert found["click"]["all"].rows == found["click"]["1"].rows + found["click"]["4"].rows
    assert found["click"]["all"].error < found["click"]["4"].error


def test_days_after_the_test_day_stay_out(data: tuple[Exposures, TimeSplit]) -> None:
    exposures, split = data
    earlier = split_by_time(exposures, test_day=int(np.unique(exposures.column("day"))[-2]))
    assert not (earlier.unseen & split.test).any()


def test_weights_raise_what_is_not_corrected(data: tuple[Exposures, TimeSplit], scorer: SceneScorer) -> None:
    """Long views come in a third of the rows: p = 2, so the raw prediction is far above the rate."""
    exposures, split = data
    day = TestDay.of(exposures, split, scorer.history_length)
    raw, corrected = (day.predict(scorer, corrected=flag)["long_view"] for flag in (False, True))
    assert np.nanmean(raw) > 1.2 * np.nanmean(corrected)


def test_health_of_experts(data: tuple[Exposures, TimeSplit], scorer: SceneScorer) -> None:
    exposures, split = data
    day = TestDay.of(exposures, split, scorer.history_length)
    health = scorer.expert_health(day.exposures.rows, exposures.users, exposures.items, day.histories)
    assert [(one.scene, one.task) for one in health] == [("1", "click"), ("1", "long_view"), ("4", "click")]
    for one in health:
        assert sum(one.use) == pytest.approx(1)
        assert 0 <= one.entropy <= 1 + 1e-9


def test_collapsed_experts_are_named() -> None:
    fine = ExpertHealth("1", "click", (.4, .3, .3), .9)
    assert collapsed([fine]) == []
    assert collapsed([ExpertHealth("1", "click", (.97, .02, .01), .1), fine]) == ["(1, click) takes 97% from expert 0"]
    dead = ExpertHealth("4", "click", (.5, .499, .001), .6)
    assert collapsed([dead]) == ["no pair takes more than 0.10% from expert 2"]


def test_collapse_is_warned_of(data: tuple[Exposures, TimeSplit], scorer: SceneScorer, caplog: pytest.LogCaptureFixture,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    exposures, split = data
    day = TestDay.of(exposures, split, scorer.history_length)
    model = scorer._model
    monkeypatch.setattr(model, "gates", lambda ids, *rest: torch.eye(2)[[0]].expand(len(ids), 3, 2))
    monkeypatch.setattr(logging.getLogger("recfuse"), "propagate", True)
    with caplog.at_level(logging.WARNING, "recfuse"):
        scorer.expert_health(day.exposures.rows, exposures.users, exposures.items, day.histories)
    assert "(1, click) takes 100% from expert 0" in caplog.text
