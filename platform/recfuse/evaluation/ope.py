"""Off-policy evaluation from logs (FORMULAS 4.1)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recfuse.errors import require
from recfuse.evaluation.intervals import DRAWS, LEVEL, ratio_of_sums, sum_per_user

# Below it an estimate says more about a few requests than about the policy.
MIN_ESS = 100.0


@dataclass(frozen=True)
class OffPolicyEstimate:
    """What a log says about another policy; float64[m] each, one a behaviour.

    Attributes:
        estimate, low, high: value per request and its bootstrap interval over users; NaN where refused.
        logged: the mean in the log, for comparison.
        effective_sample_size: (Σρ)² / Σρ², the same for every behaviour as the weights are.
        requests, users: rows and distinct users of the log; capped_share: of the weights.
        refused: why no number is given, "" where one is.
    """

    estimate: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    logged: NDArray[np.float64]
    effective_sample_size: NDArray[np.float64]
    requests: int
    users: int
    capped_share: float
    refused: str = ""

    @property
    def interval(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """(low, high)"""
        return self.low, self.high

    @property
    def ess(self) -> NDArray[np.float64]:
        """Short for `effective_sample_size`."""
        return self.effective_sample_size


def ncis(
    log_prob: ArrayLike,
    behaviour_log_prob: ArrayLike,
    feedback: ArrayLike,
    cap: float,
    user_id: ArrayLike,
    *,
    min_ess: float = MIN_ESS,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> OffPolicyEstimate:
    """Normalised capped importance sampling: `Σ ρ_t r_{t,j} / Σ ρ_t`, `ρ_t = min(cap, π(a_t|s_t) / π_b(a_t|s_t))`.

    Args:
        log_prob: [n], log π(a_t|s_t) of the policy in question; −inf where it never takes the action.
        behaviour_log_prob: [n], log π_b(a_t|s_t), finite.
        feedback: [n, m], finite.
        cap: c > 0; inf for none.
        user_id: [n]; the interval is a bootstrap over users.
        min_ess: below this effective sample size no number is given but the reason.
        draws, level, seed: of the bootstrap.

    Raises:
        InvalidFieldError: a shape that does not fit or a value that is not allowed.

    References:
        FORMULAS 4.1; Swaminathan & Joachims, "The Self-Normalized Estimator for Counterfactual Learning", NIPS 2015.
    """
    log_prob, behaviour = _vector(log_prob, "log_prob"), _vector(behaviour_log_prob, "behaviour_log_prob")
    values = _array(feedback)
    require(values.ndim == 2, "feedback", values.shape, "an array [n, m]")
    rows = len(log_prob)
    require(rows > 0, "log_prob", rows, "at least one request")
    require(len(behaviour) == rows, "behaviour_log_prob", len(behaviour), f"{rows} values, as in log_prob")
    require(len(values) == rows, "feedback", len(values), f"{rows} rows, as in log_prob")
    require(bool((log_prob < np.inf).all()), "log_prob", _first(log_prob, ~(log_prob < np.inf)), "numbers < inf")
    require(bool(np.isfinite(behaviour).all()), "behaviour_log_prob", _first(behaviour, ~np.isfinite(behaviour)),
            "finite numbers")
    require(bool(np.isfinite(values).all()), "feedback", _first(values, ~np.isfinite(values)), "finite numbers")
    require(cap > 0, "cap", cap, "a number > 0")
    require(min_ess >= 0, "min_ess", min_ess, "a number ≥ 0")
    log_ratio = log_prob - behaviour
    # Capped before the exponential, which then cannot overflow. With no cap the largest is taken out: it cancels.
    limit = math.log(cap)
    shift = limit if math.isfinite(limit) else float(log_ratio.max())
    shift = shift if math.isfinite(shift) else 0.0
    weight = np.exp(np.minimum(log_ratio, limit) - shift)
    per_user = sum_per_user(np.column_stack([weight[:, None] * values, weight]), user_id)
    size = _effective_sample_size(weight)
    common = {
        "logged": values.mean(0), "effective_sample_size": np.full(values.shape[1], size), "requests": rows,
        "users": len(per_user), "capped_share": float((log_ratio > limit).mean())}
    if reason := _refusal(size, min_ess, rows, len(per_user)):
        nothing = np.full(values.shape[1], np.nan)
        return OffPolicyEstimate(nothing, nothing.copy(), nothing.copy(), refused=reason, **common)
    found = ratio_of_sums(per_user[:, :-1], per_user[:, -1], draws=draws, level=level, seed=seed)
    return OffPolicyEstimate(found.estimate, found.low, found.high, **common)


def _effective_sample_size(weight: NDArray[np.float64]) -> float:
    squares = float((weight**2).sum())
    return float(weight.sum()) ** 2 / squares if squares > 0 else 0.0


def _refusal(size: float, least: float, rows: int, users: int) -> str:
    if users < 2:
        return f"{users} user: an interval over users needs at least 2"
    if size < least or size == 0:
        return (f"effective sample size {size:.1f} of {rows:,} requests is below {least:g}: the log holds too few "
                "actions that this policy would take")
    return ""


def _array(values: Any) -> NDArray[np.float64]:
    values = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    return np.asarray(values, np.float64)


def _vector(values: Any, field: str) -> NDArray[np.float64]:
    array = _array(values)
    require(array.ndim == 1, field, array.shape, "an array [n]")
    return array


def _first(values: NDArray[np.float64], bad: NDArray[np.bool_]) -> float:
    return float(values[bad][0]) if bad.any() else math.nan
