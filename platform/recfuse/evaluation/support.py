"""What every off-policy estimator needs first: checked input, capped ratios, and whether the log has support."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recfuse.config import require
from recfuse.evaluation.answers import EstimateOptions, Vector

# The share of the weight that the requests of the largest weights have together, whose feedback stands for what is
# missing.
_TOP_WEIGHT = 0.1


@dataclass(frozen=True)
class Ratios:
    """π(a_t|s_t) / π_b(a_t|s_t) of n logged requests.

    Attributes:
        log: float64[n], not capped.
        cap: of the ratios, inf for none.
    """

    log: Vector
    cap: float

    @classmethod
    def of(cls, log_prob: ArrayLike, behaviour_log_prob: ArrayLike, cap: float) -> Ratios:
        """Raises InvalidFieldError: a shape that does not fit or a value that is not allowed."""
        target, behaviour = vector(log_prob, "log_prob"), vector(behaviour_log_prob, "behaviour_log_prob")
        require(len(target) > 0, "log_prob", 0, "at least one request")
        require(len(behaviour) == len(target), "behaviour_log_prob", len(behaviour),
                f"{len(target)} values, as in log_prob")
        require(bool((target < np.inf).all()), "log_prob", _first(target, ~(target < np.inf)), "numbers < inf")
        require(bool(np.isfinite(behaviour).all()), "behaviour_log_prob", _first(behaviour, ~np.isfinite(behaviour)),
                "finite numbers")
        require(cap > 0, "cap", cap, "a number > 0")
        return cls(target - behaviour, cap)

    @property
    def limit(self) -> float:
        """log(cap)"""
        return math.log(self.cap)

    @property
    def capped_share(self) -> float:
        """Share of the ratios that the cap cuts."""
        return float((self.log > self.limit).mean())

    @property
    def weights(self) -> Vector:
        """min(cap, ratio), float64[n]; inf only where there is no cap and the ratio itself overflows."""
        with np.errstate(over="ignore"):
            return np.exp(np.minimum(self.log, self.limit))

    @property
    def scaled(self) -> Vector:
        """The same up to a common factor, which normalised estimators lose, and never overflowing."""
        shift = self.limit if math.isfinite(self.limit) else float(self.log.max())
        return np.exp(np.minimum(self.log, self.limit) - (shift if math.isfinite(shift) else 0.0))


def effective_sample_size(weight: Vector) -> float:
    """(Σρ)² / Σρ²"""
    squares = float((weight**2).sum())
    return float(weight.sum()) ** 2 / squares if squares > 0 else 0.0


def refusal(size: float, options: EstimateOptions, rows: int, users: int, mean_ratio: float = 1.0,
            unit: str = "requests", normalise: bool = True) -> str:
    """Why a log with these weights carries no estimate; "" where it does.

    Args:
        size: the effective sample size; rows: of how many `unit`.
        options: what is asked of it, and of the mean ratio.
        mean_ratio: of the capped ratios. normalise: whether the estimate is normalised by them.
    """
    if users < 2:
        return f"{users} user: an interval over users needs at least 2"
    if size < options.min_ess or size == 0:
        return (f"effective sample size {size:.1f} of {rows:,} {unit} is below {options.min_ess:g}: the log holds too "
                "few actions that this policy would take")
    if not normalise and not abs(mean_ratio - 1) <= options.ratio_tolerance:
        return (f"the mean ratio is {mean_ratio:.3f}, where 1 ± {options.ratio_tolerance:g} is asked of an estimate "
                "that is not normalised: it is wrong by the difference and more")
    if normalise and mean_ratio < options.min_mean_ratio:
        return (f"the mean ratio is {mean_ratio:.2f}, where 1 is expected: {1 - mean_ratio:.0%} of what this policy "
                "does has no counterpart in the log, or is capped")
    return ""


def bias_bound(values: Vector, mean_ratio: float) -> Vector:
    """[m], what capped weights hide at most, of feedback [n, m] between the smallest (0 where all are above it) and the
    largest of the log: `R (1 − mean ratio)` (maths 8.1)."""
    reach: Vector = values.max(0).clip(0) - values.min(0).clip(None, 0)
    return reach * max(1 - mean_ratio, 0.0)


def events(per_user: Vector, share: float) -> Vector:
    """[m], how many events the weights leave, `share · (Σ_u x_u)² / Σ_u x_u²` of the log's feedback [U, m] per user;
    inf of feedback with values below 0, whose sum may be small for other reasons.

    Args:
        share: effective sample size of the weights over the number of requests. It does not say which events have large
            weights, and must not: logs where those are many also have too large an estimate.
    """
    squares = (per_user**2).sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        number = per_user.sum(0)**2 / squares
    return np.where((per_user < 0).any(0), np.inf, np.where(squares > 0, share * number, 0.0))


def hidden(weight: Vector, top: Vector, bottom: Vector, missing: float) -> Vector:
    """[m], by how much `Σ w top / Σ w bottom` would move if what is missing of the weight were like the requests of the
    largest weights.

    Args:
        weight: [n], up to a common factor; top: [n, m]; bottom: [n].
        missing: share of the weight, ≥ 0.
    """
    if missing <= 0:
        return np.zeros(top.shape[1])
    order = np.argsort(-weight, kind="stable")
    cumulated = np.cumsum(weight[order])
    most = order[:int(np.searchsorted(cumulated, _TOP_WEIGHT * cumulated[-1])) + 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        whole = weight @ top / (weight @ bottom)
        large = weight[most] @ top[most] / (weight[most] @ bottom[most])
        return np.where(np.isfinite(large), missing * np.abs(large - whole), 0.0)


def feedback_array(feedback: Any, rows: int) -> Vector:
    """[n, m], finite.

    Raises:
        InvalidFieldError: another shape, or a value that is not finite.
    """
    values = array(feedback)
    require(values.ndim == 2, "feedback", values.shape, "an array [n, m]")
    require(len(values) == rows, "feedback", len(values), f"{rows} rows, as in log_prob")
    require(bool(np.isfinite(values).all()), "feedback", _first(values, ~np.isfinite(values)), "finite numbers")
    return values


def array(values: Any) -> Vector:
    """Tensors and array-likes as float64."""
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    return np.asarray(values, np.float64)


def vector(values: Any, field: str) -> Vector:
    """[n]"""
    numbers = array(values)
    require(numbers.ndim == 1, field, numbers.shape, "an array [n]")
    return numbers


def _first(values: Vector, bad: NDArray[np.bool_]) -> float:
    return float(values[bad][0]) if bad.any() else math.nan
