"""A/B statistics on sums per user alone, as a served log gives them: no simulator."""

import numpy as np
import pytest

from recfuse.config import InvalidFieldError
from recfuse.stats.experiment import compare, false_findings

MEASURES = ("watch_time", "like")


def bucket(users: int, watch: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.gamma(4.0, watch / 4, users), rng.poisson(2.0, users)]).astype(np.float64)


def test_effects_are_relative_to_the_base_and_buckets_may_differ_in_size():
    base, better = bucket(4_000, 10.0, 1), bucket(1_000, 12.0, 2)
    result = compare({"served": base, "canary": better}, MEASURES, primary="watch_time", looks=2, draws=300)
    estimate, low, high = result.effect("canary", "watch_time")
    assert estimate == pytest.approx(better[:, 0].mean() / base[:, 0].mean() - 1)
    assert 0 < low < estimate < high
    assert [arm.users for arm in result.arms] == [4_000, 1_000]
    assert [look.share for look in result.arms[1].looks] == [.5, 1.0]
    assert result.arms[1].adjusted[0] < .01 < result.arms[1].adjusted[1]
    assert [row[0] for row in result.rows()] == list(MEASURES)


def test_the_same_users_in_both_arms_have_no_effect_and_no_width():
    users = bucket(500, 10.0, 3)
    result = compare({"base": users, "twin": users}, MEASURES, primary="like", paired=True, draws=100)
    for measure in MEASURES:
        assert result.effect("twin", measure) == pytest.approx((0.0, 0.0, 0.0), abs=1e-9)


def test_false_findings_are_found_where_there_is_a_difference_alone():
    same = false_findings(bucket(2_000, 10.0, 4), bucket(2_000, 10.0, 5), draws=200)
    other = false_findings(bucket(2_000, 13.0, 4), bucket(2_000, 10.0, 5), draws=200)
    assert not same[1]
    assert other[0][0]
    assert other[1]


@pytest.mark.parametrize(("arms", "options", "message"), [
    (1, {"primary": "like"}, r"arms: got \['0'\]; allowed: at least two"),
    (2, {"primary": "order"}, "primary: got 'order'; allowed: watch_time, like"),
    (2, {"primary": "like", "looks": -1}, "looks: got -1; allowed: an integer ≥ 0"),
])
def test_bad_tests_are_refused(arms, options, message):
    with pytest.raises(InvalidFieldError, match=message):
        compare({str(arm): bucket(50, 10.0, arm) for arm in range(arms)}, MEASURES, **options)


def test_two_arms_that_are_no_base_are_compared_as_if_one_were():
    """The delta method on bucket means beside the bootstrap of the same two buckets."""
    buckets = {"base": bucket(2_000, 10.0, 6), "one": bucket(3_000, 12.0, 7), "two": bucket(2_500, 11.0, 8)}
    result = compare(buckets, MEASURES, primary="watch_time", draws=500)
    direct = compare({"two": buckets["two"], "one": buckets["one"]}, MEASURES, primary="watch_time", draws=2_000)
    estimate, low, high = result.between("one", "two", "watch_time")
    assert estimate == pytest.approx(direct.effect("one", "watch_time")[0])
    assert (low, high) == pytest.approx(direct.effect("one", "watch_time")[1:], abs=.1 * (high - low))
    twins = {"base": buckets["base"][:2_000], "one": buckets["one"][:2_000],
             "more": buckets["one"][:2_000] * 1.01 + bucket(2_000, 1e-3, 9)}
    paired = compare(twins, MEASURES, primary="like", paired=True, draws=50)
    direct = compare({"one": twins["one"], "more": twins["more"]}, MEASURES, primary="like", paired=True, draws=2_000)
    estimate, low, high = paired.between("more", "one", "watch_time")
    assert (estimate, low, high) == pytest.approx(direct.effect("more", "watch_time"), abs=.1 * (high - low))
    apart = compare(twins, MEASURES, primary="like", draws=50).between("more", "one", "watch_time")
    assert high - low < .1 * (apart[2] - apart[1]), "luck that both share is no doubt"
