"""The weighted geometric mean of several Gaussian policies: what stage two is held to, whatever the long term says."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recfuse.config import require
from recfuse.fusion.networks import GaussianPolicies

Array = NDArray[np.float64]


@dataclass(frozen=True)
class GeometricMean:
    """Π_j π_j(a|s)^p_j, normalised: the optimum of stage two where the long-term advantage is 0, with p_j = λ_j / Λ
    (maths 1.5).

    Attributes:
        policies: π_j, k of them; shares: p_j > 0, with the sum 1.

    Raises:
        InvalidFieldError: shares of another number, or that do not add up to 1.
    """

    policies: GaussianPolicies
    shares: tuple[float, ...]

    def __post_init__(self) -> None:
        require(len(self.shares) == len(self.policies.names), "shares", self.shares,
                f"{len(self.policies.names)} numbers, one a policy")
        require(min(self.shares) > 0 and abs(sum(self.shares) - 1) < 1e-9, "shares", self.shares,
                "numbers > 0 with the sum 1")


def geometric_mean(mu: Array, sigma: Array, shares: Array) -> tuple[Array, Array]:
    """μ and σ [n, M] of the mean of Gaussians [k, n, M]: 1/σ² = Σ p_j/σ_j², μ = σ² Σ p_j μ_j/σ_j²."""
    precision = shares[:, None, None] / sigma**2
    variance = 1 / precision.sum(0)
    return variance * (precision * mu).sum(0), np.sqrt(variance)
