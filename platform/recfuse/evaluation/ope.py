"""Off-policy evaluation of single requests from logs (maths 4.1): what a request would have brought.

States come as they were logged: what the policy would do to later states is the matter of `sequential`.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike

from recfuse.config import require
from recfuse.evaluation.answers import (
    DEFAULTS,
    MIN_ESS,
    EstimateOptions,
    Evidence,
    OffPolicyEstimate,
    Part,
    conclude,
    conclude_all,
    paired,
    with_fit_error,
)
from recfuse.evaluation.support import (
    Ratios,
    Vector,
    bias_bound,
    effective_sample_size,
    events,
    feedback_array,
    hidden,
    refusal,
)
from recfuse.stats.intervals import sum_per_user, user_codes

__all__ = ["MIN_ESS", "EstimateOptions", "OffPolicyEstimate", "direct_method", "doubly_robust", "importance_sampling",
           "ncis"]


def ncis(
    log_prob: ArrayLike,
    behaviour_log_prob: ArrayLike,
    feedback: ArrayLike,
    cap: float,
    user_id: ArrayLike,
    options: EstimateOptions = DEFAULTS,
) -> OffPolicyEstimate:
    """Normalised capped importance sampling: `Σ ρ_t r_{t,j} / Σ ρ_t`, `ρ_t = min(cap, π(a_t|s_t) / π_b(a_t|s_t))`.

    Args:
        log_prob: [n], log π(a_t|s_t) of the policy in question; −inf where it never takes the action.
        behaviour_log_prob: [n], log π_b(a_t|s_t), finite.
        feedback: [n, m], finite.
        cap: c > 0; inf for none.
        user_id: [n]; the interval is a bootstrap over users.
        options: of the interval and of the support that is asked for.

    Raises:
        InvalidFieldError: a shape that does not fit or a value that is not allowed.

    References:
        maths 4.1; Swaminathan & Joachims, "The Self-Normalized Estimator for Counterfactual Learning", NIPS 2015.
    """
    return importance_sampling(log_prob, behaviour_log_prob, feedback, cap, user_id, options, normalise=True)


def importance_sampling(
    log_prob: ArrayLike,
    behaviour_log_prob: ArrayLike,
    feedback: ArrayLike,
    cap: float,
    user_id: ArrayLike,
    options: EstimateOptions = DEFAULTS,
    *,
    normalise: bool = False,
) -> OffPolicyEstimate:
    """`Σ ρ_t r_{t,j} / n`, unbiased without a cap; over `Σ ρ_t` where `normalise` (see `ncis`, whose arguments it has).

    With a cap c it estimates, and its interval holds, E min(ρ, c) r: of feedback between 0 and R that is less than the
    policy's value, by at most R (1 − E min(ρ, c)), where `mean_ratio` is the mean in brackets.

    References:
        Horvitz & Thompson, "A Generalization of Sampling Without Replacement From a Finite Universe", 1952; the cap:
        Ionides, "Truncated Importance Sampling", 2008.
    """
    ratios = Ratios.of(log_prob, behaviour_log_prob, cap)
    values = feedback_array(feedback, len(ratios.log))
    return conclude_all([ratio_part(ratios, values, np.ones(len(values)), user_id, options, normalise=normalise)],
                        options)[0]


def ratio_part(ratios: Ratios, top: Vector, bottom: Vector, user_id: ArrayLike, options: EstimateOptions, *,
               normalise: bool = True, name: str = "", per: str = "request", window: int | None = None) -> Part:
    """`Σ ρ_t top_t / Σ ρ_t bottom_t`, and the same of the log without weights; the sum below is that of `bottom_t`
    alone unless `normalise`.

    Args:
        ratios: of n requests, or products of several ratios.
        top: [n, m], finite; bottom: [n], ≥ 0, some of it > 0. What is > 0 counts for the effective sample size.
        window: how many ratios were multiplied.
    """
    width, weight = top.shape[1], ratios.scaled if normalise else ratios.weights
    sums = sum_per_user(np.column_stack([weight[:, None] * top, (weight if normalise else 1.0) * bottom, top, bottom]),
                        user_id)
    counted = bottom > 0
    evidence = _evidence(
        name or ("NCIS" if normalise else "IS"), ratios, top, user_id, options, logged=top.sum(0) / bottom.sum(),
        size=effective_sample_size(weight[counted]), of=int(counted.sum()), per=per, window=window,
        normalise=normalise, pull=(top, bottom) if normalise else None)
    evidence = dataclasses.replace(evidence, events=events(sums[:, width + 1:-1], evidence.size / counted.sum()))

    def value(s: Vector) -> Vector:
        return s[:, :width] / s[:, width:width + 1]

    return Part(evidence=evidence, sums=sums, statistic=value,
                change=paired(value, lambda s: s[:, width + 1:-1] / s[:, -1:]))


def doubly_robust(
    log_prob: ArrayLike,
    behaviour_log_prob: ArrayLike,
    feedback: ArrayLike,
    cap: float,
    user_id: ArrayLike,
    predicted: ArrayLike,
    expected: ArrayLike,
    options: EstimateOptions = DEFAULTS,
    *,
    normalise: bool = False,
) -> OffPolicyEstimate:
    """`mean(v(s_t)) + mean(ρ_t (r_t − q(s_t, a_t)))`; the second mean over `Σ ρ_t` where `normalise`.

    Right where the ratios are, whatever the critic; and where the critic is, whatever the ratios.

    Args:
        predicted: [n, m], q(s_t, a_t) of a critic that was fitted to other rows.
        expected: [n, m], v(s_t) = E q(s_t, a) over the actions of the policy in question.
        others: as of `ncis`.

    References:
        Dudík, Langford & Li, "Doubly Robust Policy Evaluation and Learning", ICML 2011.
    """
    ratios = Ratios.of(log_prob, behaviour_log_prob, cap)
    values = feedback_array(feedback, len(ratios.log))
    q, v = _critic(predicted, "predicted", values), _critic(expected, "expected", values)
    return conclude_all([robust_part(ratios, values, user_id, q, v, options, normalise=normalise)], options)[0]


def robust_part(ratios: Ratios, values: Vector, user_id: ArrayLike, predicted: Vector, expected: Vector,
                options: EstimateOptions, *, normalise: bool) -> Part:
    """`doubly_robust` before its intervals; values, predicted, expected: [n, m], finite."""
    rows, width = values.shape
    weight = ratios.scaled if normalise else ratios.weights
    residual, ones = values - predicted, np.ones(rows)
    sums = sum_per_user(np.column_stack([expected, weight[:, None] * residual, values, ones,
                                         weight if normalise else ones]), user_id)
    evidence = _evidence("SN-DR" if normalise else "DR", ratios, residual, user_id, options, logged=values.mean(0),
                         size=effective_sample_size(weight), of=rows, normalise=normalise,
                         pull=(residual, ones) if normalise else None)
    # A critic takes the place of no event: of a rare behaviour the residuals are its events.
    evidence = dataclasses.replace(evidence, events=events(sums[:, 2 * width:-2], evidence.size / rows))

    def value(s: Vector) -> Vector:
        return s[:, :width] / s[:, -2:-1] + s[:, width:2 * width] / s[:, -1:]

    return Part(evidence=evidence, sums=sums, statistic=value,
                change=paired(value, lambda s: s[:, 2 * width:-2] / s[:, -2:-1]))


def direct_method(
    expected: ArrayLike,
    feedback: ArrayLike,
    user_id: ArrayLike,
    options: EstimateOptions = DEFAULTS,
    *,
    fit_error: ArrayLike | None = None,
    predicted: ArrayLike | None = None,
) -> OffPolicyEstimate:
    """`mean(v(s_t))` of a critic that was fitted to other rows: no ratios, and as wrong as the critic.

    Args:
        fit_error: [U', m], how each user of the critic's samples moved the mean (`LinearCritics.fit_error`), which
            the interval then counts; None where the critic was not fitted.
        predicted: [n, m], q(s_t, a_t), whose mean is the logged policy's value by the same critic: the change is from
            it. None for the log's own mean, by which the critic's error of level passes for a change.
        others: as of `doubly_robust`.
    """
    rows = len(np.asarray(user_id))
    values, ones = feedback_array(feedback, rows), np.ones((rows, 1))
    width = values.shape[1]
    by_critic = values if predicted is None else _critic(predicted, "predicted", values)
    per_user = sum_per_user(np.hstack([_critic(expected, "expected", values), by_critic, values, ones]), user_id)
    evidence = _evidence("DM", Ratios(np.zeros(rows), math.inf), values, user_id,
                         EstimateOptions(min_ess=0.0), logged=values.mean(0), size=float(rows), of=rows)
    evidence = dataclasses.replace(evidence, bias_bound=None)
    sums, value = with_fit_error(per_user, fit_error, width, lambda s: s[:, :width] / s[:, -1:])
    columns = per_user.shape[1]

    def change(s: Vector) -> Vector:
        logged = s[:, 2 * width:3 * width]
        with np.errstate(divide="ignore", invalid="ignore"):
            return (value(s) * s[:, columns - 1:columns] - s[:, width:2 * width]) / np.abs(logged)

    return conclude(evidence, sums, value, options, change)


def _critic(values: ArrayLike, field: str, feedback: np.ndarray) -> np.ndarray:
    answers = np.asarray(values, np.float64)
    require(answers.shape == feedback.shape, field, answers.shape, f"{feedback.shape}, as feedback")
    require(bool(np.isfinite(answers).all()), field, "not finite", "finite numbers")
    return answers


def _evidence(estimator: str, ratios: Ratios, pulled: Vector, user_id: ArrayLike, options: EstimateOptions, *,
              logged: Vector, size: float, of: int, per: str = "request", window: int | None = None,
              normalise: bool = True, pull: tuple[Vector, Vector] | None = None) -> Evidence:
    """Of capped ratios.

    Args:
        pulled: [n, m], what they weigh. size, of: effective sample size, and of how many requests.
        pull: what a normalised estimate weighs above and below; None where the mean ratio is to be near 1 by itself.
    """
    weights = ratios.weights
    codes, users = user_codes(user_id, len(weights))
    mean_ratio, present = float(weights.mean()), len(np.unique(codes))
    return Evidence(
        estimator=estimator, logged=logged, size=size, requests=len(weights), users=present, per=per,
        capped_share=ratios.capped_share, mean_ratio=mean_ratio, cap=ratios.cap, window=window,
        bias_bound=bias_bound(pulled, mean_ratio),
        hidden=None if pull is None else hidden(ratios.scaled, *pull, _missing(ratios, codes, users)),
        refused=refusal(size, options, of, present, mean_ratio, "requests" if per == "request" else "sessions",
                        normalise))


def _missing(ratios: Ratios, codes: np.ndarray, users: int) -> float:
    """The share of the weight that the cap cuts off, no more of it than what the capped mean lacks of 1, and that the
    log lacks without a cap; chance, two standard errors of a mean over users, counts for the former alone."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean, error = _mean(np.exp(ratios.log), codes, users)
        kept, chance = _mean(ratios.weights, codes, users)
    if not np.isfinite(kept + chance):
        return 0.0
    most = max(1 - kept + 2 * chance, 0.0)
    return min(mean - kept, most) + max(1 - mean - 2 * error, 0.0) if np.isfinite(mean + error) else most


def _mean(weight: Vector, codes: np.ndarray, users: int) -> tuple[float, float]:
    """Over requests, with its standard error over users."""
    mean = float(weight.mean())
    return mean, float(np.sqrt((np.bincount(codes, weight - mean, users)**2).sum())) / len(weight)
