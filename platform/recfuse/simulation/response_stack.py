"""Stacking: what a scorer's predictions add to the response model (Wolpert 1992; Breiman 1996; maths 4.8).

The response model's rows are few, so that it misses half of what the scorer knows, and a world of it alone would answer
a ranking by the scorer too little. On rows that the scorer never saw, every head is therefore regressed on the response
model, cross-fitted, and on all of the scorer's predictions: what a prediction is worth in the world is what realised
feedback says it is worth, noise of the scorer and all.

How a prediction differs from its user's other ones has a coefficient apart from that of their mean (Mundlak 1978): a
ranking chooses among a user's items, and predictions tell users apart better than they tell a user's items apart.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recfuse.simulation.response import sigmoid
from recfuse.simulation.responses import FEED

# Coefficients of inputs in their standard deviations have this one a priori; rare behaviours stay near 0.
PRIOR = .5
_FLOOR = 1e-4
_STEPS = 12


@dataclass(frozen=True)
class Stack:
    """Weights of the response model's own output and of M predictions in every output; plain arrays.

    The outputs are the heads, then the watch levels by outcome.

    Attributes:
        probability: bool[M], predictions that enter by their log-odds; others by their logarithm.
        mean, std: float64[M + 1], of the inputs: predictions, then log(1 + duration).
        own: float32[outputs].
        within, between: float32[M + 1, outputs], of an input's difference to the mean of its user in the scene, and of
            that mean.
        base: float32[S, outputs], intercepts.
        spread: float32[outcomes], what the watch level leaves to chance, in units of a logistic deviate.
    """

    probability: NDArray[np.bool_]
    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    own: NDArray[np.float32]
    within: NDArray[np.float32]
    between: NDArray[np.float32]
    base: NDArray[np.float32]
    spread: NDArray[np.float32]

    def inputs(self, predictions: NDArray[np.float32], duration: NDArray[np.float64]) -> NDArray[np.float32]:
        """float32[N, M + 1], standardised, of predictions [N, M] and durations [N] in seconds."""
        columns = _inputs(predictions, duration, self.probability)
        standard: NDArray[np.float32] = ((columns - self.mean) / self.std).astype(np.float32)
        return standard

    def scorer_term(self, columns: NDArray[np.float32], around: NDArray[np.float32],
                    slope: NDArray[np.float32] | float = 1.0) -> NDArray[np.float32]:
        """float32[N, outputs]: what inputs [N, M + 1] and their means `around` make of the outputs.

        Args:
            slope: [N, outputs], by which what differs from the mean counts more for a person.
        """
        term: NDArray[np.float32] = slope * ((columns - around) @ self.within) + around @ self.between
        return term


def _inputs(predictions: NDArray[np.float32], duration: NDArray[np.float64],
            probability: NDArray[np.bool_]) -> NDArray[np.float64]:
    values = predictions.astype(np.float64)
    share = values.clip(_FLOOR, 1 - _FLOOR)
    odds = np.log(share) - np.log1p(-share)
    logs = np.log(values.clip(_FLOOR))
    return np.column_stack([np.where(probability, odds, logs), np.log1p(np.nan_to_num(duration).clip(0))])


def empty_stack(predictions: NDArray[np.float32], duration: NDArray[np.float64], scenes: int,
                shape: tuple[int, ...] = (FEED.outcomes, len(FEED.interactions))) -> Stack:
    """The stack under which predictions [N, M] are worth nothing, with the moments of their inputs.

    Args:
        shape: how many outcomes and interactions there are.
    """
    ends, interactions = shape
    outputs = ends - 1 + interactions + ends
    probability = predictions.max(0, initial=0.0) < 1
    columns = _inputs(predictions, duration, probability)
    nothing = np.zeros((columns.shape[1], outputs), np.float32)
    return Stack(probability, columns.mean(0), columns.std(0) + 1e-9, np.ones(outputs, np.float32), nothing,
                 nothing.copy(), np.zeros((scenes, outputs), np.float32), np.ones(ends, np.float32))


def group_means(columns: NDArray[np.float32], *keys: NDArray[np.int64]) -> NDArray[np.float32]:
    """float32[N, k]: every row's mean of the columns [N, k] over the rows with equal keys [N]."""
    group = np.unique(np.stack(keys), axis=1, return_inverse=True)[1].reshape(-1)
    count = np.bincount(group)
    means = np.stack([np.bincount(group, column) / count for column in columns.T.astype(np.float64)], 1)
    of_rows: NDArray[np.float32] = means[group].astype(np.float32)
    return of_rows


