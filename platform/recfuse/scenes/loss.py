"""The loss of the multi-scene model, and its calibration (maths 3.2, 3.4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from recfuse.config import require


def multi_scene_loss(
    logits: Tensor, labels: Tensor, mask: Tensor, positive_weight: Tensor, task_weight: Tensor
) -> Tensor:
    """`Σ_i Σ_t I(i ∈ s_t) ω_t CE_{p_t}(z_t(x_i), y_{i,t})` (maths 3.2), from logits.

    Args:
        logits, labels: [B, T].
        mask: [B, T], bool or 0/1: whether row i is of pair t's scene. What it excludes may hold anything, NaN too,
            and gets a gradient of exactly zero.
        positive_weight: p [T].
        task_weight: ω [T].

    Returns:
        The sum, a scalar.
    """
    shape = tuple(logits.shape)
    require(logits.ndim == 2, "logits", shape, "[B, T]")
    require(tuple(labels.shape) == shape, "labels", tuple(labels.shape), f"{shape}, the shape of the logits")
    require(tuple(mask.shape) == shape, "mask", tuple(mask.shape), f"{shape}, the shape of the logits")
    for name, weight in (("positive_weight", positive_weight), ("task_weight", task_weight)):
        require(tuple(weight.shape) == shape[1:], name, tuple(weight.shape), f"{shape[1:]}, one a pair")
    inside = mask.bool()
    z = logits.masked_fill(~inside, 0.0)
    y = labels.to(logits.dtype).masked_fill(~inside, 0.0)
    cross_entropy = F.binary_cross_entropy_with_logits(z, y, pos_weight=positive_weight, reduction="none")
    return (cross_entropy * task_weight).masked_fill(~inside, 0.0).sum()


def calibrated(logits: Tensor, positive_weight: Tensor) -> Tensor:
    """`σ(z − log p)` (maths 3.4): undoes the factor p by which weighting multiplied the odds."""
    return torch.sigmoid(logits - positive_weight.log())
