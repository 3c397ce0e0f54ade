"""Actions squashed to a stated range: a = low + (high − low) · (1 + tanh u) / 2 with u Gaussian, and its density.

The density of an action is that of its u divided by |da/du| (change of variables): log π(a) = log N(u) − Σ log|da/du|.
Divergences between policies on the same range may be taken in u: the map is the same for all.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from recfuse.stats.gaussian import gaussian_log_density

Range = tuple[float, float]
# Nearest to the ends of (−1, 1); beyond it a float32 cannot say how far out u was.
EDGE = 1.0 - 1e-6


def squash(u: Tensor, bounds: Range) -> Tensor:
    """Actions in (low, high) of unbounded u, of any shape."""
    low, high = bounds
    return low + 0.5 * (high - low) * (1.0 + torch.tanh(u))


def unsquash(action: Tensor, bounds: Range) -> Tensor:
    """The u of actions; what lies at or beyond the ends of the range is taken as EDGE."""
    low, high = bounds
    return torch.atanh(((2.0 * action - (low + high)) / (high - low)).clamp(-EDGE, EDGE))


def log_slope(u: Tensor, bounds: Range) -> Tensor:
    """log|da/du|, like u: log((high − low) / 2) + log(1 − tanh² u), the latter in a form that does not underflow."""
    low, high = bounds
    return math.log(0.5 * (high - low)) + 2.0 * (math.log(2.0) - u - torch.nn.functional.softplus(-2.0 * u))


def squash_array(u: ArrayLike, bounds: Range) -> NDArray[np.float64]:
    """`squash` in numpy."""
    low, high = bounds
    return np.asarray(low + 0.5 * (high - low) * (1.0 + np.tanh(np.asarray(u, np.float64))), np.float64)


def unsquash_array(action: ArrayLike, bounds: Range) -> NDArray[np.float64]:
    """`unsquash` in numpy."""
    low, high = bounds
    share = (2.0 * np.asarray(action, np.float64) - (low + high)) / (high - low)
    return np.asarray(np.arctanh(np.clip(share, -EDGE, EDGE)), np.float64)


def squashed_log_density(action: ArrayLike, mu: ArrayLike, sigma: ArrayLike, bounds: Range) -> NDArray[np.float64]:
    """log π(a), float64[B], of actions [B, M] whose u are N(mu, diag sigma²)."""
    u = unsquash_array(action, bounds)
    slope = math.log(0.5 * (bounds[1] - bounds[0])) + 2.0 * (math.log(2.0) - u - np.logaddexp(0.0, -2.0 * u))
    return np.asarray(gaussian_log_density(u, mu, sigma) - slope.sum(-1), np.float64)
