"""Off-policy evaluation of single requests from logs (maths 4.1): what a request would have brought.

States come as they were logged: what the policy would do to later states is the matter of `sequential`.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from recfuse.config import require
from recfuse.evaluation.support import (
    DEFAULTS,
    MIN_ESS,
    EstimateOptions,
    Evidence,
    OffPolicyEstimate,
    Ratios,
    Vector,
    conclude,
    effective_sample_size,
    feedback_array,
    refusal,
    with_fit_error,
)
from recfuse.stats.intervals import sum_per_user

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
    rows = len(ratios.log)
    values = feedback_array(feedback, rows)
    weight = ratios.scaled if normalise else ratios.weights
    bottom = weight if normalise else np.ones(rows)
    per_user = sum_per_user(np.column_stack([weight[:, None] * values, bottom]), user_id)
    return conclude(_evidence("NCIS" if normalise else "IS", ratios, values, per_user, options.min_ess), per_user,
                    lambda sums: sums[:, :-1] / sums[:, -1:], options)


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
    rows = len(ratios.log)
    values = feedback_array(feedback, rows)
    q, v = _critic(predicted, "predicted", values), _critic(expected, "expected", values)
    weight = ratios.scaled if normalise else ratios.weights
    bottom = weight if normalise else np.ones(rows)
    width = values.shape[1]
    per_user = sum_per_user(np.column_stack([v, weight[:, None] * (values - q), np.ones(rows), bottom]), user_id)
    return conclude(
        _evidence("SN-DR" if normalise else "DR", ratios, values, per_user, options.min_ess), per_user,
        lambda sums: sums[:, :width] / sums[:, -2:-1] + sums[:, width:-2] / sums[:, -1:], options)


def direct_method(
    expected: ArrayLike,
    feedback: ArrayLike,
    user_id: ArrayLike,
    options: EstimateOptions = DEFAULTS,
    *,
    fit_error: ArrayLike | None = None,
) -> OffPolicyEstimate:
    """`mean(v(s_t))` of a critic that was fitted to other rows: no ratios, and as wrong as the critic.

    Args:
        fit_error: [U', m], how each user of the critic's samples moved the mean (`LinearCritics.fit_error`), which
            the interval then counts; None where the critic was not fitted.
        others: as of `doubly_robust`.
    """
    rows = len(np.asarray(user_id))
    values = feedback_array(feedback, rows)
    per_user = sum_per_user(np.column_stack([_critic(expected, "expected", values), np.ones(rows)]), user_id)
    evidence = _evidence("DM", Ratios(np.zeros(rows), math.inf), values, per_user, 0.0)
    return conclude(evidence, *with_fit_error(per_user, fit_error, values.shape[1]), options)


def _critic(values: ArrayLike, field: str, feedback: np.ndarray) -> np.ndarray:
    answers = np.asarray(values, np.float64)
    require(answers.shape == feedback.shape, field, answers.shape, f"{feedback.shape}, as feedback")
    require(bool(np.isfinite(answers).all()), field, "not finite", "finite numbers")
    return answers


def _evidence(estimator: str, ratios: Ratios, values: Vector, per_user: Vector, least: float) -> Evidence:
    size, mean_ratio = effective_sample_size(ratios.scaled), float(ratios.weights.mean())
    return Evidence(estimator=estimator, logged=values.mean(0), size=size, requests=len(values), users=len(per_user),
                    capped_share=ratios.capped_share, mean_ratio=mean_ratio,
                    refused=refusal(size, least, len(values), len(per_user), mean_ratio))
