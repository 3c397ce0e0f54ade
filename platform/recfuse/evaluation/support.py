"""What every off-policy estimator needs first: checked input, capped ratios, and whether the log has support."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from recfuse.config import Config, require
from recfuse.stats.intervals import DRAWS, LEVEL, Interval, UserSums, of_sums

# Below it an estimate says more about a few requests than about the policy.
MIN_ESS = 100.0
# Ratios have the mean 1 where the log has everything that the policy does. Below this, most of it is missing or capped.
MIN_MEAN_RATIO = 0.2
# Of products of ratios, whose cap would otherwise pass for an effect: what is missing is missing from the estimate.
MIN_MEAN_PRODUCT = 0.9
Vector = NDArray[np.float64]


class EstimateOptions(Config):
    """What every estimator is told beside its data."""

    min_ess: float = Field(MIN_ESS, ge=0, description="Below this effective sample size an estimator gives its reason "
                                                      "instead of a number.")
    draws: int = Field(DRAWS, ge=1, description="The bootstrap over users draws this many times.")
    level: float = Field(LEVEL, gt=0, lt=1, description="Intervals hold the truth with this probability.")
    seed: int = Field(0, description="The seed of the bootstrap.")


DEFAULTS = EstimateOptions()


@dataclass(frozen=True)
class OffPolicyEstimate:
    """What a log says about another policy; float64[m] each, one a behaviour.

    Attributes:
        estimate, low, high: value per request, or per session, and its bootstrap interval over users; NaN where
            refused.
        logged: the same of the logged policy, from the log alone.
        effective_sample_size: (Σρ)² / Σρ², the same for every behaviour as the weights are; of a sequential estimate,
            in sessions, at the request where it is smallest.
        requests, users: rows and distinct users of the log; capped_share: of the weights.
        mean_ratio: mean of the capped ratios, 1 where the log supports all that the policy does.
        estimator: its name; per: its unit, `request` or `session`.
        refused: why no number is given, "" where one is.
    """

    estimate: Vector
    low: Vector
    high: Vector
    logged: Vector
    effective_sample_size: Vector
    requests: int
    users: int
    capped_share: float
    mean_ratio: float = math.nan
    estimator: str = "NCIS"
    per: str = "request"
    refused: str = ""

    @property
    def interval(self) -> tuple[Vector, Vector]:
        """(low, high)"""
        return self.low, self.high

    @property
    def ess(self) -> Vector:
        """Short for `effective_sample_size`."""
        return self.effective_sample_size


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


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What a log has for an estimate; the fields are those of `OffPolicyEstimate`, `size` its effective sample size."""

    estimator: str
    logged: Vector
    size: float
    requests: int
    users: int
    capped_share: float
    mean_ratio: float
    per: str = "request"
    refused: str = ""


def conclude(evidence: Evidence, sums: Vector | UserSums, statistic: Callable[[Vector], Vector],
             options: EstimateOptions) -> OffPolicyEstimate:
    """A function of sums over users with its interval, or NaN where the evidence is refused.

    Args:
        sums: [U, k], one row a user.
        statistic: sums [B, k] → values [B, m], row by row.
    """
    width = len(evidence.logged)
    if evidence.refused:
        interval = Interval(nan_vector(width), nan_vector(width), nan_vector(width))
    else:
        interval = of_sums(sums, statistic, draws=options.draws, level=options.level, seed=options.seed)
    return OffPolicyEstimate(
        interval.estimate, interval.low, interval.high, logged=evidence.logged,
        effective_sample_size=np.full(width, evidence.size), requests=evidence.requests, users=evidence.users,
        capped_share=evidence.capped_share, mean_ratio=evidence.mean_ratio, estimator=evidence.estimator,
        per=evidence.per, refused=evidence.refused)


def with_fit_error(sums: Vector, fit_error: ArrayLike | None, behaviours: int,
                   statistic: Callable[[Vector], Vector] | None = None) -> tuple[Vector, Callable[[Vector], Vector]]:
    """What `conclude` takes, for an estimate of which critics are a part.

    Args:
        sums: [U, k] of the users that are evaluated.
        fit_error: [U', m], what the users of the critics' samples add to the estimate (`LinearCritics.fit_error`);
            None for critics without error. The two sets of users are taken to be different ones.
        behaviours: m.
        statistic: sums [B, k] → estimates [B, m]; None for the mean of sums [U, m + 1], of values and of how many.

    Returns:
        Sums [U + U', k + m], and the statistic with both.
    """
    error, width = fit_errors(fit_error, behaviours), sums.shape[1]
    both = np.zeros((len(sums) + len(error), width + behaviours))
    both[:len(sums), :width], both[len(sums):, width:] = sums, error
    of_users = statistic or (lambda s: s[:, :behaviours] / s[:, behaviours:])
    return both, lambda s: of_users(s[:, :width]) + s[:, width:]


def fit_errors(fit_error: ArrayLike | None, behaviours: int) -> Vector:
    """[U', m] of `with_fit_error`, no rows where None.

    Raises:
        InvalidFieldError: another shape, or a value that is not finite.
    """
    error = np.zeros((0, behaviours)) if fit_error is None else array(fit_error)
    require(error.ndim == 2 and error.shape[1] == behaviours, "fit_error", error.shape,
            f"an array [users, {behaviours}]")
    require(bool(np.isfinite(error).all()), "fit_error", "not finite", "finite numbers")
    return error


def refusal(size: float, least: float, rows: int, users: int, mean_ratio: float = 1.0, unit: str = "requests",
            least_ratio: float = MIN_MEAN_RATIO) -> str:
    """Why a log with these weights carries no estimate; "" where it does."""
    if users < 2:
        return f"{users} user: an interval over users needs at least 2"
    if size < least or size == 0:
        return (f"effective sample size {size:.1f} of {rows:,} {unit} is below {least:g}: the log holds too few "
                "actions that this policy would take")
    if mean_ratio < least_ratio:
        return (f"the mean ratio is {mean_ratio:.2f}, where 1 is expected: {1 - mean_ratio:.0%} of what this policy "
                "does has no counterpart in the log, or is capped")
    return ""


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


def nan_vector(behaviours: int) -> Vector:
    """float64[m] of NaN: no estimate."""
    return np.full(behaviours, np.nan)


def _first(values: Vector, bad: NDArray[np.bool_]) -> float:
    return float(values[bad][0]) if bad.any() else math.nan
