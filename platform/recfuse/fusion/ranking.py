"""Fusion of predictions into one ranking (maths 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor

from recfuse.behaviours import Curve, Formula
from recfuse.config import require
from recfuse.fusion.monotone import MonotoneCurves

Order = Literal["descending", "ascending"]


def fuse(
    predictions: Tensor, weights: Tensor, formula: Formula = "linear", offset: float | Tensor = 1e-3,
    curves: Sequence[Curve] | None = None,
) -> Tensor:
    """Scores of candidates from their predictions and the fusion parameters.

    Args:
        predictions: [..., N, M], finite; for `log_sum` and `power`, greater than −offset.
        weights: [..., M], the fusion parameters a, finite; leading dimensions broadcast against those of predictions.
        formula: `linear` Σ a_k p_k (maths 2.1), `log_sum` Σ a_k log(p_k + b_k) (2.2), `power` Π (p_k + b_k)^{a_k}
            (2.3). The last two order alike; products that leave the float range tie, so rank by `log_sum` there.
        offset: b > 0, one number or [M]; unused by `linear`.
        curves: M, which predictions pass through before `linear` (2.5).

    Returns:
        [..., N].

    Raises:
        InvalidFieldError: names the field, its value and what is allowed.
    """
    require(formula in get_args(Formula), "formula", formula, ", ".join(get_args(Formula)))
    require(predictions.ndim >= 2, "predictions", tuple(predictions.shape), "a tensor [..., N, M]")
    parameters = predictions.shape[-1]
    require(weights.ndim >= 1 and weights.shape[-1] == parameters, "weights", tuple(weights.shape),
            f"a tensor [..., M] with M = {parameters}, the last dimension of predictions")
    _require_broadcast(predictions, weights)
    _require_all(torch.isfinite(predictions), "predictions", predictions, "finite numbers")
    _require_all(torch.isfinite(weights), "weights", weights, "finite numbers")
    require(curves is None or (formula == "linear" and len(curves) == parameters), "curves", curves,
            f"{parameters} curves for the formula linear, or none")
    if formula == "linear":
        terms = predictions if curves is None else MonotoneCurves.of(curves)(predictions).to(predictions.dtype)
        return _weigh(terms, weights)
    b = torch.as_tensor(offset, dtype=predictions.dtype, device=predictions.device)
    require(b.ndim == 0 or b.shape == (parameters,), "offset", tuple(b.shape), f"a number or a tensor [{parameters}]")
    _require_all((b > 0) & torch.isfinite(b), "offset", b, "finite numbers > 0")
    shifted = predictions + b
    _require_all(shifted > 0, "predictions", predictions, f"numbers > −offset for the formula {formula}")
    log_sum = _weigh(torch.log(shifted), weights)
    return log_sum if formula == "log_sum" else torch.exp(log_sum)


def rank(scores: Tensor, order: Order = "descending") -> Tensor:
    """The candidates' positions, int64 [..., N], best place first (maths 2.4).

    Args:
        scores: [..., N], no NaN.
        order: `descending`, or `ascending`, in which the best comes last.

    Ties keep the candidates' order, whichever the order of the scores.

    Raises:
        InvalidFieldError: names the field, its value and what is allowed.
    """
    require(order in get_args(Order), "order", order, ", ".join(get_args(Order)))
    require(scores.ndim >= 1, "scores", tuple(scores.shape), "a tensor [..., N]")
    _require_all(~torch.isnan(scores), "scores", scores, "numbers other than NaN")
    return torch.argsort(scores, dim=-1, descending=order == "descending", stable=True)


def _weigh(terms: Tensor, weights: Tensor) -> Tensor:
    # Not a matrix product: its blocks round a row by its place, so that equal candidates would not tie. The sum over a
    # contiguous last dimension treats every row alike.
    return (terms * weights.unsqueeze(-2)).contiguous().sum(-1)


def _require_broadcast(predictions: Tensor, weights: Tensor) -> None:
    try:
        torch.broadcast_shapes(predictions.shape[:-2], weights.shape[:-1])
    except RuntimeError:
        require(False, "weights", tuple(weights.shape), f"leading dimensions that fit {tuple(predictions.shape[:-2])}")


def _require_all(good: Tensor, field: str, values: Tensor, allowed: str) -> None:
    """Refuses a tensor, naming the first bad value and where it stands."""
    if bool(good.all()):
        return
    index = tuple(torch.nonzero(~good)[0].tolist()) if good.ndim else ()
    place = f"{field}[{', '.join(map(str, index))}]" if index else field
    require(False, place, values[index].item(), allowed)
