"""Relative effects of a page on every objective, and the one vector that is best by them (maths 5.3, 5.7)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recfuse.behaviours import Vocabulary
from recfuse.fusion.effects import EffectModel
from recfuse.fusion.replay import page_features
from recfuse.learning.cem import cem
from recfuse.learning.replay import Layout, Measured, ReplayRows
from recfuse.stats.slopes import Slope, shrink

# A vector below a floor loses this times what it lacks.
_SHORTFALL = 10.0
# A behaviour that hardly occurs has no relative effect that a log could tell.
_NEVER = 1e-9


@dataclass(frozen=True)
class Slopes:
    """Per short-term behaviour the slope of realised on predicted: of the log, its error, and after shrinking."""

    log: tuple[float, ...]
    error: tuple[float, ...]
    used: tuple[float, ...]


@dataclass(frozen=True)
class RelativeEffects:
    """Attributes:
        coefficients: float64[U, C, 1 + |S|], of a page's columns on every objective.
        slopes: of the short-term behaviours.
        model: that was fitted.
    """

    coefficients: Tensor
    slopes: Slopes
    model: EffectModel


def relative_effects(measured: Measured, vocabulary: Vocabulary, units: Tensor, prior: Sequence[tuple[float, float]],
                     folds: Sequence[int] | None = None,
                     like: EffectModel | None = None) -> RelativeEffects:
    """B of the long-term objective and of every short-term behaviour, relative to what the logged policy brings.

    A unit of an effect is the whole of what a request brings on average: .03 is three per cent more.

    Args:
        measured: of the log.
        units: [m], what a reward of 1 is in feedback.
        prior: per short-term behaviour mean and standard deviation of its slope.
        folds: of users, that say so; all where None.
        like: a model whose penalties are taken.
    """
    layout, reward = Layout.of(vocabulary), measured.reward
    first = len(layout.long) + 1
    slopes = _slopes(measured, layout, units, prior, folds)
    own = {first + k: (layout.own[place], slopes.used[k] / float(units[place]))
           for k, place in enumerate(layout.short) if place in layout.own}
    # What a behaviour's own prediction does not tell of it is regressed on all columns, as far as the log supports it.
    model = measured.sums.less(own).fit(folds, like)
    found = model.coefficients.clone()
    for target, (column, slope) in own.items():
        found[0, column, target] += slope
    alphas = [vocabulary.behaviours[place].weight for place in layout.long]
    long_term = torch.stack([alpha / sum(alphas) * found[:, :, k] / _scale(reward[place])
                             for k, (place, alpha) in enumerate(zip(layout.long, alphas, strict=True))]).sum(0)
    stay = found[:, :, len(layout.long)]
    effects = [long_term]
    for k, place in enumerate(layout.short):
        seldom = abs(float(reward[place])) < _NEVER
        effects.append(torch.zeros_like(stay) if seldom else found[:, :, first + k] / _scale(reward[place]) + stay)
    return RelativeEffects(torch.stack(effects, 2), slopes, model)


def _slopes(measured: Measured, layout: Layout, units: Tensor, prior: Sequence[tuple[float, float]],
            folds: Sequence[int] | None) -> Slopes:
    """Slopes of behaviours on their own predictions, in units of feedback; NaN of those that have none."""
    rows = []
    for k, place in enumerate(layout.short):
        if place not in layout.own:
            rows.append((float("nan"),) * 3)
            continue
        target, unit = len(layout.long) + 1 + k, float(units[place])
        slope, error = (number * unit for number in measured.sums.slope(layout.own[place], target, folds))
        rows.append((slope, error, shrink(Slope(slope, error, 0), *prior[k]).slope))
    return Slopes(*(tuple(column) for column in zip(*rows, strict=True))) if rows else Slopes((), (), ())


def _scale(reward: Tensor) -> float:
    return max(abs(float(reward)), _NEVER)


def mean_effects(rows: ReplayRows, features: Tensor, effects: Tensor) -> Tensor:
    """Mean effects of vectors over requests, relative to the mean of the logged policy, float64[K, k].

    Args:
        features: [n, K, C], of the pages that the vectors show; effects: [U, C, k].
    """
    centred = features - rows.base.unsqueeze(1)
    sums = (rows.modifiers.T @ centred.flatten(1)).double().cpu().unflatten(1, centred.shape[1:])
    return torch.einsum("ukc,ucj->kj", sums, effects) / max(len(rows), 1)


@dataclass(frozen=True)
class Objective:
    """max E₀·w₀ + Σ w_j E_j under floors E_j ≥ φ_j.

    Attributes:
        weights: float64[k]; floors: float64[k], −∞ for none.
    """

    weights: Tensor
    floors: Tensor

    def score(self, effects: Tensor) -> Tensor:
        """[K] of mean effects [K, k]: what lacks to a floor costs many times its worth."""
        lacking = (self.floors - effects).clamp(min=0.0).sum(1)
        return effects @ self.weights - _SHORTFALL * lacking


def best_vector(rows: ReplayRows, effects: Tensor, objective: Objective, seed: int) -> NDArray[np.float64]:
    """The vector [M] that is best on these requests, of the length of the logged policy's mean (maths 5.7).

    The length of a vector changes no ranking, but how far exploration around it turns it.
    """

    def scores(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        shown = page_features(rows.candidates, torch.from_numpy(vectors).to(rows.state), rows.attention)
        values: NDArray[np.float64] = objective.score(mean_effects(rows, shown, effects)).cpu().numpy()
        return values

    logged, spread = (moment.double().mean(0).cpu().numpy() for moment in (rows.mu, rows.sigma))
    # A log that hardly explored says little, but the search must still be able to turn the vector.
    spread = np.maximum(spread, 0.5 * np.sqrt(np.mean(logged**2)))
    vector = cem(scores, logged, spread, population=40, elite_share=0.2, iterations=16, std_floor=0.02, smoothing=0.3,
                 seed=seed).vector
    length, given = float(np.linalg.norm(vector)), float(np.linalg.norm(logged))
    return vector * (given / length) if length > 0 and given > 0 else vector
