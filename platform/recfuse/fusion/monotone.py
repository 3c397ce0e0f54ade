"""A learned monotone function of every prediction before the predictions are added up.

Between the linear formula, which takes a prediction as it is, and the log-sum, which takes its logarithm, lies whatever
the data say: one increasing curve a prediction, a straight line between knots. Curves that only increase keep what a
prediction promises: more of it never ranks a candidate lower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recfuse.behaviours import Curve
from recfuse.config import require

_SWEEPS = 2_000
_CONVERGED = 1e-9


@dataclass(frozen=True)
class MonotoneCurves:
    """One curve of straight lines a prediction; its outer lines go on beyond the knots.

    Attributes:
        x: [M, Q], the knots of every prediction, increasing, Q ≥ 2.
        y: [M, Q], the values there, not decreasing.

    Raises:
        InvalidFieldError: shapes that do not fit, knots that do not increase, values that decrease.
    """

    x: Tensor
    y: Tensor

    def __post_init__(self) -> None:
        require(self.x.ndim == 2 and self.x.shape[1] >= 2, "x", tuple(self.x.shape), "knots [M, Q], Q ≥ 2")
        require(self.y.shape == self.x.shape, "y", tuple(self.y.shape), f"values {tuple(self.x.shape)}, one a knot")
        finite = torch.isfinite(self.x).all() and torch.isfinite(self.y).all()
        require(bool(finite), "x and y", "NaN or an infinite value", "finite numbers")
        require(bool((self.x.diff(dim=1) > 0).all()), "x", "knots that do not increase", "increasing knots")
        require(bool((self.y.diff(dim=1) >= 0).all()), "y", "values that decrease", "values that do not decrease")

    @classmethod
    def of(cls, curves: Sequence[Curve]) -> MonotoneCurves:
        """Those of a vocabulary, in float64."""
        return cls(*(torch.tensor([getattr(curve, axis) for curve in curves], dtype=torch.float64) for axis in "xy"))

    def to(self, device: torch.device) -> MonotoneCurves:
        """The same on a device."""
        return MonotoneCurves(self.x.to(device), self.y.to(device))

    def plain(self) -> tuple[Curve, ...]:
        """As a vocabulary has them."""
        return tuple(Curve(x=tuple(x), y=tuple(y)) for x, y in zip(self.x.tolist(), self.y.tolist(), strict=True))

    def __call__(self, predictions: Tensor) -> Tensor:
        """The curves' values of predictions [..., M], likewise [..., M]."""
        shape = predictions.shape
        require(shape[-1:] == self.x.shape[:1], "predictions", tuple(shape), f"a tensor [..., {len(self.x)}]")
        values = predictions.reshape(-1, len(self.x)).T.contiguous().to(self.x.dtype)
        left = (torch.searchsorted(self.x, values, right=True) - 1).clamp(0, self.x.shape[1] - 2)
        x0, x1, y0, y1 = (table.gather(1, left + shift) for table in (self.x, self.y) for shift in (0, 1))
        result = y0 + (y1 - y0) * ((values - x0) / (x1 - x0))
        return result.T.reshape(shape)

    def __add__(self, other: MonotoneCurves) -> MonotoneCurves:
        """The curves whose values are the sum of both; knots must be the same."""
        require(torch.equal(self.x, other.x), "x", "other knots", "the same knots")
        return MonotoneCurves(self.x, self.y + other.y)

    def __mul__(self, factor: float) -> MonotoneCurves:
        """The curves scaled by a number ≥ 0."""
        require(factor >= 0, "factor", factor, "a number ≥ 0")
        return MonotoneCurves(self.x, self.y * factor)