@dataclass(frozen=True)
class Held:
    """Rows that neither model was fitted to; N rows.

    Attributes:
        own: float32[N, outputs], the cross-fitted response model's.
        columns, around: float32[N, M + 1], the inputs, and their means over the rows of the same user and scene.
        scene, outcome: int64[N]; labels: float64[N, heads]; level: float64[N].
        offset: float32[outcomes, interactions], what the outcome adds to an interaction.
    """

    own: NDArray[np.float32]
    columns: NDArray[np.float32]
    around: NDArray[np.float32]
    scene: NDArray[np.int64]
    outcome: NDArray[np.int64]
    labels: NDArray[np.float64]
    level: NDArray[np.float64]
    offset: NDArray[np.float32]


def fit_stack(held: Held, empty: Stack) -> Stack:
    """Logistic regressions of the heads and least squares of the levels, with Gaussian priors.

    Args:
        empty: whose inputs the held rows have.
    """
    scenes, width = len(empty.base), held.columns.shape[1]
    columns = np.concatenate([held.columns - held.around, held.around], 1).astype(np.float64)
    dummies = np.eye(scenes)[held.scene]
    ladder, heads = len(held.offset) - 1, held.labels.shape[1]
    outputs = heads + ladder + 1
    own, given = np.zeros(outputs, np.float32), np.zeros((2 * width, outputs), np.float32)
    base, spread = empty.base.copy(), empty.spread.copy()
    for index in range(outputs):
        outcome = index - heads
        # A step of the ladder is asked of the rows that had the one before.
        rows = held.outcome == outcome if outcome >= 0 else held.outcome >= (index if index < ladder else 0)
        if rows.sum() < 30:
            own[index] = 1.0
            continue
        of_model = held.own[rows, index].astype(np.float64)
        scale = of_model.std() + 1e-9
        design = np.column_stack([of_model / scale, columns[rows], dummies[rows]])
        if outcome >= 0:
            solved = _least_squares(design, held.level[rows], scenes)
            left = (held.level[rows] - design @ solved).std()
            spread[outcome] = left / max(held.level[rows].std(), 1e-9)
        else:
            offset = held.offset[held.outcome[rows], index - ladder] if index >= ladder else np.zeros(len(of_model))
            solved = _logistic(design, held.labels[rows, index], offset, scenes)
        own[index], given[:, index], base[:, index] = solved[0] / scale, solved[1:-scenes], solved[-scenes:]
    return dataclasses.replace(empty, own=own, within=given[:width], between=given[width:], base=base, spread=spread)


def _penalty(size: int, free: int) -> NDArray[np.float64]:
    """Precisions of the prior; the last coefficients, intercepts, are as good as free."""
    precision = np.full(size, 1 / PRIOR**2)
    precision[size - free:] = 1e-3
    return precision


def _least_squares(design: NDArray[np.float64], target: NDArray[np.float64], free: int) -> NDArray[np.float64]:
    noise = max(target.var(), 1e-9)
    matrix = design.T @ design / noise + np.diag(_penalty(design.shape[1], free))
    solved: NDArray[np.float64] = np.linalg.solve(matrix, design.T @ target / noise)
    return solved


def _logistic(design: NDArray[np.float64], label: NDArray[np.float64], offset: NDArray[np.float64],
              free: int) -> NDArray[np.float64]:
    """The most probable coefficients, by Newton's method."""
    penalty = _penalty(design.shape[1], free)
    rate = float(label.mean().clip(1e-6, 1 - 1e-6))
    solved = np.zeros(design.shape[1])
    solved[-free:] = np.log(rate / (1 - rate)) - offset.mean()
    for _ in range(_STEPS):
        chance = sigmoid(design @ solved + offset)
        gradient = design.T @ (label - chance) - penalty * solved
        weight = (chance * (1 - chance))[:, None]
        step = np.linalg.solve((design * weight).T @ design + np.diag(penalty), gradient)
        # A long step is cut: an intercept of a scene without positives would run away.
        solved += step * min(1.0, 3.0 / max(np.abs(step).max(), 1e-9))
    return solved
