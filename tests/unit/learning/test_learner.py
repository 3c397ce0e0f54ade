"""The learner by itself: an RLlib Learner in this process, fed without Ray, on a bandit whose optimum is known."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samples as toy
import torch
from learners import SETTINGS, Reader, build, fit, fit_all
from ray.rllib.core.learner.training_data import TrainingData

from recfuse.fusion.networks import gaussian_kl
from recfuse.learning.settings import StoppingRule

STATE = torch.from_numpy(toy.bandit(500, seed=9)["state"])

@pytest.fixture(scope="module")
def samples(tmp_path_factory: Any) -> Path:
    return toy.write(tmp_path_factory.mktemp("samples"), toy.bandit())


def distance(first: Any, second: Any) -> float:
    return float(np.sqrt(((np.asarray(first) - np.asarray(second)) ** 2).sum(1)).mean())


def test_the_multiplier_decides_between_the_long_term_optimum_and_the_auxiliary(samples):
    """A small λ moves the policy to the action that watch time prefers in each state, against what `like` wants; a
    large one holds it at the policy of `like`; and those between lie between (FORMULAS 1.5, 1.6)."""
    best = toy.optimum(STATE.numpy())
    distances = []
    before = build(samples, SETTINGS)  # the multiplier matters in stage two alone
    for phase in SETTINGS.phases[:-1]:
        fit(before, samples, phase, SETTINGS.rule(phase).iterations)
    for multiplier in (0.02, 0.5, 1000.0):
        settings = dataclasses.replace(SETTINGS, multipliers={"like": multiplier})
        learner = build(samples, settings)
        learner.restore(before.snapshot())
        metrics = fit(learner, samples, "stage_two", settings.stage_two.iterations)
        with torch.no_grad():
            policy, auxiliary = learner.fusion.policy(STATE), learner.fusion.auxiliaries(STATE)
        distances.append(distance(policy[0][:, 0], best))
        if multiplier == 0.02:
            assert distances[-1] < 0.55 * distance(np.zeros_like(best), best)
            assert metrics[-1]["tau"] < 1
            assert metrics[-1]["ess_share"] == pytest.approx(settings.ess_floor, rel=1e-3)
        if multiplier == 1000.0:
            assert float(gaussian_kl(*policy, *auxiliary).mean()) < 0.1
    assert distances == sorted(distances)
    nothing = distance(np.zeros_like(best), np.broadcast_to(toy.LIKED, best.shape))
    assert distance(auxiliary[0][:, 0], np.broadcast_to(toy.LIKED, best.shape)) < 0.6 * nothing


def test_critics_learn_what_can_be_known(tmp_path):
    """Reward = first state feature + noise of the same variance: half of the variance can be explained (P1)."""
    columns = toy.bandit()
    noise = np.random.default_rng(1).standard_normal(len(columns["done"])).astype(np.float32)
    columns["feedback"][:, 1] = columns["state"][:, 0] + noise
    metrics = fit(build(toy.write(tmp_path, columns), SETTINGS), tmp_path, "critics", 15)
    assert metrics[-1]["explained_variance/like"] == pytest.approx(0.5, abs=0.05)
    assert metrics[-1]["loss/like"] == pytest.approx(0.5, abs=0.05)


def test_a_restored_learner_continues_to_the_last_bit(samples):
    whole, first, second = (build(samples, SETTINGS) for _ in range(3))
    phases = [("critics", 0), ("critics", 1), ("cloning", 0), ("stage_one", 0), ("stage_one", 1), ("stage_two", 0)]
    data = TrainingData(data_iterators=[Reader(samples)])
    for position, (phase, iteration) in enumerate(phases):
        whole.update(data, phase=phase, iteration=iteration)
        current = first if position < 4 else second
        if position == 4:
            second.restore(first.snapshot())
        current.update(data, phase=phase, iteration=iteration)
    expected, found = whole.snapshot(), second.snapshot()
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values, err_msg=name)


def test_streamed_samples_give_what_kept_ones_give(samples):
    kept, streamed = (build(samples, dataclasses.replace(SETTINGS, memory_mib=size)) for size in (512, 0))
    settings = dataclasses.replace(SETTINGS, **{phase: StoppingRule(iterations=2) for phase in SETTINGS.phases})
    for learner in (kept, streamed):
        fit_all(learner, samples, settings)
    for name, values in kept.snapshot().items():
        np.testing.assert_array_equal(streamed.snapshot()[name], values, err_msg=name)


def test_phases_leave_the_other_networks_alone(samples):
    learner = build(samples, SETTINGS)
    before = learner.snapshot()
    for phase, part in (("critics", "critics"), ("cloning", "policy"), ("stage_one", "auxiliaries"),
                        ("stage_two", "policy")):
        fit(learner, samples, phase, 1)
        after = learner.snapshot()
        changed = {name.split(".")[1] for name, values in after.items()
                   if name.startswith("module.") and not np.array_equal(before[name], values)}
        assert changed == {part}
        before = after


def test_behaviour_cloning_imitates_the_log(samples):
    settings = dataclasses.replace(SETTINGS, algorithm="behaviour_cloning", cloning=StoppingRule(iterations=5),
                                   policy_learning_rate=1e-3)
    learner = build(samples, settings)
    fit_all(learner, samples, settings)
    with torch.no_grad():
        mu, log_sigma = learner.fusion.policy(STATE)
    assert float(mu.abs().mean()) < 0.1 * toy.SIGMA
    torch.testing.assert_close(log_sigma.exp().mean((0, 1)), torch.full((2,), toy.SIGMA), rtol=0.05, atol=0)