def knots_of(predictions: Tensor, knots: int = 8) -> Tensor:
    """[M, Q] knots at the quantiles of predictions [n, M], from the least to the largest.

    Equal quantiles, of which a prediction with few values has many, are drawn apart by a share of the whole range.
    """
    require(predictions.ndim == 2 and len(predictions) > 0, "predictions", tuple(predictions.shape), "a tensor [n, M]")
    require(knots >= 2, "knots", knots, "an integer ≥ 2")
    values = predictions.double()
    places = torch.linspace(0, len(values) - 1, knots).round().long()
    x = values.sort(dim=0).values[places].T.contiguous()
    least = (x[:, -1:] - x[:, :1]).clamp(min=1e-6) * 1e-4
    steps = torch.cat([torch.zeros_like(least), x.diff(dim=1).clamp(min=least)], 1)
    return (x[:, :1] + steps.cumsum(1)).contiguous()


def basis_of(predictions: Tensor, x: Tensor) -> Tensor:
    """[..., M, Q − 1] of predictions [..., M] and knots x [M, Q]: function q rises from 0 to 1 between knots q and
    q + 1, and the outer ones go on. A curve is a sum of them, whose coefficients are its rises."""
    low, high = torch.zeros_like(x[0, 1:]), torch.ones_like(x[0, 1:])
    low[0], high[-1] = -torch.inf, torch.inf
    return ((predictions.unsqueeze(-1) - x[:, :-1]) / x.diff(dim=1)).clamp(low, high)


def curves_of(x: Tensor, rises: Tensor) -> MonotoneCurves:
    """The curves of knots [M, Q] and rises [M, Q − 1] ≥ 0, each 0 at its first knot."""
    return MonotoneCurves(x, torch.cat([torch.zeros_like(rises[:, :1]), rises.cumsum(1)], 1))


def fit_curves(predictions: Tensor, target: Tensor, groups: Tensor | None = None, *, x: Tensor | None = None,
               penalty: float = 1e-3) -> MonotoneCurves:
    """The curves whose sum is closest to the target: non-negative least squares on the rise between two knots each.

    Args:
        predictions: [n, M]; target: [n].
        groups: int64[n], such as the request: predictions and target are compared within it alone. Absent, one group.
        x: [M, Q] knots; absent, `knots_of` the predictions.
        penalty: of the squared rises, relative to a basis function's mean square.

    Returns:
        Curves in float64, each 0 at its first knot: their sum orders the rows of a group.

    Raises:
        InvalidFieldError: shapes that do not fit.
    """
    require(target.shape == predictions.shape[:1], "target", tuple(target.shape), f"a tensor [{len(predictions)}]")
    x = knots_of(predictions) if x is None else x.double()
    width, size = x.shape
    basis = basis_of(predictions.double(), x).flatten(1)
    code = torch.zeros(len(basis), dtype=torch.int64) if groups is None else groups.unique(return_inverse=True)[1]
    basis, centred = _centred(basis, code), _centred(target.double().unsqueeze(1), code)
    gram, moment = basis.T @ basis, (basis.T @ centred).squeeze(1)
    gram += penalty * torch.diag(gram.diagonal().mean().clamp(min=1e-12).expand(len(gram)))
    rises = non_negative(gram, moment).reshape(width, size - 1)
    return curves_of(x, rises)


def _centred(values: Tensor, code: Tensor) -> Tensor:
    """Values [n, k] less their group's mean."""
    total = torch.zeros(int(code.max()) + 1, values.shape[1], dtype=values.dtype).index_add_(0, code, values)
    return values - (total / torch.bincount(code).clamp(min=1).unsqueeze(1))[code]


def non_negative(gram: Tensor, moment: Tensor) -> Tensor:
    """The w ≥ 0 with the least ½ wᵀGw − mᵀw, by coordinate descent; G is positive definite."""
    w = torch.zeros_like(moment)
    gradient = -moment.clone()
    scale = gram.diagonal()
    for _ in range(_SWEEPS):
        largest = 0.0
        for j in range(len(w)):
            step = float(torch.clamp(w[j] - gradient[j] / scale[j], min=0.0) - w[j])
            if step:
                w[j] += step
                gradient += step * gram[:, j]
                largest = max(largest, step * step * float(scale[j]))
        if largest <= _CONVERGED * float(moment.abs().max().clamp(min=1e-30) ** 2 / scale.mean()):
            break
    return w
