"""Effects from moments: they are those of the users, add up over parts, and are surer by what was before the test."""

from __future__ import annotations

import numpy as np
import pytest

from recfuse.stats.moments import Moments, effect, joined
from recfuse.stats.sequential import always_valid_reach, mixture_spread
from recfuse.stats.significance import relative_error


def users(count: int, seed: int, lift: float = 1.0, link: float = .8) -> np.ndarray:
    """[count, 3]: what users do in the test, before it, and a column that says nothing."""
    rng = np.random.default_rng(seed)
    before = rng.gamma(2.0, 1.0, count)
    return np.stack([lift * (link * before + (1 - link) * rng.gamma(2.0, 1.0, count)), before, rng.normal(size=count)],
                    1)


def test_parts_add_up_in_any_split_and_far_from_0():
    values = users(1_000, 0) + 1e8
    whole = Moments.of(values)
    parts = joined(map(Moments.of, (values[:0], values[:7], values[7:600], values[600:])))
    assert parts.count == 1_000
    np.testing.assert_allclose(parts.mean, whole.mean, rtol=1e-14)
    np.testing.assert_allclose(parts.scatter, np.cov(values.T) * 999, rtol=1e-6, atol=1e-4)
    again = Moments.from_dict(parts.to_dict())
    np.testing.assert_array_equal(again.scatter, parts.scatter)


def test_without_covariates_it_is_the_delta_method_of_the_users():
    base, treated = users(500, 1), users(400, 2, lift=1.1)
    found = effect(Moments.of(base), Moments.of(treated), 0)
    assert found.estimate == pytest.approx(treated[:, 0].mean() / base[:, 0].mean() - 1)
    assert found.error == pytest.approx(float(relative_error(treated, base)[0]))
    assert found.reduction == 0


def test_a_fall_by_chance_does_not_look_surer():
    base, fallen = users(500, 1), users(400, 2, lift=.5)
    found = effect(Moments.of(base), Moments.of(fallen), 0)
    assert found.error == pytest.approx(float(relative_error(fallen, base, null=True)[0]))


def test_the_adjustment_is_the_regression_on_what_was_before():
    """Same slopes within the arms, as numpy's least squares on centred columns has them."""
    base, treated = users(300, 3), users(200, 4, lift=1.2)
    within = np.concatenate([base - base.mean(0), treated - treated.mean(0)])
    beta = np.linalg.lstsq(within[:, 1:], within[:, 0], rcond=None)[0]
    centre = np.concatenate([base, treated])[:, 1:].mean(0)
    low, high = (arm[:, 0].mean() - (arm[:, 1:].mean(0) - centre) @ beta for arm in (base, treated))
    found = effect(Moments.of(base), Moments.of(treated), 0, (1, 2))
    assert found.estimate == pytest.approx(high / low - 1)
    assert found.base == pytest.approx(low)


def test_the_variance_falls_by_the_squared_correlation():
    base, treated = users(20_000, 5), users(20_000, 6)
    correlation = np.corrcoef(base[:, 0], base[:, 1])[0, 1]
    found = effect(Moments.of(base), Moments.of(treated), 0, (1, 2))
    assert found.reduction == pytest.approx(correlation**2, abs=.01)


def test_columns_that_say_the_same_or_nothing_do_no_harm():
    base, treated = users(300, 7), users(300, 8)
    doubled, constant = (np.column_stack([arm, arm[:, 1], np.zeros(300)]) for arm in (base, treated))
    once = effect(Moments.of(base), Moments.of(treated), 0, (1, 2))
    again = effect(Moments.of(doubled), Moments.of(constant), 0, (1, 2, 3, 4))
    assert again.estimate == pytest.approx(once.estimate)
    assert again.error == pytest.approx(once.error)


def test_a_base_of_0_has_no_effect():
    found = effect(Moments.of(np.zeros((5, 1))), Moments.of(np.ones((5, 1))), 0)
    assert np.isnan(found.estimate)
    assert np.isnan(found.error)


def test_events_are_users_where_all_did_alike():
    assert Moments.of(np.array([[2.0], [2.0], [0.0], [0.0]])).events.tolist() == [2.0]
    assert Moments.of(np.zeros((4, 1))).events.tolist() == [0.0]


def test_an_aa_test_with_a_look_a_day_is_wrong_in_one_of_twenty_at_most():
    """500 tests of 14 days: 60 users come a day, 15% of them get the canary, everybody goes on at a pace of their own,
    and their pace before the test is known. Any look of any test that leaves out 0 counts."""
    rng, wrong, spread = np.random.default_rng(9), 0, mixture_spread(.3)
    for _ in range(500):
        count, days = 840, 14
        pace, entry, treated = rng.gamma(1.0, 1.0, count), np.repeat(np.arange(days), 60), rng.random(count) < .15
        before = rng.poisson(5 * pace)
        daily = rng.poisson(np.where(np.arange(days) >= entry[:, None], pace[:, None], 0.0))
        so_far = daily.cumsum(1)
        for day in range(days):
            here = entry <= day
            values = np.column_stack([so_far[:, day], before])
            found = effect(Moments.of(values[here & ~treated]), Moments.of(values[here & treated]), 0, (1,))
            if abs(found.estimate) > float(always_valid_reach(found.error, spread)):
                wrong += 1
                break
    assert wrong / 500 <= .05
