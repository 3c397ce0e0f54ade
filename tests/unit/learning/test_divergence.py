"""A loss that is no number: what the learner says of it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import samples as toy
from learners import build, fit, settings_of

from recfuse.learning.divergence import DivergedError, finite_or_raise


def test_the_step_the_term_and_the_extreme_columns_are_named(tmp_path):
    """One reward is so much larger than the others that its square is beyond float32."""
    columns = toy.bandit(3000)
    columns["feedback"][7, 1] = 3e30
    columns["state"][2000, 2] = 1e9
    columns["next_state"][9, 0] = 5e8
    samples = toy.write(tmp_path, columns, files=1)
    learner = build(samples, settings_of(critic_learning_rate=1e30, window_rows=4096))
    [metrics] = fit(learner, samples, "critics", 1)
    assert math.isnan(metrics["loss"])
    assert learner.diverged.startswith("critics: the loss is not finite from step ")
    assert " of pass 1 on, by loss/" in learner.diverged
    for label in ("state[2] 1e+09", "next_state[0] 5e+08", "feedback.like (in deviations)"):
        assert label in learner.diverged
    assert "\n" not in learner.diverged


def test_without_extreme_values_the_rate_is_suspected(tmp_path):
    samples = toy.write(tmp_path, toy.bandit(1000), files=1)
    learner = build(samples, settings_of(policy_learning_rate=1e30))
    fit(learner, samples, "cloning", 1)
    assert learner.diverged.startswith("cloning: the loss is not finite from step 2 of pass 1 on")
    assert learner.diverged.endswith("a lower learning rate may help")


def test_a_parameter_that_the_last_step_ruined_counts(tmp_path):
    """The only step of the pass has a loss; what comes after it has none."""
    samples = toy.write(tmp_path, toy.bandit(256), files=1)
    learner = build(samples, settings_of(critic_learning_rate=1e39, holdout=0.0))
    [metrics] = fit(learner, samples, "critics", 1)
    assert math.isnan(metrics["loss"])
    assert learner.diverged.startswith("critics: parameters are not finite after pass 1, whose losses all were")


def test_an_ordinary_pass_says_nothing(tmp_path):
    samples = toy.write(tmp_path, toy.bandit(1000), files=1)
    learner = build(samples, settings_of())
    [metrics] = fit(learner, samples, "critics", 1)
    assert np.isfinite(metrics["loss"])
    assert learner.diverged == ""


def test_the_error_is_one_line():
    finite_or_raise(1.0, [""])
    with pytest.raises(DivergedError, match=r"^training cannot go on: policy: .*; the checkpoint of"):
        finite_or_raise(math.nan, ["", "policy: the loss is not finite"])
