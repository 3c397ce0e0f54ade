"""What a logged density must be: computed again from the Gaussian, with the rounding of what was logged.

A density that contradicts its own μ and σ says that the writer computed something else; what it looks like is named.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recfuse.logs.precision import EPSILON, Precision
from recfuse.stats.gaussian import gaussian_log_density, squash_array, squashed_log_density, unsquash_array

Vector = NDArray[np.float64]
# What logged and computed densities may differ by, beyond rounding.
TOLERANCE = 1e-3
# Of the contradicting rows, so many must fit before their numbers are said to look like something.
_MOST = .9


@dataclass(frozen=True)
class Densities:
    """Of rows with μ and σ; NaN, and drawn, for the others.

    Attributes:
        log_density: float64[n], log π(action) of N(mu, sigma²), or of its squashed form.
        rounding: float64[n], how far it may be off because action, μ and σ are rounded, to float32 or to decimals.
        drawn: bool[n], false where the action is μ itself in every parameter: it was taken, not drawn.
        notes: which columns have fewer digits than a float32, in sentences.
    """

    log_density: Vector
    rounding: Vector
    drawn: NDArray[np.bool_]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, action: NDArray[np.float32], mu: NDArray[np.float32], sigma: NDArray[np.float32],
           action_range: tuple[float, float] | None) -> Densities:
        """Args:
            action, mu, sigma: [n, M]; NaN where the log has no Gaussian.
            action_range: (low, high) where actions are squashed; μ and σ are then of the Gaussian before that.
        """
        of_action = Precision.of(action)
        precisions = {"action": of_action, "mu": of_action.of_few(mu), "sigma": of_action.of_few(sigma)}
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            error = of_action.error(action)
            if action_range is None:
                u, log_density = action.astype(np.float64), gaussian_log_density(action, mu, sigma)
            else:
                u, log_density = unsquash_array(action, action_range), squashed_log_density(
                    action, mu, sigma, action_range)
                error = _unsquashed_error(action, error, action_range)
            rounding = _rounding(u - mu, error + precisions["mu"].error(mu), sigma,
                                 precisions["sigma"].error(sigma) / sigma)
            rounding += 2 * error.sum(-1) if action_range is not None else 0.0
            drawn = ~_at_mean(action, mu, sigma, of_action.half_step + precisions["mu"].half_step, action_range)
        return cls(np.asarray(log_density, np.float64), rounding, drawn, tuple(
            note for name, precision in precisions.items() for note in notes(name, precision)))


def notes(name: str, precision: Precision) -> list[str]:
    """What is said of a column with fewer digits than a float32."""
    said = f"{name} is logged with {precision.words}; densities are checked as far as these tell"
    return [said] if precision.words else []


def _rounding(distance: NDArray[np.float64], error: NDArray[np.float64], sigma: NDArray[np.float32],
              share: NDArray[np.float64]) -> Vector:
    """float64[n], the most by which a log density changes where action − μ is off by `error`, σ by `share` of itself.

    From −½z² − log σ: z may be as large as (|z| + error/σ) / (1 − share), which bounds changes in either direction.
    """
    z, kept = np.abs(distance) / sigma, 1.0 - np.minimum(share, .5)
    change = .5 * (((z + error / sigma) / kept)**2 - z**2) - np.log(kept)
    return np.asarray(change.sum(-1), np.float64)


def _unsquashed_error(action: NDArray[np.float32], error: NDArray[np.float64],
                      action_range: tuple[float, float]) -> NDArray[np.float64]:
    """The error of actions in units of u, which grows towards the ends of the range."""
    low, high = action_range
    # Bits are lost to the larger end of the range too, where low + (high − low) share is computed.
    error = np.maximum(error, EPSILON * max(abs(low), abs(high)))
    u = unsquash_array(action, action_range)
    slope = 2.0 / (high - low) * np.cosh(u)**2
    if error.max(initial=0.0) <= 16 * EPSILON * max(abs(low), abs(high)):
        return np.asarray(error * slope, np.float64)
    below, above = (np.abs(unsquash_array(action + sign * error, action_range) - u) for sign in (-1, 1))
    return np.asarray(np.maximum(below, above), np.float64)


def _at_mean(action: NDArray[np.float32], mu: NDArray[np.float32], sigma: NDArray[np.float32], step: float,
             action_range: tuple[float, float] | None) -> NDArray[np.bool_]:
    """bool[n], the action is that of μ as far as the digits tell.

    Args:
        step: what action and μ of one number may differ by. Where it is not 0, drawn actions lie there by chance; rows
            are taken for not drawn if ten times as many do.
    """
    mean = mu if action_range is None else squash_array(mu, action_range).astype(np.float32)
    if not step:
        return np.asarray((action == mean).all(-1), bool)
    near = np.asarray((np.abs(action.astype(np.float64) - mean) <= step * (1 + 1e-3)).all(-1), bool)
    slope = 1.0 if action_range is None else .5 * (action_range[1] - action_range[0]) / np.cosh(
        mu.astype(np.float64))**2
    chance = np.minimum(2 * step / (np.sqrt(2 * np.pi) * sigma * slope), 1.0).prod(-1)
    known = np.isfinite(chance)
    often = known.any() and near[known].mean() > 10 * chance[known].mean()
    return near & bool(often)


def contradictions(logged: Vector, known: Densities, precision: Precision) -> NDArray[np.bool_]:
    """bool[n]: the logged density, of this precision, is another than that of its own Gaussian."""
    allowed = TOLERANCE + 1e-6 * np.abs(known.log_density) + known.rounding + precision.error(logged)
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
