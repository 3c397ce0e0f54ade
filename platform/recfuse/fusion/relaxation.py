"""The relaxed page: how much of each candidate the places take, with a gradient in the scores (maths 5.4).

Forward and backward pass are written out, because dozens of small operations a place, each with a node of autograd's
and memory of its own, took twice as long.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# A place takes no more than all but this of a candidate.
_LEAST = 1e-6
_CLOSED = -1e30


def relaxed_places(scores: Tensor, is_open: Tensor, attention: Tensor, temperature: float) -> Tensor:
    """Σ_l v_l w_l of every candidate, [n, K, N], w_l the share of it that place l takes; 0 where it is not open.

    Args:
        scores: finite, [n, K, N].
        is_open: bool[n, N].
        attention: [L], v.
        temperature: τ > 0, in standard deviations of the scores of a request's open candidates: in these units a longer
            vector ranks no sharper, as it ranks no differently.
    """
    places: Tensor = _Places.apply(scores, is_open.unsqueeze(1).to(scores.dtype), attention.tolist(), temperature)
    return places


class _Places(torch.autograd.Function):
    """z = standardised scores / τ; w_l = softmax(z); z ← z + log(1 − w_l) / τ."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, is_open: Tensor, attention: list[float], temperature: float) -> Tensor:
        count = is_open.sum(2, keepdim=True).clamp_(min=1.0)
        open_scores = scores * is_open
        standard = open_scores.sub_(open_scores.sum(2, keepdim=True).div_(count)).mul_(is_open)
        deviation = standard.square().sum(2, keepdim=True).div_(count).add_(1e-12).sqrt_()
        standard.div_(deviation)
        # Finite, so that a request without an open candidate gives numbers; they are multiplied by 0 in the end.
        logits = (standard / temperature).add_((1.0 - is_open).mul_(_CLOSED))
        total, shares = torch.zeros_like(logits), []
        for place, weight in enumerate(attention):
            share = logits.softmax(2)
            shares.append(share)
            total.add_(share, alpha=weight)
            if place + 1 < len(attention):
                # Divided by the temperature too, or what was taken would only tie with the next best.
                logits.add_(share.neg().clamp_(min=_LEAST - 1.0).log1p_(), alpha=1.0 / temperature)
        ctx.save_for_backward(is_open, count, standard, deviation, *shares)
        ctx.attention, ctx.temperature = attention, temperature
        return total.mul_(is_open)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        is_open, count, standard, deviation, *shares = ctx.saved_tensors
        gradient = gradient * is_open
        of_logits: Tensor | None = None
        for share, weight in zip(reversed(shares), reversed(ctx.attention), strict=True):
            of_share = gradient * weight
            if of_logits is not None:
                # 0 where the share was cut, whose rest is then as good as infinite.
                rest = torch.nn.functional.threshold(1.0 - share, _LEAST, float("inf"))
                of_share.addcdiv_(of_logits, rest, value=-1.0 / ctx.temperature)
            of_share.mul_(share)
            of_share.addcmul_(share, of_share.sum(2, keepdim=True), value=-1.0)
            of_logits = of_share if of_logits is None else of_logits.add_(of_share)
        assert of_logits is not None
        of_logits.mul_(is_open)
        along = (of_logits * standard).sum(2, keepdim=True).div_(count)
        of_scores = of_logits.addcmul_(standard, along, value=-1.0).div_(deviation * ctx.temperature)
        return of_scores.sub_(of_scores.sum(2, keepdim=True).div_(count)).mul_(is_open), None, None, None
