"""The truth beside the estimates, where the held-out log comes from a simulation."""

import json

import numpy as np
import pytest

from recfuse.evaluation.estimator import QUESTIONS
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.report.config import ReportConfig
from recfuse.report.truths import keep_truths, truths_of
from tests.unit.simulation import worlds


@pytest.fixture
def config(tmp_path):
    """A simulation, a bundle of another policy, and the metrics of an evaluation."""
    world = worlds.world()
    world = world.replace(config=world.config.replace(horizon_days=1.0))
    simulation = tmp_path / "simulation"
    world.save(simulation / "world")
    logged = dict(zip(world.vocabulary.fusion_parameters, worlds.LOGGED.mu.tolist(), strict=True))
    (simulation / "metrics.json").write_text(json.dumps(
        {"run": "r", "behaviour_policy": {"mu": logged, "sigma": .5}, "held_out_users": .2}))
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "metrics.json").write_text('{"off_policy": {"advice": []}}')
    export_policy(tmp_path / "fusion", FixedGaussian([1.5, .2, .5, 1, 1, 1], .3), world.vocabulary, training={},
                  data_fingerprint="none", metrics={})
    return ReportConfig(fusion=str(tmp_path / "fusion"), holdout=str(simulation / "holdout"),
                        simulation=str(simulation), output=str(tmp_path / "report"), truth_persons=40)


def test_every_question_has_its_truth_beside_the_estimates(config, tmp_path):
    keep_truths(config)
    written = json.loads((tmp_path / "report" / "metrics.json").read_text())["off_policy"]
    assert written["advice"] == []
    assert list(written["truths"]) == [question.name for question in QUESTIONS]
    for truth in written["truths"].values():
        assert set(truth) == {"change", "error"}
        assert len(truth["change"]) == len(truth["error"]) == len(worlds.world().vocabulary.behaviour_names)
        assert truth["error"][0] > 0
    assert written["truths"] == truths_of(config), "the same seed gives the same truths"


def test_a_policy_without_exploration_has_another_truth(config):
    drawn, mean = (truths_of(config.replace(explore=explore))["a whole session"] for explore in (True, False))
    assert drawn["change"][0] != mean["change"][0]


@pytest.mark.parametrize("changed", [
    {"holdout": "elsewhere"}, {"after": "2022-05-04T00:00"}, {"new_users": True}, {"truth_persons": 0},
    {"simulation": "runs/nowhere"}])
def test_a_log_of_something_else_has_none(config, changed, tmp_path):
    config = config.replace(**changed)
    before = (tmp_path / "report" / "metrics.json").read_text()
    keep_truths(config)
    assert truths_of(config) == {}
    assert (tmp_path / "report" / "metrics.json").read_text() == before


def test_another_seed_is_other_luck(config):
    first, second = (np.array(truths_of(config.replace(seed=seed))["a user over a time"]["change"][:1])
                     for seed in (0, 1))
    assert first != second
