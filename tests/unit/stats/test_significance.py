"""What an A/B test may claim: by hand, against closed forms, and by its rate of false findings."""

import math

import numpy as np
import pytest

from recfuse.config import InvalidFieldError
from recfuse.stats.intervals import paired_difference, relative_difference
from recfuse.stats.significance import adjust, always_valid_factor, detectable_effect, p_values, relative_error


def test_corrections_by_hand():
    """p = .01, .02, .04, .3 of four. Holm: 4·.01; 3·.02; 2·.04; .3. Benjamini and Hochberg: 4·.01/1, 4·.02/2, 4·.04/3,
    4·.3/4, each at most what follows."""
    p = [.04, .01, .3, .02]
    np.testing.assert_allclose(adjust(p), [.08, .04, .3, .06])
    np.testing.assert_allclose(adjust(p, "benjamini_hochberg"), [.16 / 3, .04, .3, .04])
    np.testing.assert_allclose(adjust(p, "none"), p)
    # A smaller p-value is never adjusted to a larger one than its neighbour, and none beyond 1.
    np.testing.assert_allclose(adjust([[.5, .5], [.6, .9]]), 1.0)


def holm(p):
    """Sorted, each times the number of those not smaller, never below its predecessor."""
    order = np.argsort(p, kind="stable")
    adjusted = np.maximum.accumulate(p[order] * (len(p) - np.arange(len(p))))
    return np.minimum(adjusted, 1.0)[np.argsort(order, kind="stable")]


def benjamini_hochberg(p):
    """Sorted, each times n over its rank, never above its successor."""
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum.accumulate((p[order] * len(p) / (np.arange(len(p)) + 1))[::-1])[::-1]
    return np.minimum(adjusted, 1.0)[np.argsort(order, kind="stable")]


@pytest.mark.parametrize(("correction", "expected"), [
    ("holm", holm), ("benjamini_hochberg", benjamini_hochberg), ("none", np.copy)])
def test_corrections_are_those_written_out_by_hand(correction, expected):
    rng = np.random.default_rng(5)
    for size in (1, 2, 7, 60):
        for p in (rng.random(size), rng.random(size) ** 6, rng.integers(0, 4, size) / 3, np.zeros(size)):
            np.testing.assert_allclose(adjust(p, correction), expected(p), rtol=0, atol=1e-12)
    shaped = rng.random((3, 4)) ** 3
    np.testing.assert_allclose(adjust(shaped, correction), expected(shaped.ravel()).reshape(3, 4), atol=1e-12)
    assert adjust(np.zeros((0, 2)), correction).shape == (0, 2)


def test_p_values_of_known_normal_quantiles():
    np.testing.assert_allclose(p_values([1.959964, -1.644854, 0.0], [1.0, 1.0, 1.0]), [.05, .10, 1.0], atol=1e-6)
    np.testing.assert_array_equal(p_values([np.nan, 1.0], [1.0, 0.0]), [1.0, 0.0])


def test_the_error_is_that_of_the_bootstrap():
    rng = np.random.default_rng(0)
    base, treated = rng.exponential(2.0, (4_000, 2)), rng.exponential(2.2, (1_000, 2))
    interval = relative_difference(treated, base, draws=2_000)
    np.testing.assert_allclose(relative_error(treated, base), (interval.high - interval.low) / 3.92, rtol=.08)
    twin = base + .1 * rng.standard_normal(base.shape)
    interval = paired_difference(twin, base, draws=2_000)
    np.testing.assert_allclose(relative_error(twin, base, paired=True), (interval.high - interval.low) / 3.92, rtol=.08)


def test_p_values_are_those_of_welch():
    scipy = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(3)
    base, treated = rng.exponential(2.0, 3_000), rng.exponential(2.1, 900)
    error = relative_error(treated[:, None], base[:, None], null=True)
    found = p_values([treated.mean() / base.mean() - 1], error)[0]
    assert found == pytest.approx(scipy.ttest_ind(treated, base, equal_var=False).pvalue, rel=.01)
    twin = base + .1 * rng.standard_normal(3_000)
    error = relative_error(twin[:, None], base[:, None], paired=True, null=True)
    found = p_values([twin.mean() / base.mean() - 1], error)[0]
    assert found == pytest.approx(scipy.ttest_rel(twin, base).pvalue, rel=.01)


