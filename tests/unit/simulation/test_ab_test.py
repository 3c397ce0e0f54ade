"""A/B tests: buckets, intervals, and no effect where there is none."""

import numpy as np
import pytest

from recfuse.errors import InvalidFieldError
from recfuse.fusion.policies import FixedGaussian
from recfuse.simulation.ab_test import MEASURES, AbTestConfig, Arm, ab_test, assign, rollout_objective
from tests.unit.simulation import worlds

GOOD = Arm("good", FixedGaussian([2, 2, 0, 0, 0, 0], .5))
BAD = Arm("bad", FixedGaussian([-2, -2, 0, 0, 0, 0], .5))


def test_everybody_is_in_one_bucket_in_proportion():
    persons = np.arange(20_000)
    bucket = assign(persons, 3, salt=1, shares=[.8, .1, .1])
    np.testing.assert_allclose(np.bincount(bucket) / 20_000, [.8, .1, .1], atol=.01)
    np.testing.assert_array_equal(bucket[::-1], assign(persons[::-1], 3, salt=1, shares=[.8, .1, .1]))
    other = assign(persons, 3, salt=2, shares=[.8, .1, .1])
    assert (bucket != other).mean() > .2, "another test shuffles anew"


def test_a_better_ranking_wins_and_the_interval_says_so():
    result = ab_test(worlds.world(), [BAD, GOOD], persons=3_000, seed=1, draws=300)
    estimate, low, high = result.effect("good", "watch_time")
    assert 0 < low < estimate < high
    assert [arm.name for arm in result.arms] == ["bad", "good"]
    assert sum(arm.users for arm in result.arms) == 3_000
    assert len(result.rows()) == len(MEASURES)


def test_pairs_narrow_the_interval():
    def width(paired):
        _, low, high = ab_test(worlds.world(), [BAD, GOOD], persons=1_500, seed=1, paired=paired,
                               draws=300).effect("good", "watch_time")
        return high - low

    assert width(True) < width(False)


def test_the_same_policy_has_no_effect():
    """The same arm under two names and with the same luck: exactly none; in two buckets: none beyond chance."""
    twin = Arm("twin", GOOD.policy)
    paired = ab_test(worlds.world(), [GOOD, twin], persons=300, paired=True, draws=100)
    np.testing.assert_array_equal(paired.arms[1].effect.estimate, 0)
    buckets = ab_test(worlds.world(), [GOOD, twin], persons=4_000, draws=300)
    assert buckets.arms[1].effect.excludes_zero.sum() <= 2


def test_the_same_seed_gives_the_same_result():
    arms = [Arm("logged", worlds.LOGGED, explore=True), GOOD]
    first, again = (ab_test(worlds.world(), arms, persons=400, seed=3, draws=50) for _ in range(2))
    np.testing.assert_array_equal(first.arms[1].effect.low, again.arms[1].effect.low)
    np.testing.assert_array_equal(first.arms[0].mean, again.arms[0].mean)


def test_the_objective_scores_each_vector_by_itself():
    objective = rollout_objective(worlds.world(), persons=100, seed=1)
    together = objective(np.array([GOOD.policy.mu, BAD.policy.mu], np.float64))
    alone = [objective(np.array([arm.policy.mu], np.float64))[0] for arm in (GOOD, BAD)]
    np.testing.assert_allclose(together, alone)
    assert together[0] > together[1]


@pytest.mark.parametrize(("arms", "persons", "message"), [
    ([GOOD], 100, r"arms: got \['good'\]; allowed: at least two"),
    ([GOOD, GOOD], 100, "allowed: distinct names"),
    ([GOOD, BAD], 2, "allowed: a bucket of at least 2 persons"),
])
def test_bad_tests_are_refused(arms, persons, message):
    with pytest.raises(InvalidFieldError, match=message):
        ab_test(worlds.world(), arms, persons=persons)


def test_bad_configs_are_refused():
    with pytest.raises(InvalidFieldError, match=r"policies: got \('logged',\); allowed: at least two"):
        AbTestConfig(policies=("logged",))
    with pytest.raises(InvalidFieldError, match=r"shares: got .*; allowed: 2 numbers, one a policy"):
        AbTestConfig(policies=("logged", "cem"), shares=(1.0,))
