"""Bootstrap over users: estimates by hand, coverage by simulation."""

import numpy as np
import pandas as pd
import pytest

from recfuse.config import InvalidFieldError
from recfuse.stats.intervals import (
    bootstrap,
    paired_difference,
    ratio_of_sums,
    relative_difference,
    sum_per_user,
)


def test_sums_per_user_by_hand():
    """b: (1, 10) + (3, 30), a: (2, 20); users in the order of their first row."""
    sums = sum_per_user([[1, 10], [2, 20], [3, 30]], ["b", "a", "b"])
    np.testing.assert_array_equal(sums, [[4, 40], [2, 20]])


def test_categories_keep_the_place_of_users_without_a_row():
    users = pd.Categorical.from_codes([2, 0, 2], categories=["a", "b", "c"])
    np.testing.assert_array_equal(sum_per_user([[1], [2], [3]], users), [[2], [0], [4]])
    with pytest.raises(InvalidFieldError, match="user_id: got None; allowed: ids other than null"):
        sum_per_user([[1]], pd.Categorical.from_codes([-1], categories=["a"]))


def test_a_draw_weighs_a_user_alike_whoever_follows():
    """Sums of 300 users, and the same with 200 more who add nothing: every draw is the same, also across blocks."""
    values = np.random.default_rng(0).random((300, 2))
    more = np.concatenate([values, np.zeros((200, 2))])
    (_, some), (_, all_of_them) = (bootstrap(each, lambda s: s, draws=70, seed=3) for each in (values, more))
    np.testing.assert_allclose(some, all_of_them, rtol=1e-4)
    assert not np.allclose(some, bootstrap(values, lambda s: s, draws=70, seed=4)[1], rtol=1e-4)


def test_ratio_by_hand():
    """(1 + 2 + 6) / (1 + 2 + 3) = 1.5; where every user has the same ratio the interval is a point."""
    assert ratio_of_sums([1, 2, 6], [1, 2, 3]).estimate[0] == pytest.approx(1.5)
    same = ratio_of_sums([[2.], [4.], [6.]], [1, 2, 3])
    np.testing.assert_allclose([same.estimate[0], same.low[0], same.high[0]], 2.0, rtol=1e-5)


def test_relative_difference_by_hand():
    """Means 3 and 2: + 50%."""
    found = relative_difference([2, 4], [1, 3])
    assert found.estimate[0] == pytest.approx(.5)
    assert found.low[0] <= .5 <= found.high[0]


@pytest.mark.parametrize("skewed", [False, True])
def test_intervals_cover_the_truth(skewed):
    """95% intervals of a mean cover it in about 95% of 300 samples; three standard errors of that share are 3.8%."""
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(300):
        values = rng.gamma(1.0, size=300) if skewed else rng.normal(1.0, 1.0, 300)
        found = ratio_of_sums(values, np.ones(300), draws=400, seed=seed)
        covered += int(found.low[0] < 1.0 < found.high[0])
    assert covered / 300 == pytest.approx(.95, abs=.04)


def test_an_a_a_test_finds_something_in_about_one_of_twenty():
    """200 A/A tests: the false positive rate is 5% ± 3 standard errors (4.6%)."""
    rng = np.random.default_rng(2)
    found = [relative_difference(rng.gamma(1.0, size=300), rng.gamma(1.0, size=300), draws=300, seed=seed)
             .excludes_zero[0] for seed in range(200)]
    assert np.mean(found) == pytest.approx(.05, abs=.046)


def test_pairs_take_out_what_users_have_in_common():
    rng = np.random.default_rng(3)
    user = rng.gamma(1.0, size=500)
    base, treated = user + rng.normal(0, .05, 500), 1.1 * user + rng.normal(0, .05, 500)
    paired, apart = paired_difference(treated, base), relative_difference(treated, base)
    assert paired.estimate[0] == pytest.approx(apart.estimate[0])
    assert paired.high[0] - paired.low[0] < .2 * (apart.high[0] - apart.low[0])


def test_large_numbers_lose_nothing():
    """The mean of 1e9 + {0, 1} to seven digits beyond the leading ones."""
    values = 1e9 + np.arange(1_000) % 2
    found = ratio_of_sums(values, np.ones(1_000))
    assert 1e9 + .4 < found.low[0] < found.high[0] < 1e9 + .6


def test_no_interval_where_the_base_is_zero():
    found = relative_difference([1.0, 2.0], [0.0, 0.0])
    assert np.isnan([found.estimate[0], found.low[0], found.high[0]]).all()


def test_the_seed_decides_the_draws():
    values = np.random.default_rng(0).random(50)
    first, again, other = (ratio_of_sums(values, np.ones(50), seed=seed) for seed in (1, 1, 2))
    assert first.low[0] == again.low[0] != other.low[0]


@pytest.mark.parametrize(("call", "message"), [
    (lambda: ratio_of_sums([1.0], [1.0]), r"numerator: got \(1, 1\); allowed: an array \[users, m\] of at least 2"),
    (lambda: ratio_of_sums([1.0, np.nan], [1.0, 1.0]), r"numerator: got \[nan\]; allowed: finite numbers"),
    (lambda: ratio_of_sums([1.0, 2.0], [1.0, 1.0, 1.0]), r"denominator: got \(3, 1\)"),
    (lambda: ratio_of_sums([1.0, 2.0], [1.0, 1.0], draws=0), "draws: got 0; allowed: an integer ≥ 1"),
    (lambda: ratio_of_sums([1.0, 2.0], [1.0, 1.0], level=1.0), r"level: got 1.0; allowed: a number in \(0, 1\)"),
    (lambda: relative_difference([[1, 2], [3, 4]], [1, 2]), "base: got .*; allowed: 2 columns, as in treated"),
    (lambda: paired_difference([1, 2, 3], [1, 2]), "allowed: .*the same users as treated"),
    (lambda: sum_per_user([1.0, 2.0], ["a", "b"]), r"values: got \(2,\); allowed: an array \[n, m\]"),
    (lambda: sum_per_user([[1.0]], ["a", "b"]), "user_id: got 2; allowed: 1 ids, one a row"),
    (lambda: sum_per_user([[1.0], [2.0]], ["a", None]), "user_id: got None; allowed: ids other than null"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(InvalidFieldError, match=message):
        call()
