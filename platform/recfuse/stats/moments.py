"""Effects from moments alone: counts, means and products of what users did, which add up over any parts of a log.

So an A/B test of any number of users needs a small matrix an arm, and its variance is reduced by what the users did
before the test (maths 7.9).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recfuse.config import require

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Moments:
    """Of some users' columns.

    Attributes:
        count: users n.
        mean: float64[k].
        scatter: float64[k, k], Σ (v − mean)(v − mean)ᵀ.
    """

    count: int
    mean: Vector
    scatter: Vector

    @classmethod
    def of(cls, values: ArrayLike) -> Moments:
        """Of `values` [n, k], one row a user."""
        array = np.asarray(values, np.float64)
        require(array.ndim == 2, "values", array.shape, "an array [users, k]")
        mean = array.mean(0) if len(array) else np.zeros(array.shape[1])
        around = array - mean
        return cls(len(array), mean, around.T @ around)

    def __add__(self, other: Moments) -> Moments:
        """Of both groups of users together (Chan, Golub and LeVeque 1979), which loses nothing to large means."""
        count = self.count + other.count
        if not count:
            return self
        step = other.mean - self.mean
        return Moments(count, self.mean + step * (other.count / count),
                       self.scatter + other.scatter + np.outer(step, step) * (self.count * other.count / count))

    @property
    def events(self) -> Vector:
        """float64[k], effective numbers of events `(Σ v)² / Σ v²`; 0 where nothing happened."""
        squares = np.diag(self.scatter) + self.count * self.mean**2
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(squares > 0, (self.count * self.mean) ** 2 / squares, 0.0)

    def variance(self, weights: ArrayLike) -> float:
        """Of the mean of `weights · v`, float64[k] weights; NaN of fewer than two users."""
        w = np.asarray(weights, np.float64)
        return float(w @ self.scatter @ w) / (self.count - 1) / self.count if self.count > 1 else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, whose lists Arrow and JSON hold."""
        return {"count": self.count, "mean": self.mean.tolist(), "scatter": self.scatter.ravel().tolist()}

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> Moments:
        """Of what `to_dict` gave."""
        mean = np.array(plain["mean"], np.float64)
        return cls(int(plain["count"]), mean, np.array(plain["scatter"], np.float64).reshape(len(mean), len(mean)))


def joined(parts: Iterable[Moments]) -> Moments:
    """Of all parts, at least one; the order of the parts is that of the sums."""
    first, *others = parts
    for other in others:
        first = first + other
    return first


@dataclass(frozen=True)
class Effect:
    """A relative difference of two means.

    Attributes:
        base: mean of the base, after the adjustment.
        estimate: (mean(treated) − mean(base)) / |mean(base)|; NaN where the base has none.
        error: its standard error; where it falls, with the ratio 1, so that a fall by chance does not look sure.
        reduction: share of the difference's variance that the adjustment took away, in [0, 1].
    """

    base: float
    estimate: float
    error: float
    reduction: float


def effect(base: Moments, treated: Moments, outcome: int, covariates: Sequence[int] = ()) -> Effect:
    """The effect on one column, adjusted by others that the treatment cannot have changed (maths 7.9).

    `β` is that of the regression of the outcome on the covariates within the arms; the outcome's mean in an arm is then
    taken at the covariates' mean over both arms (Deng et al., "Improving the Sensitivity of Online Controlled
    Experiments by Utilizing Pre-Experiment Data", 2013).
    """
    beta = _slopes(base.scatter + treated.scatter, outcome, covariates)
    share = treated.count / max(base.count + treated.count, 1)
    gap = float(beta @ (treated.mean - base.mean))  # what chance gave the arms to begin with
    plain = _relative(base, treated, outcome, np.zeros_like(beta), share, 0.0)
    adjusted = _relative(base, treated, outcome, beta, share, gap)
    reduction = 1 - (adjusted.error / plain.error) ** 2 if plain.error > 0 else 0.0
    return Effect(adjusted.base, adjusted.estimate, adjusted.error, max(reduction, 0.0))


def _slopes(scatter: Vector, outcome: int, covariates: Sequence[int]) -> Vector:
    """float64[k], β in the places of the covariates, 0 elsewhere; covariates that say the same share theirs."""
    beta = np.zeros(len(scatter))
    varying = [place for place in covariates if scatter[place, place] > 0]
    if varying:
        scale = np.sqrt(np.diag(scatter)[varying])
        within = scatter[np.ix_(varying, varying)] / np.outer(scale, scale)
        beta[varying] = np.linalg.lstsq(within, scatter[varying, outcome] / scale, rcond=1e-9)[0] / scale
    return beta


def _relative(base: Moments, treated: Moments, outcome: int, beta: Vector, share: float, gap: float) -> Effect:
    """The effect with given slopes by the delta method; what the common mean of the covariates adds is counted too."""
    of_base = float(base.mean[outcome]) + share * gap
    of_treated = float(treated.mean[outcome]) - (1 - share) * gap
    if of_base == 0:
        return Effect(of_base, *(float("nan"),) * 2, 0.0)
    estimate = (of_treated - of_base) / abs(of_base)
    ratio = max(of_treated / of_base, 1.0)
    weights = -(1 + (ratio - 1) * share) * beta
    on_treated, on_base = weights.copy(), weights.copy()
    on_treated[outcome] += 1.0
    on_base[outcome] += ratio
    error = float(np.sqrt(treated.variance(on_treated) + base.variance(on_base))) / abs(of_base)
    return Effect(of_base, estimate, error, 0.0)
