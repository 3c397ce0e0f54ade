"""How much a prediction means differs by person: how large that spread is in a log of exposures (maths 4.8).

Persons differ in the slope of what they do on what is predicted for them. Slopes fitted to a few exposures of a person
differ by chance alone, so the spread is not read off them. Every person's exposures are cut into two halves instead: by
how much each half rises more steeply than all together is multiplied with the same of the other half. Chance in one
half knows nothing of chance in the other, so the products sum to the variance of the slopes (method of moments).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recfuse.config import require
from recfuse.simulation.response import sigmoid
from recfuse.stats.intervals import of_sums

_SPLITS = 20
_LEAST = 4  # exposures of a person, so that each half has a difference


@dataclass(frozen=True)
class MeaningSpread:
    """Attributes:
        variance: of the persons' slopes, whose mean is 1; [low, high]: its 95% interval, a bootstrap over persons. An
            unbiased estimate of a small variance may be below 0.
        slope: of all together, on the scale of the input.
        users: persons with enough exposures; rows: theirs.
    """

    variance: float
    low: float
    high: float
    slope: float
    users: int
    rows: int

    @property
    def spread(self) -> float:
        """Standard deviation of the slopes; 0 where the variance is estimated below 0."""
        return float(np.sqrt(max(self.variance, 0.0)))


def meaning_spread(outcome: NDArray[np.float64], prediction: NDArray[np.float64], user: NDArray[np.int64], *,
                   binary: bool = True, seed: int = 0, draws: int = 1_000) -> MeaningSpread:
    """The spread of slopes over persons, from exposures that the predictions were not fitted to.

    Args:
        outcome: [N], 0 or 1 where `binary`, else a number such as log(1 + watch time).
        prediction: [N], what the outcome's log-odds, or the outcome itself, is linear in.
        user: [N]; those with fewer than 4 exposures are left out.
        seed: of the halves and of the bootstrap.

    Raises:
        InvalidFieldError: fewer than 2 persons with enough exposures.
    """
    user = np.unique(user, return_inverse=True)[1].reshape(-1)
    enough = (np.bincount(user) >= _LEAST)[user]
    user = np.unique(user[enough], return_inverse=True)[1].reshape(-1)
    users = int(user.max(initial=-1)) + 1
    require(users >= 2, "user", users, f"at least 2 persons with {_LEAST} exposures")
    y, x = outcome[enough].astype(np.float64), prediction[enough].astype(np.float64)
    slope, fitted = _pooled(y, x, user, users, binary)
    weight = fitted * (1 - fitted) if binary else np.ones(len(y))
    rng = np.random.default_rng([seed, 0x5E])
    sums = np.zeros((users, 2))
    for _ in range(_SPLITS):
        halves = [_scores(y - fitted, x, weight, user, users, half) for half in _halves(user, rng)]
        (first, size), (second, other) = halves
        sums += np.stack([first * second, size * other], 1) / _SPLITS
    interval = of_sums(sums, lambda total: total[:, :1] / total[:, 1:] / slope**2, draws=draws, seed=seed)
    return MeaningSpread(variance=float(interval.estimate[0]), low=float(interval.low[0]), high=float(interval.high[0]),
                         slope=slope, users=users, rows=len(y))


def _halves(user: NDArray[np.int64], rng: np.random.Generator) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Two masks [N] that share everybody's rows, drawn anew."""
    order = np.lexsort((rng.random(len(user)), user))
    rank = np.empty(len(user), np.int64)
    ordered = user[order]
    rank[order] = np.arange(len(user)) - np.searchsorted(ordered, ordered)
    return rank % 2 == 0, rank % 2 == 1


def _scores(residual: NDArray[np.float64], x: NDArray[np.float64], weight: NDArray[np.float64],
            user: NDArray[np.int64], users: int, half: NDArray[np.bool_]) -> tuple[NDArray[np.float64],
                                                                                  NDArray[np.float64]]:
    """Per person, from one half: Σ (x − x̄) residual, and Σ w (x − x̄)², which a slope one steeper adds to it.

    x̄ weighs rows as the likelihood does, so that who answers more often than predicted does not seem to mean more.
    """
    of, w = user[half], weight[half]
    total = np.bincount(of, w, users)
    mean = np.bincount(of, w * x[half], users) / np.maximum(total, 1e-12)
    centred = x[half] - mean[of]
    score: NDArray[np.float64] = np.bincount(of, centred * residual[half], users).astype(np.float64)
    size: NDArray[np.float64] = np.bincount(of, w * centred**2, users).astype(np.float64)
    return score, size


def _pooled(y: NDArray[np.float64], x: NDArray[np.float64], user: NDArray[np.int64], users: int,
            binary: bool) -> tuple[float, NDArray[np.float64]]:
    """The slope within persons, and fitted values [N]: of an intercept, the difference to a person's mean prediction,
    that mean, and how the person's other exposures were answered."""
    count = np.bincount(user, minlength=users)[user]
    mean = np.bincount(user, x, users)[user] / count
    others = (np.bincount(user, y, users)[user] - y + 2 * y.mean()) / (count + 1)
    design = np.column_stack([x - mean, mean, others, np.ones(len(y))])
    if not binary:
        solved = np.linalg.lstsq(design, y, rcond=None)[0]
        return float(solved[0]), design @ solved
    solved = np.zeros(design.shape[1])
    for _ in range(25):
        chance = sigmoid(design @ solved)
        hessian = (design * (chance * (1 - chance))[:, None]).T @ design + 1e-9 * np.eye(len(solved))
        solved += np.linalg.solve(hessian, design.T @ (y - chance))
    return float(solved[0]), sigmoid(design @ solved)
