"""The log density of a diagonal Gaussian over fusion parameters, in numpy; logs and policies share it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

LOG_2PI = math.log(2.0 * math.pi)


Range = tuple[float, float]
# Nearest to the ends of (−1, 1); beyond it a float32 cannot say how far out u was.
EDGE = 1.0 - 1e-6


def gaussian_log_density(action: ArrayLike, mu: ArrayLike, sigma: ArrayLike) -> NDArray[np.float64]:
    """log N(action; mu, diag sigma²), float64[B], of actions [B, M] (maths 1.1)."""
    action, mu, sigma = (np.asarray(x, np.float64) for x in (action, mu, sigma))
    z = (action - mu) / sigma
    return np.asarray(-0.5 * (z * z + LOG_2PI).sum(-1) - np.log(sigma).sum(-1), np.float64)


def squash_array(u: ArrayLike, bounds: Range) -> NDArray[np.float64]:
    """Actions in (low, high) of unbounded u, of any shape: low + (high − low) (1 + tanh u) / 2."""
    low, high = bounds
    return np.asarray(low + 0.5 * (high - low) * (1.0 + np.tanh(np.asarray(u, np.float64))), np.float64)


def unsquash_array(action: ArrayLike, bounds: Range) -> NDArray[np.float64]:
    """The u of actions; what lies at or beyond the ends of the range is taken as EDGE."""
    low, high = bounds
    share = (2.0 * np.asarray(action, np.float64) - (low + high)) / (high - low)
    return np.asarray(np.arctanh(np.clip(share, -EDGE, EDGE)), np.float64)


def squashed_log_density(action: ArrayLike, mu: ArrayLike, sigma: ArrayLike, bounds: Range) -> NDArray[np.float64]:
    """log π(a), float64[B], of actions [B, M] whose u are N(mu, diag sigma²)."""
    u = unsquash_array(action, bounds)
    slope = math.log(0.5 * (bounds[1] - bounds[0])) + 2.0 * (math.log(2.0) - u - np.logaddexp(0.0, -2.0 * u))
    return np.asarray(gaussian_log_density(u, mu, sigma) - slope.sum(-1), np.float64)
