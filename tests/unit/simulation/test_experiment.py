"""A/B tests: buckets, intervals, and no effect where there is none."""

import numpy as np
import pytest

from recfuse.config import InvalidFieldError
from recfuse.fusion.policies import FixedGaussian
from recfuse.simulation.arms import Arm
from recfuse.simulation.experiment import aa_test, ab_test
from recfuse.simulation.persons import held_out, persons_of
from recfuse.simulation.responses import FEED
from recfuse.stats.experiment import AaResult
from tests.unit.simulation import worlds

GOOD = Arm("good", FixedGaussian([2, 2, 0, 0, 0, 0], .5))
BAD = Arm("bad", FixedGaussian([-2, -2, 0, 0, 0, 0], .5))


def test_a_better_ranking_wins_and_the_interval_says_so():
    result = ab_test(worlds.world(), [BAD, GOOD], persons=3_000, seed=1, draws=300)
    estimate, low, high = result.effect("good", "watch_time")
    assert 0 < low < estimate < high
    assert [arm.name for arm in result.arms] == ["bad", "good"]
    assert sum(arm.users for arm in result.arms) == 3_000
    assert len(result.rows()) == len(FEED.measures)


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


@pytest.mark.parametrize(("arms", "persons", "message"), [
    ([GOOD], 100, r"arms: got \['good'\]; allowed: at least two"),
    ([GOOD, GOOD], 100, "allowed: distinct names"),
    ([GOOD, BAD], 2, "allowed: a bucket of at least 2 persons"),
])
def test_bad_tests_are_refused(arms, persons, message):
    with pytest.raises(InvalidFieldError, match=message):
        ab_test(worlds.world(), arms, persons=persons)


def test_findings_are_marked_after_the_correction_and_the_detectable_effect_is_said():
    result = ab_test(worlds.world(), [BAD, GOOD], persons=3_000, seed=1, draws=100)
    good = result.arms[1]
    watch = FEED.measures.index("watch_time")
    assert (good.adjusted >= good.p_value).all()
    assert good.adjusted[watch] < .05
    assert result.rows()[watch][2].endswith("*")
    assert 0 < good.detectable[watch] < result.effect("good", "watch_time")[0]
    assert len(result.detectable_rows()) == len(FEED.measures)
    assert result.look_rows() == []


def test_early_looks_widen_and_the_last_is_the_estimate_of_the_test():
    result = ab_test(worlds.world(), [BAD, GOOD], persons=3_000, seed=1, looks=4, draws=100)
    looks = result.arms[1].looks
    assert [look.share for look in looks] == [.25, .5, .75, 1.0]
    assert looks[-1].estimate == pytest.approx(result.effect("good", "watch_time")[0])
    widths = [look.high - look.low for look in looks]
    _, low, high = result.effect("good", "watch_time")
    assert widths[0] > widths[-1] > high - low
    assert looks[-1].decided
    assert len(result.look_rows()) == 4


def test_a_policy_against_itself_is_rarely_different():
    """40 A/A tests of 100 persons: 5% is two of them; more than eight would be a chance of one in a thousand."""
    result = aa_test(worlds.world(), Arm("logged", worlds.LOGGED, explore=True), runs=40, persons=100, draws=200)
    assert result.false[FEED.measures.index("watch_time")] <= .2
    assert 0 < result.false.mean() < .12
    assert result.family <= .25
    assert len(result.rows()) == len(FEED.measures) + 2


@pytest.mark.parametrize(("false", "level", "believed"), [(.05, .95, True), (.079, .95, True), (.081, .95, False),
                                                          (.019, .95, False), (.1, .9, True), (.05, .9, False)])
def test_a_test_that_sees_differences_where_there_are_none_is_not_believed(false, level, believed):
    verdict = AaResult(FEED.measures, 200, np.full(len(FEED.measures), false), .03).verdict(level)
    assert f"in {false:.1%} of the intervals" in verdict
    assert ("DO NOT BELIEVE" in verdict) is not believed


def test_no_person_lives_in_two_buckets():
    """The persons of every arm, as they are simulated; pairs are the exception, and only where asked for."""
    lived = []

    def live(world, arm, persons, seed):
        lived.append(set(persons.tolist()))
        return np.ones((len(persons), len(FEED.measures)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recfuse.simulation.experiment.lives", live)
        ab_test(worlds.world(), [BAD, GOOD, Arm("logged", worlds.LOGGED)], persons=3_000, draws=10)
    assert len(lived) == 3
    assert sum(map(len, lived)) == len(set().union(*lived)) == 3_000


def test_users_held_out_are_the_only_ones_of_the_test():
    world = worlds.world()
    out = held_out(world, .3)
    assert .15 < out.mean() < .45
    persons = persons_of(out, 1_000)
    assert out[persons % world.users].all()
    assert len(np.unique(persons)) == 1_000
    result = ab_test(world, [BAD, GOOD], persons=600, users=out, draws=50)
    assert sum(arm.users for arm in result.arms) == 600
    assert held_out(world, 0.0).sum() == 0
