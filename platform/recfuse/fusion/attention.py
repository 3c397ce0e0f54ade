"""How much of a page is looked at, estimated from a log (maths 5.0).

After each place the next one is looked at with the same probability v, so that place l counts v^(l − 1). What a page
brings is then a multiple of Σ_l v^(l − 1) p_l, with p_l the prediction of the item at place l; v is what explains most
of the feedback, by least squares over all behaviours that have a prediction of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from recfuse.fusion.effects import FOLDS, jackknife_error
from recfuse.fusion.replay import attention_of

_GRID = torch.linspace(0.2, 1.0, 161, dtype=torch.float64)
# A log whose error is larger says nothing of the decay, nor one in which predictions explain less of the feedback than
# so many rows' worth of chance.
_KNOWN, _CHANCE = 0.15, 30.0
DEFAULT_DECAY = 0.85


@dataclass(frozen=True)
class Attention:
    """Attributes:
        decay: v, in (0, 1].
        error: its standard error by the jackknife over users; infinite where the log does not tell.
    """

    decay: float
    error: float

    def of(self, page: int, like: Tensor) -> Tensor:
        """v_l = decay^(l − 1), [L]."""
        return attention_of(self.decay, page, like)

    def __str__(self) -> str:
        if not np.isfinite(self.error):
            return f"{self.decay:.2f} (assumed: the log does not tell)"
        return f"{self.decay:.2f} ± {1.96 * self.error:.2f}"


@dataclass(frozen=True)
class AttentionSums:
    """Sums of products by fold: float64[folds, behaviours, L + 2, L + 2] of a constant, predictions by place,
    feedback."""

    grams: Tensor

    @classmethod
    def zeros(cls, behaviours: int, page: int, folds: int = FOLDS) -> AttentionSums:
        """Sums over nothing."""
        return cls(torch.zeros(folds, behaviours, page + 2, page + 2, dtype=torch.float64))

    def add(self, places: Tensor, feedback: Tensor, fold: Tensor) -> None:
        """Adds rows.

        Args:
            places: [n, behaviours, L], the prediction of each behaviour at each place that was shown; 0 where none was.
            feedback: [n, behaviours]; fold: int64[n].
        """
        ones = torch.ones_like(feedback).unsqueeze(2)
        rows = torch.cat([ones, places, feedback.unsqueeze(2)], 2).double().transpose(0, 1)
        for index in fold.unique().tolist():
            part = rows[:, fold == index]
            self.grams[index] += torch.bmm(part.transpose(1, 2), part)

    def estimate(self) -> Attention:
        """The decay that explains most of the feedback, and its error; the default where the log does not tell."""
        folds = [gram for gram in self.grams if gram[0, 0, 0] > 0]
        if len(folds) < 2 or self.grams.shape[2] < 4:  # a page of one place
            return Attention(DEFAULT_DECAY, float("inf"))
        total = torch.stack(folds).sum(0)
        decay, explained = _best(total)
        error = float(jackknife_error(torch.tensor([_best(total - fold)[0] for fold in folds], dtype=torch.float64)))
        if not error < _KNOWN or explained * float(total[0, 0, 0]) < _CHANCE:
            return Attention(DEFAULT_DECAY, float("inf"))
        return Attention(decay, error)


def _best(gram: Tensor) -> tuple[float, float]:
    """The decay with the largest explained share of the variance, summed over the behaviours; and that sum."""
    count = gram[:, :1, :1]
    centred = gram - gram[:, :, :1] @ gram[:, :1, :] / count
    products, cross, total = centred[:, 1:-1, 1:-1], centred[:, 1:-1, -1], centred[:, -1, -1]
    weights = _GRID.unsqueeze(1) ** torch.arange(products.shape[1])
    fitted = (weights @ cross.T).clamp(min=0.0)  # [grid, behaviours]: less of what is predicted explains nothing
    square = torch.einsum("gl,blk,gk->gb", weights, products, weights).clamp(min=1e-300)
    gain = (fitted.square() / square / total.clamp(min=1e-300)).sum(1)
    return float(_GRID[gain.argmax()]), float(gain.max())
