"""Intervals that hold at all looks: closed forms, the p-value's duality, and coverage under continuous looks."""

from __future__ import annotations

import math

import numpy as np
import pytest

from recfuse.config import InvalidFieldError
from recfuse.stats.sequential import always_valid_p, always_valid_reach, error_for_reach, mixture_spread
from recfuse.stats.significance import always_valid_factor


def test_with_users_as_information_it_is_the_sequence_of_users():
    """With e² = v/n and τ² = ρ² v the reach is the factor of maths 7.5 times e."""
    users, planned, level = 5_000, 20_000, .95
    budget = -2 * math.log(1 - level)
    spread = math.sqrt((budget + math.log(budget + 1)) / planned)
    error = 1 / math.sqrt(users)
    assert float(always_valid_reach(error, spread, level)) == pytest.approx(
        error * always_valid_factor(users, planned, level))


def test_a_mixture_of_spread_e_by_hand():
    """With τ = e: e √(2 log(2/α²))."""
    assert float(always_valid_reach(.1, .1, .95)) == pytest.approx(.1 * math.sqrt(2 * math.log(2 / .05**2)))
    assert float(always_valid_p(.4, .1, .1)) == pytest.approx(math.sqrt(2) * math.exp(-.5 * 16 / 2))


@pytest.mark.parametrize("level", [.8, .95, .999])
def test_the_p_value_is_the_alpha_whose_interval_touches_0(level):
    errors = np.array([.001, .02, .3])
    reach = always_valid_reach(errors, .05, level)
    np.testing.assert_allclose(always_valid_p(reach, errors, .05), 1 - level, rtol=1e-9)
    np.testing.assert_allclose(always_valid_p(-reach, errors, .05), 1 - level, rtol=1e-9)


def test_nothing_is_claimed_without_an_error():
    assert np.isnan(always_valid_reach([0.0, np.nan], .1)).all()
    assert always_valid_p([1.0, 1.0, 0.0], [0.0, np.nan, 1.0], .1).tolist() == [1.0, 1.0, 1.0]


def test_the_spread_makes_the_interval_tightest_where_the_effect_would_be_found():
    """No other spread reaches less at the error of a single look with power 80%, up to its well-known approximation."""
    effect = .02
    error = effect / (1.959964 + .841621)
    spread = mixture_spread(effect)
    best = min(float(always_valid_reach(error, spread * factor)) for factor in np.linspace(.5, 2, 301))
    assert float(always_valid_reach(error, spread)) == pytest.approx(best, rel=1e-3)


@pytest.mark.parametrize("reach", [1e-4, .01, 3.0])
def test_the_error_for_a_reach_is_its_inverse(reach):
    assert float(always_valid_reach(error_for_reach(reach, .02), .02)) == pytest.approx(reach)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: mixture_spread(0.0), "effect: got 0.0; allowed: a number > 0"),
    (lambda: mixture_spread(.1, 1.0), r"level: got 1.0; allowed: a number in \(0, 1\)"),
    (lambda: always_valid_reach(.1, 0.0), "spread: got 0.0"),
    (lambda: error_for_reach(-1.0, .1), "reach: got -1.0")])
def test_bad_values(call, message):
    with pytest.raises(InvalidFieldError, match=message):
        call()


def crossings(estimates: np.ndarray, errors: np.ndarray, spread: float) -> float:
    """Share of the tests [tests, looks] whose interval leaves out 0 at any look."""
    return float((np.abs(estimates) > always_valid_reach(errors, spread)).any(1).mean())


def test_coverage_under_continuous_looks_at_users_who_come():
    """2,000 tests, a look after each of 1,000 users; a fixed interval is left by most of them."""
    rng = np.random.default_rng(0)
    n = np.arange(1, 1_001)
    means = rng.normal(size=(2_000, 1_000)).cumsum(1) / n
    errors = np.broadcast_to(1 / np.sqrt(n), means.shape)
    assert crossings(means, errors, mixture_spread(.2)) <= .05
    assert (np.abs(means) > 1.96 * errors)[:, 29:].any(1).mean() > .25


def test_coverage_where_the_same_users_go_on():
    """400 users from the first day on; what each brings is their own mean and a day's noise. Information grows although
    no user comes, and by users alone the interval would stand still."""
    rng = np.random.default_rng(1)
    tests, users, days, noise = 2_000, 400, 200, 5.0
    own = rng.normal(size=tests) / math.sqrt(users)  # of the mean of all users
    daily = noise * rng.normal(size=(tests, days)) / math.sqrt(users)
    day = np.arange(1, days + 1)
    means = own[:, None] + daily.cumsum(1) / day
    errors = np.broadcast_to(np.sqrt((1 + noise**2 / day) / users), means.shape)
    assert crossings(means, errors, mixture_spread(.2)) <= .05
