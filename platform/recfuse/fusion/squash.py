"""Actions squashed to a stated range: a = low + (high − low) · (1 + tanh u) / 2 with u Gaussian, and its density.

The density of an action is that of its u divided by |da/du| (change of variables): log π(a) = log N(u) − Σ log|da/du|.
Divergences between policies on the same range may be taken in u: the map is the same for all.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from recfuse.stats.gaussian import EDGE, Range


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
