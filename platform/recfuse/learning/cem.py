"""The cross-entropy method over one vector of fusion weights for everybody, as tuning by hand arrives at.

Rubinstein, "The Cross-Entropy Method for Combinatorial and Continuous Optimization", 1999; the extra variance of
Szita and Lőrincz, "Learning Tetris Using the Noisy Cross-Entropy Method", 2006, as a lower bound here, and smoothing
of the standard deviation, without which the search ends before it arrives (de Boer et al., "A Tutorial on the
Cross-Entropy Method", 2005, section 5).

`cem` takes any objective, a simulator's roll-out as a rule; recfuse.learning.algorithms.cem searches on a log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recfuse.config import require
from recfuse.runtime.console import Progress

Objective = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class CemIteration:
    """Attributes:
        mean_score, elite_score, best_score: of the population, of its elite, of its best vector.
        mean, std: [M], the distribution that the next population is drawn from.
    """

    mean_score: float
    elite_score: float
    best_score: float
    mean: NDArray[np.float64]
    std: NDArray[np.float64]


@dataclass(frozen=True)
class CemResult:
    """Attributes:
        vector: [M], the mean of the last distribution: the answer. With a noisy objective it is better than the
            vector that once scored best.
        std: [M], of the last distribution.
        history: one entry per iteration.
    """

    vector: NDArray[np.float64]
    std: NDArray[np.float64]
    history: tuple[CemIteration, ...]


def cem(
    objective: Objective,
    mean: ArrayLike,
    std: ArrayLike,
    *,
    population: int = 32,
    elite_share: float = 0.25,
    iterations: int = 10,
    std_floor: float = 0.05,
    smoothing: float = 0.5,
    seed: int = 0,
) -> CemResult:
    """Maximises the objective.

    Args:
        objective: scores [P] of fusion weights [P, M]; larger is better; may be noisy. A simulator's roll-out, as a
            rule.
        mean, std: [M], the first distribution; std may be one number.
        population: P ≥ 2 vectors an iteration; the mean is one of them.
        elite_share: share of them, in (0, 1), that the next distribution is fitted to; at least two.
        iterations: populations.
        std_floor: the distribution keeps this share of the first std, or the search would end by itself too early.
        smoothing: share of the old std in the new one, in [0, 1).
        seed: of the populations.

    Raises:
        InvalidFieldError: a bad argument, or an objective that gives anything but P finite scores.
    """
    center, spread = _first_distribution(mean, std)
    require(population >= 2, "population", population, "an integer ≥ 2")
    require(0 < elite_share < 1, "elite_share", elite_share, "a share in (0, 1)")
    require(iterations >= 1, "iterations", iterations, "an integer ≥ 1")
    require(0 <= std_floor < 1, "std_floor", std_floor, "a share in [0, 1)")
    require(0 <= smoothing < 1, "smoothing", smoothing, "a share in [0, 1)")
    least = std_floor * spread
    rng = np.random.default_rng(seed)
    progress = Progress("CEM", iterations, "iterations")
    history = []
    for _ in range(iterations):
        vectors = propose(center, spread, population, rng)
        scores = _scores(objective, vectors)
        center, spread, elite_score = refit(vectors, scores, spread, least, elite_share, smoothing)
        history.append(CemIteration(float(scores.mean()), elite_score, float(scores.max()), center, spread))
        progress.advance(1, f"mean {scores.mean():.4g}, best {scores.max():.4g}")
    progress.finish(f"mean of the last elite {history[-1].elite_score:.4g}")
    return CemResult(center, spread, tuple(history))


def _first_distribution(mean: ArrayLike, std: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    center, spread = np.array(mean, np.float64), np.array(std, np.float64)
    require(center.ndim == 1 and center.size > 0, "mean", center.shape, "a vector [M]")
    require(bool(np.isfinite(center).all()), "mean", center.tolist(), "finite numbers")
    require(spread.shape in ((), center.shape), "std", spread.shape, f"a number or a vector {center.shape}")
    require(bool((np.isfinite(spread) & (spread > 0)).all()), "std", spread.tolist(), "finite numbers > 0")
    return center, np.broadcast_to(spread, center.shape).copy()


def _scores(objective: Objective, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    scores = np.asarray(objective(vectors), np.float64)
    require(scores.shape == (len(vectors),), "objective", scores.shape, f"scores of shape ({len(vectors)},)")
    require(bool(np.isfinite(scores).all()), "objective", scores.tolist(), "finite scores")
    return scores


def propose(
    center: NDArray[np.float64], spread: NDArray[np.float64], population: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """A population [P, M] of the distribution with this mean and standard deviation [M]; the mean is one of them."""
    vectors = center + spread * rng.standard_normal((population, center.size))
    vectors[0] = center
    return vectors


def refit(
    vectors: NDArray[np.float64], scores: NDArray[np.float64], spread: NDArray[np.float64],
    least: NDArray[np.float64], elite_share: float, smoothing: float,
) -> tuple[NDArray[np.float64], NDArray[np.float64], float]:
    """Mean and standard deviation of the next distribution, fitted to the elite, and the elite's mean score."""
    elites = max(2, round(elite_share * len(vectors)))
    # Stable, so that equal scores keep the order in which their vectors were drawn.
    order = np.argsort(-scores, kind="stable")[:elites]
    elite = vectors[order]
    spread = np.maximum(smoothing * spread + (1.0 - smoothing) * elite.std(0), least)
    return elite.mean(0), spread, float(scores[order].mean())