def test_rare_counts_do_not_find_what_is_not_there():
    """Two buckets of 500 users with 23 events each on average: 5% of 2,000 tests find a difference."""
    rng = np.random.default_rng(4)
    found = 0
    for _ in range(2_000):
        one, two = rng.poisson(.045, (2, 500, 1))
        found += p_values(one.mean(0) / two.mean(0) - 1, relative_error(one, two, null=True))[0] < .05
    assert found / 2_000 == pytest.approx(.05, abs=.015)


def test_the_detectable_effect_in_closed_form():
    """Mean 10, standard deviation 5, 400 users in either bucket: (1.96 + 0.84) · 0.5 · √(1/200) = 9.9%."""
    base = 10 + 5 * np.tile([-1.0, 1.0], 200)[:, None]
    expected = (1.959964 + .841621) * base.std(ddof=1) / 10 * math.sqrt(2 / 400)
    assert detectable_effect(base, 400)[0] == pytest.approx(expected)
    assert expected == pytest.approx(.099, abs=.001)


def test_the_detectable_effect_is_found_as_often_as_promised():
    rng = np.random.default_rng(1)
    found, size = 0, 500
    for _ in range(400):
        base = rng.normal(10, 5, (size, 1))
        treated = rng.normal(10 * (1 + .0886), 5, (size, 1))  # what the closed form says of σ/μ = ½ and 500 users
        estimate = treated.mean() / base.mean() - 1
        found += p_values([estimate], relative_error(treated, base))[0] < .05
    large = detectable_effect(rng.normal(10, 5, (100_000, 1)), 100_000)[0]
    assert large * math.sqrt(200) == pytest.approx(.0886, rel=.02)
    assert found / 400 == pytest.approx(.8, abs=.07)


def looks(factor):
    """Share of 400 tests without an effect that any of 20 looks calls one, judged by so many standard errors."""
    rng = np.random.default_rng(2)
    users = np.arange(100, 2_001, 100)
    sums = np.cumsum(rng.standard_normal((400, 2_000)), 1)[:, users - 1]
    reach = np.array([factor(int(n)) for n in users]) * np.sqrt(users)
    return (np.abs(sums) > reach).any(1).mean()


def test_early_looks_are_allowed_only_to_the_always_valid():
    """Twenty looks at a fixed-size interval find something in a fifth of the tests without effect; at the sequence of
    always-valid ones in at most 5%."""
    assert looks(lambda n: 1.96) > .15
    assert looks(lambda n: always_valid_factor(n, planned=2_000)) <= .05 + 2 * math.sqrt(.05 * .95 / 400)


def test_the_always_valid_factor_is_smallest_about_the_planned_size():
    """By hand at n = planned: nρ² = 5.99 + ln 6.99 = 7.94, √((1 + 1/7.94) · ln(8.94 / .0025)) = 3.04."""
    assert always_valid_factor(1_000, 1_000) == pytest.approx(3.035, abs=.005)
    widths = [always_valid_factor(n, 1_000) / math.sqrt(n) for n in (100, 500, 1_000, 2_000)]
    assert widths == sorted(widths, reverse=True), "more users never widen the interval"


@pytest.mark.parametrize(("call", "message"), [
    (lambda: adjust([.5, 1.5]), r"p-values: got \[1.5\]; allowed: numbers in \[0, 1\]"),
    (lambda: adjust([.5], "bonferroni"), "correction: got 'bonferroni'; allowed: holm, benjamini_hochberg, none"),
    (lambda: always_valid_factor(0, 10), r"users: got \(0, 10\); allowed: integers ≥ 1"),
    (lambda: detectable_effect(np.ones((3, 1)), 3, power=1.0), r"power: got 1.0; allowed: a number in \(0, 1\)"),
    (lambda: relative_error(np.ones((3, 1)), np.ones((2, 1)), paired=True), "the same users as treated"),
])
def test_bad_input_is_refused(call, message):
    with pytest.raises(InvalidFieldError, match=message):
        call()
