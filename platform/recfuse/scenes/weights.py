"""Weights of positives and of tasks, from their counts (maths 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from recfuse.config import InvalidFieldError, require

# α of ω ∝ M^−α.
_ALPHA = {"balanced": 1.0, "sqrt": 0.5, "uniform": 0.0}
STRATEGIES = (*_ALPHA, "manual")


def task_weights(
    positives: Tensor | ArrayLike,
    negatives: Tensor | ArrayLike,
    strategy: str = "balanced",
    *,
    positive_weight: Tensor | ArrayLike | None = None,
    task_weight: Tensor | ArrayLike | None = None,
    largest_positive_weight: float | None = None,
    names: Sequence[object] | None = None,
) -> tuple[Tensor, Tensor]:
    """How much a positive and a pair count in the loss (maths 3.3).

    `p_t = N_t⁻ / N_t⁺`; `ω_t ∝ (p_t N_t⁺ + N_t⁻)^−α`, scaled to mean 1.

    Args:
        positives, negatives: counts [T].
        strategy: `balanced` (α = 1), `sqrt` (α = ½), `uniform` (α = 0), or `manual`.
        positive_weight, task_weight: [T] > 0, the operator's own; with `manual` only, and then both.
        largest_positive_weight: a bound on p_t, ≥ 1. Rare tasks (p in the hundreds) otherwise drown the frequent ones
            in the noise of a few positives: on real exposures that cost .035 of pooled click AUC.
        names: of the pairs, for messages; their indices where absent.

    Returns:
        (positive_weight [T], task_weight [T]), float64 where the counts are, else float32.

    Raises:
        InvalidFieldError: a pair without positives or negatives, an unknown strategy, a weight that is not > 0.
    """
    require(strategy in STRATEGIES, "strategy", strategy, ", ".join(STRATEGIES))
    plus, minus = _counts(positives, "positives"), _counts(negatives, "negatives")
    require(plus.shape == minus.shape, "negatives", tuple(minus.shape), f"counts of shape {tuple(plus.shape)}")
    _require_both(plus, minus, names)
    manual = strategy == "manual"
    require((positive_weight is not None) == manual, "positive_weight", positive_weight, "given with manual, only")
    require((task_weight is not None) == manual, "task_weight", task_weight, "given with manual, only")
    dtype = torch.float64 if isinstance(positives, Tensor) and positives.dtype == torch.float64 else torch.float32
    if positive_weight is not None and task_weight is not None:
        p, w = _manual(positive_weight, "positive_weight", len(plus)), _manual(task_weight, "task_weight", len(plus))
        return p.to(dtype), w.to(dtype)
    p = minus / plus
    if largest_positive_weight is not None:
        require(largest_positive_weight >= 1, "largest_positive_weight", largest_positive_weight, "a number ≥ 1")
        p = p.clamp(max=largest_positive_weight)
    w = (p * plus + minus) ** -_ALPHA[strategy]
    return p.to(dtype), (w / w.mean()).to(dtype)


def _require_both(plus: Tensor, minus: Tensor, names: Sequence[object] | None) -> None:
    """Every pair has positives and negatives."""
    for what, counts in (("positive", plus), ("negative", minus)):
        for index in torch.nonzero(counts <= 0).flatten().tolist():
            raise InvalidFieldError(f"pair {index if names is None else names[index]}", f"{counts[index]:g} {what}s",
                                    f"at least one {what} in the training rows")


def _numbers(values: Tensor | ArrayLike) -> Tensor:
    """float64 on the CPU."""
    array = values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values, np.float64))
    return array.to(torch.float64)


def _counts(values: Tensor | ArrayLike, field: str) -> Tensor:
    counts = _numbers(values)
    require(counts.ndim == 1 and len(counts) > 0, field, tuple(counts.shape), "counts [T], T ≥ 1")
    require(bool(torch.isfinite(counts).all()) and bool((counts >= 0).all()), field, counts.tolist(), "counts ≥ 0")
    return counts


def _manual(values: Tensor | ArrayLike, field: str, size: int) -> Tensor:
    weights = _numbers(values)
    require(tuple(weights.shape) == (size,), field, tuple(weights.shape), f"({size},)")
    require(bool(torch.isfinite(weights).all()) and bool((weights > 0).all()), field, weights.tolist(), "numbers > 0")
    return weights
