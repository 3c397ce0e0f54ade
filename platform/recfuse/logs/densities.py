"""What a logged density must be: computed again from the Gaussian, with the rounding of its float32 numbers.

A density that contradicts its own μ and σ says that the writer computed something else; what it looks like is named.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recfuse.stats.gaussian import gaussian_log_density, squash_array, squashed_log_density, unsquash_array

Vector = NDArray[np.float64]
# What logged and computed densities may differ by, beyond rounding.
TOLERANCE = 1e-3
_EPSILON = float(np.finfo(np.float32).eps)
# Of the contradicting rows, so many must fit before their numbers are said to look like something.
_MOST = .9


@dataclass(frozen=True)
class Densities:
    """Of rows with μ and σ; NaN, and drawn, for the others.

    Attributes:
        log_density: float64[n], log π(action) of N(mu, sigma²), or of its squashed form.
        rounding: float64[n], how far it may be off because action and μ are rounded to float32.
        drawn: bool[n], false where the action is μ itself in every parameter: it was taken, not drawn.
    """

    log_density: Vector
    rounding: Vector
    drawn: NDArray[np.bool_]

    @classmethod
    def of(cls, action: NDArray[np.float32], mu: NDArray[np.float32], sigma: NDArray[np.float32],
           action_range: tuple[float, float] | None) -> Densities:
        """Args:
            action, mu, sigma: [n, M]; NaN where the log has no Gaussian.
            action_range: (low, high) where actions are squashed; μ and σ are then of the Gaussian before that.
        """
        u = action.astype(np.float64) if action_range is None else unsquash_array(action, action_range)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            if action_range is None:
                log_density = gaussian_log_density(u, mu, sigma)
                slack = _EPSILON * (np.abs(u) + np.abs(mu))
            else:
                log_density = squashed_log_density(action, mu, sigma, action_range)
                # A step of the action's float32 in units of u, which grows towards the ends of the range.
                low, high = action_range
                largest = max(abs(low), abs(high))
                slack = _EPSILON * (np.abs(mu) + 2 * largest / (high - low) * np.cosh(u) ** 2)
            z, step = np.abs(u - mu) / sigma, slack / sigma
            rounding = (z * step + step**2).sum(-1) + (2 * slack.sum(-1) if action_range is not None else 0.0)
            mean = mu if action_range is None else squash_array(mu, action_range).astype(np.float32)
            drawn = np.asarray((action != mean).any(-1), bool)
        return cls(np.asarray(log_density, np.float64), np.asarray(rounding, np.float64), drawn)


def contradictions(logged: Vector, known: Densities) -> NDArray[np.bool_]:
    """bool[n]: the logged density is another than that of its own Gaussian."""
    allowed = TOLERANCE + 1e-6 * np.abs(known.log_density) + known.rounding
    with np.errstate(invalid="ignore"):
        return np.isfinite(logged) & np.isfinite(known.log_density) & (np.abs(logged - known.log_density) > allowed)


def likeness(logged: Vector, computed: Vector, parameters: int) -> str:
    """Words on what most of the contradicting densities look like; empty where nothing fits.

    Args:
        logged, computed: [k], of the rows that contradict.
        parameters: M, that a mean over them would be divided by.
    """
    if not len(logged):
        return ""
    with np.errstate(over="ignore", invalid="ignore"):
        guesses = {
            "probabilities": np.exp(computed), "logarithms to base 2": computed / math.log(2),
            "logarithms to base 10": computed / math.log(10),
            "the mean over the parameters instead of the sum": computed / parameters,
            "negative log densities": -computed, "zero everywhere": np.zeros_like(computed),
            "densities without the constant": computed + .5 * parameters * math.log(2 * math.pi),
        }
    for words, values in guesses.items():
        close = np.abs(logged - values) <= 1e-3 * np.maximum(1.0, np.abs(values)) if words != "probabilities" else (
            np.abs(logged - values) <= 1e-3 * np.maximum(np.abs(values), 1e-12))
        if close.mean() >= _MOST:
            return f" (the numbers look like {words})"
    return ""
