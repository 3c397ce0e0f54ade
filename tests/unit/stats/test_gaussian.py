"""The Gaussian log density, by hand and against scipy."""

from __future__ import annotations

import math

import numpy as np
from scipy.stats import norm

from recfuse.stats.gaussian import gaussian_log_density


def test_by_hand():
    # z = (0.5, −0.25): −½(0.25 + 0.0625) − ln 1 − ln 2 − ln 2π
    found = gaussian_log_density([[0.5, -0.5]], [[0.0, 0.0]], [[1.0, 2.0]])
    np.testing.assert_allclose(found, [-0.15625 - math.log(2) - math.log(2 * math.pi)], rtol=1e-14)


def test_against_scipy():
    rng = np.random.default_rng(0)
    action, mu = rng.standard_normal((2, 50, 4))
    sigma = rng.uniform(0.1, 3, (50, 4))
    expected = norm.logpdf(action, mu, sigma).sum(1)
    np.testing.assert_allclose(gaussian_log_density(action, mu, sigma), expected, rtol=1e-12)
