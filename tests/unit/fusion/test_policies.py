from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from recfuse.config import InvalidFieldError
from recfuse.fusion.policies import FixedGaussian
from recfuse.stats.gaussian import gaussian_log_density

STATE = np.zeros((5, 3), np.float32)


def test_without_exploration_the_action_is_mu():
    decision = FixedGaussian([1.0, 2.0], 0.5).act(STATE, False, np.random.default_rng(0))
    assert decision.action.tolist() == [[1.0, 2.0]] * 5
    assert decision.sigma.tolist() == [[0.5, 0.5]] * 5
    assert decision.action.dtype == np.float32


def test_samples_and_their_density():
    decision = FixedGaussian([1.0, -2.0], [0.5, 2.0]).act(np.zeros((20_000, 3), np.float32), True,
                                                          np.random.default_rng(1))
    np.testing.assert_allclose(decision.action.mean(0), [1.0, -2.0], atol=0.05)
    np.testing.assert_allclose(decision.action.std(0), [0.5, 2.0], rtol=0.02)
    expected = stats.norm([1.0, -2.0], [0.5, 2.0]).logpdf(decision.action.astype(float)).sum(1)
    np.testing.assert_allclose(decision.action_logp, expected, rtol=1e-6)


def test_the_same_generator_gives_the_same_actions():
    policy = FixedGaussian([0.0], 1.0)
    first, second = (policy.act(STATE, True, np.random.default_rng(3)).action for _ in range(2))
    assert np.array_equal(first, second)


def test_log_density_against_scipy():
    rng = np.random.default_rng(0)
    action, mu, sigma = rng.normal(size=(4, 3)), rng.normal(size=(4, 3)), rng.uniform(0.1, 2, (4, 3))
    np.testing.assert_allclose(gaussian_log_density(action, mu, sigma), stats.norm(mu, sigma).logpdf(action).sum(1))


@pytest.mark.parametrize(("mu", "sigma", "message"), [
    ([], 1.0, r"mu: got \(0,\); allowed: a vector \[M\]"),
    ([float("nan")], 1.0, r"mu: got \[nan\]; allowed: finite numbers"),
    ([0.0], 0.0, "sigma: got 0.0; allowed: finite numbers > 0"),
    ([0.0, 1.0], [1.0], r"sigma: got \(1,\); allowed: a number or a vector \(2,\)"),
])
def test_bad_values_are_named(mu, sigma, message):
    with pytest.raises(InvalidFieldError, match=message):
        FixedGaussian(mu, sigma)
