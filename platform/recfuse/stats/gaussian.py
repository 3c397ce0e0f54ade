"""The log density of a diagonal Gaussian over fusion parameters, in numpy; logs and policies share it."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

LOG_2PI = math.log(2.0 * math.pi)


def gaussian_log_density(action: ArrayLike, mu: ArrayLike, sigma: ArrayLike) -> NDArray[np.float64]:
    """log N(action; mu, diag sigma²), float64[B], of actions [B, M] (maths 1.1)."""
    action, mu, sigma = (np.asarray(x, np.float64) for x in (action, mu, sigma))
    z = (action - mu) / sigma
    return np.asarray(-0.5 * (z * z + LOG_2PI).sum(-1) - np.log(sigma).sum(-1), np.float64)
