"""Policies learned on replay, on logs of rankings whose effects are known (maths 5.5 to 5.7)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranked_samples
import torch
from learners import build, fit, fit_all

from recfuse.config import InvalidFieldError
from recfuse.fusion.policies import FixedGaussian
from recfuse.learning import registry
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.phases import names_of
from recfuse.learning.replay_settings import ReplaySettings
from recfuse.learning.settings import LearningSettings, StoppingRule
from recfuse.learning.training import verdicts


def settings_of(algorithm: str = "two_stage", **changes: Any) -> LearningSettings:
    few = StoppingRule(iterations=8)
    known = {"critics": few, "cloning": StoppingRule(iterations=2), "stage_one": StoppingRule(iterations=4),
             "stage_two": few}
    values: dict[str, Any] = {name: rule for name, rule in known.items()
                              if name in registry.find(algorithm).model_fields}
    given = registry.settings(algorithm, minibatch_size=512, window_rows=4096, policy_learning_rate=5e-3,
                              replay=ReplaySettings(requests=1500, floor=-1.0, passes=8), **values)
    return given.resolved(True, True).replace(**changes)


def trained(directory: Path, settings: LearningSettings) -> tuple[Any, dict[str, list[dict[str, float]]]]:
    learner = build(directory, settings)
    return learner, fit_all(learner, directory, settings)


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    return ranked_samples.write(tmp_path_factory.mktemp("alike"))


@pytest.fixture(scope="module")
def different(tmp_path_factory):
    return ranked_samples.write(tmp_path_factory.mktemp("different"), spread=1.5)


def test_a_policy_is_served_where_people_differ_visibly(different):
    learner, metrics = trained(different, settings_of())
    gate = metrics["gate"][-1]
    assert gate["publishes_vector"] == 0
    assert gate["gain"] > 3 * gate["gain_error"]
    assert not isinstance(learner.fusion.served(), FixedGaussian)
    with torch.no_grad():
        mu = learner.fusion.policy(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]))[0][:, 0]
    angles = torch.atan2(mu[:, 1], mu[:, 0]).rad2deg()
    assert angles[0] < 20.0 < 70.0 < angles[1]  # the first column for the one, the second for the other


def test_the_vector_is_published_where_people_are_alike(alike):
    learner, metrics = trained(alike, settings_of())
    assert metrics["gate"][-1]["publishes_vector"] == 1
    served = learner.fusion.served()
    assert isinstance(served, FixedGaussian)
    assert float(np.degrees(np.arctan2(served.mu[1], served.mu[0]))) == pytest.approx(45.0, abs=12.0)
    assert metrics["replay"][-1]["attention"] == pytest.approx(0.85, abs=0.12)


def test_what_was_decided_is_said():
    gate = {"gain": 0.0088, "gain_lower": 0.0028, "publishes_vector": 0.0}
    assert verdicts({"gate": gate}) == [
        "replay on other users finds the policy +0.88% over one vector for everybody, of what a request brings, and "
        "above +0.28% with the wanted confidence: the policy is published"]
    assert verdicts({"gate": {**gate, "publishes_vector": 1.0}})[0].endswith("the vector is published")
    assert verdicts({"critics": {}}) == []


def test_without_any_effect_stage_one_stays_at_the_logged_policy(tmp_path):
    """Maths R4."""
    directory = ranked_samples.write(tmp_path, users=300, effect=0.0)
    learner = build(directory, settings_of())
    for phase in ("critics", "cloning"):
        fit(learner, directory, phase, 2)
    learner.fusion.page_effects.zero_()
    metrics = fit(learner, directory, "stage_one", 3)
    assert metrics[-1]["kl/like"] < 0.02


def test_a_floor_holds_a_behaviour_that_the_objective_gives_away(different):
    """With all weight on the first column's people, likes fall; a floor at the log keeps them there, on users whom no
    step has climbed on."""
    free = trained(different, settings_of())[1]["stage_two"][-1]
    settings = settings_of(replay=ReplaySettings(requests=1500, floor=0.05, passes=25))
    passes = trained(different, settings)[1]["stage_two"]
    held = passes[-1]
    assert free["effect/like"] < 0.04
    assert held["effect/like"] > 0.03
    assert held["multiplier/like"] > 0
    assert held["effect"] < free["effect"]
    # Dual ascent stands still at the floor instead of swinging around it.
    assert all(each["effect/like"] == pytest.approx(0.05, abs=0.015) for each in passes[-8:])


def test_interaction_only_climbs_likes(different):
    learner, metrics = trained(different, settings_of("interaction_only"))
    assert metrics["stage_two"][-1]["effect/like"] > 0.05
    with torch.no_grad():
        mu = learner.fusion.policy(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]))[0][:, 0]
    assert (torch.atan2(mu[:, 1], mu[:, 0]).rad2deg() > 65.0).all()


def test_the_closed_form_goes_where_the_floors_go(different):
    learner, metrics = trained(different, settings_of(extraction="closed_form"))
    assert metrics["multipliers"][-1]["lambda_total"] in (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    with torch.no_grad():
        mu = learner.fusion.policy(torch.tensor([[2.0, 0.0], [-2.0, 0.0]]))[0][:, 0]
    angles = torch.atan2(mu[:, 1], mu[:, 0]).rad2deg()
    assert angles[0] < angles[1] - 15.0


def test_one_vector_alone(alike):
    settings = settings_of("replay_vector")
    assert names_of(settings.phases) == ("critics", "replay")
    learner, _ = trained(alike, settings)
    assert isinstance(learner.fusion.served(), FixedGaussian)


def test_a_restored_learner_continues_to_the_last_bit(different):
    settings = settings_of()
    whole, first, second = (build(different, settings) for _ in range(3))
    order = [("critics", 1), ("cloning", 1), ("replay", 1), ("stage_one", 1), ("trial_1", 2), ("trial_2", 1),
             ("gate", 1), ("stage_two", 1)]
    for phase, passes in order:
        fit(whole, different, phase, passes)
    for phase, passes in order[:3]:
        fit(first, different, phase, passes)
    second.restore(first.snapshot())
    for phase, passes in order[3:]:
        fit(second, different, phase, passes)
    expected = whole.snapshot()
    for name, array in second.snapshot().items():
        assert np.array_equal(array, expected[name]), name


@pytest.mark.parametrize(("steps", "taken"), [(1, 1), (5, 5)])
def test_a_pass_takes_so_many_steps_as_the_settings_say(different, steps, taken):
    """Of 6,000 samples about 5,400 are learned from: windows of 7 and 3 minibatches of 512."""
    learner = build(different, settings_of(replay=ReplaySettings(requests=1500, floor=-1.0, steps=steps)))
    fit(learner, different, "stage_one", 1)
    counts = {float(value) for name, value in learner.snapshot().items() if name.endswith("step")}
    assert counts == {taken}


def test_auto_replays_where_every_sample_has_candidates():
    assert TwoStageConfig().resolved(True, True).advantage == "replay"
    assert TwoStageConfig().resolved(True, False).advantage == "regressed"
    assert TwoStageConfig(advantage="sampled").resolved(True, True).advantage == "sampled"
    assert TwoStageConfig(targets="v_trace").resolved(True, True).advantage == "regressed"
    with pytest.raises(InvalidFieldError, match="advantage"):
        TwoStageConfig(advantage="replay").resolved(True, False)
    with pytest.raises(InvalidFieldError, match="candidates"):
        registry.settings("replay_vector").resolved(True, False)
