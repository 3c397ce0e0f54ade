"""What a policy is worth in a world, by simulation."""

import numpy as np
import pytest

from recfuse.config import InvalidFieldError
from recfuse.fusion.policies import FixedGaussian
from recfuse.simulation.rollout import live, rollout
from recfuse.simulation.truths import truths
from tests.unit.simulation import worlds

OTHER = FixedGaussian([1.5, .2, .5, 1, 1, 1], .3)
PERSONS = np.arange(300)
QUESTIONS = ("changed_request", "followed_request", "whole_session", "user_over_time")


def world_with(**config):
    world = worlds.world()
    return world.replace(config=world.config.replace(**config))


def test_the_logged_policy_changes_nothing():
    found = truths(worlds.world(), worlds.LOGGED, worlds.LOGGED, persons=PERSONS, seed=3)
    for question in QUESTIONS:
        truth = getattr(found, question)
        assert truth.change.shape == (len(worlds.world().vocabulary.behaviour_names),)
        np.testing.assert_array_equal(truth.change[:3], 0)
        np.testing.assert_array_equal(truth.error[:3], 0)


def test_where_a_life_is_one_request_all_questions_are_one():
    found = truths(world_with(max_requests=1, horizon_days=1e-3), worlds.LOGGED, OTHER, persons=PERSONS, seed=3)
    for question in QUESTIONS[1:]:
        np.testing.assert_allclose(getattr(found, question).change, found.changed_request.change, atol=1e-12)
    assert found.changed_request.change[0] != 0


def test_where_a_life_is_one_session_the_session_says_all():
    found = truths(world_with(horizon_days=1e-3), worlds.LOGGED, OTHER, persons=PERSONS, seed=3)
    np.testing.assert_allclose(found.whole_session.change, found.user_over_time.change, atol=1e-12)
    assert abs(found.whole_session.change[0] - found.followed_request.change[0]) > 1e-3


def test_without_consequences_a_session_changes_as_its_requests():
    """Nobody stays longer or shorter, so that both policies have as many requests of every session."""
    found = truths(world_with(stay_effect=0.0, horizon_days=1e-3), worlds.LOGGED, OTHER, persons=PERSONS, seed=3)
    np.testing.assert_allclose(found.whole_session.change, found.followed_request.change, atol=1e-12)


def test_the_sums_are_those_of_other_simulations():
    """Policies that draw nothing live as `live` and `rollout` let them."""
    world, logged = worlds.world(), FixedGaussian(worlds.LOGGED.mu, 1e-9)
    found = truths(world, logged, OTHER, persons=PERSONS, seed=3, explore=False)
    columns = world.columns(world.vocabulary.behaviour_names)
    base, other = (live(world, policy, PERSONS, seed=3, explore=False, rng=np.random.default_rng())
                   for policy in (logged, OTHER))
    total = other.feedback[:, columns].sum(0) / base.feedback[:, columns].sum(0) - 1
    np.testing.assert_allclose(found.user_over_time.change, total)
    each = (1 + total) * base.requests.sum() / other.requests.sum() - 1
    np.testing.assert_allclose(found.followed_request.change, each)
    requests = rollout(world, logged, seed=3, persons=PERSONS, explore=False)
    assert len(requests.user) == base.requests.sum()


def test_a_discount_of_zero_leaves_the_first_request_of_a_session():
    found = truths(world_with(horizon_days=1e-3), worlds.LOGGED, OTHER, persons=PERSONS, seed=3, discount=0.0)
    first = truths(world_with(max_requests=1, horizon_days=1e-3), worlds.LOGGED, OTHER, persons=PERSONS, seed=3)
    np.testing.assert_allclose(found.whole_session.change, first.whole_session.change, atol=1e-12)


def test_the_error_is_that_of_other_luck():
    """Over ten seeds the changes deviate by what one seed states, within a factor of two."""
    world = world_with(horizon_days=3.0)
    found = [truths(world, worlds.LOGGED, OTHER, persons=np.arange(60), seed=seed) for seed in range(10)]
    for question in QUESTIONS:
        change = np.array([getattr(one, question).change[0] for one in found])
        error = np.mean([getattr(one, question).error[0] for one in found])
        assert .5 < 1.96 * change.std(ddof=1) / error < 2, question


def test_one_person_is_refused():
    with pytest.raises(InvalidFieldError, match="persons: got 1"):
        truths(worlds.world(), worlds.LOGGED, OTHER, persons=np.arange(1), seed=3)
