"""What a fusion policy is to its callers: states in, a decision per state out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recfuse.config import require
from recfuse.stats.gaussian import Range, gaussian_log_density, squash_array, squashed_log_density


@dataclass(frozen=True)
class Decision:
    """The answer of a policy for a batch of states; what the session log keeps of it (design 3.1).

    Attributes:
        mu, sigma: float32[B, M], the Gaussian over fusion parameters (before they are squashed, if they are).
        action: float32[B, M], the fusion parameters to use: sampled with exploration, `mu` without.
        action_logp: float64[B], log π(action | state), whichever way the action was taken.
    """

    mu: NDArray[np.float32]
    sigma: NDArray[np.float32]
    action: NDArray[np.float32]
    action_logp: NDArray[np.float64]


class Policy(Protocol):
    """Anything that decides fusion parameters: the served actor, a declared behaviour policy, CEM's vector."""

    def act(self, state: NDArray[np.float32], explore: bool, rng: np.random.Generator) -> Decision:
        """A decision for each row of `state` [B, S]; samples from `rng` where `explore`."""
        ...


def decide(
    mu: NDArray[np.float32], sigma: NDArray[np.float32], explore: bool, rng: np.random.Generator,
    bounds: Range | None = None,
) -> Decision:
    """Takes or samples the action of the Gaussians mu, sigma [B, M], squashed to a range where one is given, and states
    its density."""
    action = mu
    if explore:
        action = (mu + sigma * rng.standard_normal(mu.shape, np.float32)).astype(np.float32)
    if bounds is None:
        return Decision(mu, sigma, action, gaussian_log_density(action, mu, sigma))
    action = squash_array(action, bounds).astype(np.float32)
    # Of the action as it is logged, so that whoever reads the log computes the same.
    return Decision(mu, sigma, action, squashed_log_density(action, mu, sigma, bounds))


@dataclass(frozen=True)
class LinearGaussian:
    """A Gaussian whose mean is linear in the state, and whose deviation is the same everywhere: a value per candidate
    that is linear in its predictions, with coefficients that depend on who asks (maths 5.9).

    Attributes:
        weights: float64[S, M]; bias: float64[M]: μ = bias + clip((s − state_mean) / state_std, ±reach) · weights.
        state_mean, state_std: float64[S]; reach: > 0.
        sigma: float32[M], > 0.

    Raises:
        InvalidFieldError: names the field, its value and what is allowed.
    """

    weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    state_mean: NDArray[np.float64]
    state_std: NDArray[np.float64]
    reach: float
    sigma: NDArray[np.float32]

    def __post_init__(self) -> None:
        require(self.weights.ndim == 2, "weights", self.weights.shape, "an array [S, M]")
        states, actions = self.weights.shape
        for name, size in (("bias", actions), ("sigma", actions), ("state_mean", states), ("state_std", states)):
            values = getattr(self, name)
            require(values.shape == (size,), name, values.shape, f"a vector [{size}]")
        for name in ("weights", "bias", "state_mean"):
            require(bool(np.isfinite(getattr(self, name)).all()), name, "NaN or an infinite value", "finite numbers")
        for name in ("sigma", "state_std"):
            values = getattr(self, name)
            require(bool((np.isfinite(values) & (values > 0)).all()), name, values.tolist(), "finite numbers > 0")
        require(np.isfinite(self.reach) and self.reach > 0, "reach", self.reach, "a finite number > 0")

    def moments(self, state: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """μ and σ, float32[B, M] each, of states [B, S]."""
        numbers = ((state.astype(np.float64) - self.state_mean) / self.state_std).clip(-self.reach, self.reach)
        mu = (numbers @ self.weights + self.bias).astype(np.float32)
        return mu, np.tile(self.sigma, (len(state), 1))

    def act(self, state: NDArray[np.float32], explore: bool, rng: np.random.Generator) -> Decision:
        """See `Policy.act`."""
        return decide(*self.moments(state), explore, rng)


class FixedGaussian:
    """The same Gaussian in every state: a declared behaviour policy, or the one vector that CEM found.

    Args:
        mu: [M], finite.
        sigma: [M] or one number for all, > 0; it is the exploration, and it is logged even where none takes place.

    Raises:
        InvalidFieldError: names the field, its value and what is allowed.
    """

    def __init__(self, mu: ArrayLike, sigma: ArrayLike) -> None:
        self.mu = np.array(mu, np.float32)
        require(self.mu.ndim == 1 and self.mu.size > 0, "mu", self.mu.shape, "a vector [M]")
        require(bool(np.isfinite(self.mu).all()), "mu", self.mu.tolist(), "finite numbers")
        given = np.array(sigma, np.float32)
        require(given.shape in ((), self.mu.shape), "sigma", given.shape, f"a number or a vector {self.mu.shape}")
        require(bool((np.isfinite(given) & (given > 0)).all()), "sigma", given.tolist(), "finite numbers > 0")
        self.sigma = np.broadcast_to(given, self.mu.shape).copy()

    def moments(self, state: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """μ and σ, float32[B, M] each; of the states [B, S] only B is used."""
        rows = (len(state), 1)
        return np.tile(self.mu, rows), np.tile(self.sigma, rows)

    def act(self, state: NDArray[np.float32], explore: bool, rng: np.random.Generator) -> Decision:
        """See `Policy.act`."""
        return decide(*self.moments(state), explore, rng)
