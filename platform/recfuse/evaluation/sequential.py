"""Off-policy evaluation of whole sessions from logs: what a session would have brought, later states included.

The weight of a session's t-th request is the capped product of the ratios so far,
`w_t = min(cap, Π_{k≤t} π(a_k|s_k) / π_b(a_k|s_k))`, and the value of a session is `Σ_t γ_j^t r_{t,j}`. Products of
ratios lose their support quickly: `supported_horizon` says after how many requests, and the estimators take a horizon,
so that they speak of the first requests of a session.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from numpy.typing import ArrayLike

from recfuse.config import require
from recfuse.evaluation.answers import (
    DEFAULTS,
    EstimateOptions,
    Evidence,
    OffPolicyEstimate,
    Statistic,
    conclude,
    with_fit_error,
)
from recfuse.evaluation.sessions import Products, Sessions
from recfuse.evaluation.stepwise import stepwise_sums
from recfuse.evaluation.support import Vector, refusal
from recfuse.stats.intervals import UserSums

# Products of more ratios are so skewed that intervals held the truth in 67 to 81% of logs whose effective number of
# sessions was 7 to 15% of all.
LEAST_SHARE = 0.2


def supported_horizon(sessions: Sessions, options: EstimateOptions = DEFAULTS) -> int:
    """The largest number of first requests at each of which the effective number of sessions is as large as asked, and
    no small share of all, and the weights' mean at least half way from the least allowed one to 1."""
    products = sessions.products
    least = max(options.min_ess, LEAST_SHARE * sessions.count)
    unsupported = (products.sizes < least) | (products.mean < (1 + options.min_mean_ratio) / 2)
    return int(np.argmax(unsupported)) if unsupported.any() else len(unsupported)


def trajectory_importance_sampling(sessions: Sessions, options: EstimateOptions = DEFAULTS, *, normalise: bool = False,
                                   horizon: int | None = None) -> OffPolicyEstimate:
    """`mean_i(w_i Σ_t γ^t r_t)` with the weight of the whole session, over `mean_i w_i` where `normalise`.

    References:
        Precup, Sutton & Singh, "Eligibility Traces for Off-Policy Policy Evaluation", ICML 2000.
    """
    some = sessions.within(horizon)
    weight, width = some.products.final, some.feedback.shape[1]
    value = _per_session(some, some.discounts() * some.feedback)
    bottom = weight if normalise else np.ones(some.count)
    sums = _per_user(some, np.column_stack([weight[:, None] * value, bottom]))
    name = "SN-IS (session)" if normalise else "IS (session)"
    return conclude(_evidence(name, some, _last(some.products), options, normalise=normalise),
                    *_beside_log(some, sums, lambda s: s[:, :width] / s[:, width:], options))


def per_decision(sessions: Sessions, options: EstimateOptions = DEFAULTS, *, normalise: bool = False,
                 horizon: int | None = None) -> OffPolicyEstimate:
    """PDIS: `mean_i Σ_t γ^t w_{i,t} r_{i,t}`; each request only weighs what led to it. With `normalise` the weights of
    every step sum to one over the sessions.

    References:
        Precup, Sutton & Singh, ICML 2000; the normalised form: Thomas, "Safe Reinforcement Learning", 2015.
    """
    return sequential_doubly_robust(sessions, None, None, options, normalise=normalise, horizon=horizon)


def sequential_doubly_robust(
    sessions: Sessions,
    predicted: ArrayLike | None,
    expected: ArrayLike | None,
    options: EstimateOptions = DEFAULTS,
    *,
    normalise: bool = False,
    horizon: int | None = None,
    fit_error: ArrayLike | None = None,
) -> OffPolicyEstimate:
    """`mean_i Σ_t γ^t [ w_t (r_t − q(s_t, a_t)) + w_{t−1} v(s_t) ]`, `w_{−1} = 1`.

    Args:
        predicted, expected: [n, m], q(s_t, a_t) and v(s_t) of critics of the policy in question that were fitted to
            other rows (`recfuse.evaluation.fitted_q`), in the units of feedback; None for 0, which is PDIS.
        horizon: H; the estimate is still of the whole session: what comes after H requests is `γ^H w_{H−1} v(s_H)`.
        fit_error: [U', m], how each user of the critics' samples moved the estimate (`LinearCritics.fit_error` under
            `critic_weights`), which the interval then counts; None where the critics were not fitted. What is said of
            the requests after H is the critics' word, so that an interval without it is too narrow. Measured over 197
            of 200 simulated logs (tests/opt_in/test_ope_coverage.py): the 95% interval of watch time held the truth in
            92.4% with it and 85.3% without it, normalised or not; ± 1.6 points.

    References:
        Jiang & Li, "Doubly Robust Off-policy Value Evaluation for Reinforcement Learning", ICML 2016; the normalised
        form: Thomas & Brunskill, "Data-Efficient Off-Policy Policy Evaluation", ICML 2016.
    """
    q, v = _critic_values(predicted, "predicted", sessions), _critic_values(expected, "expected", sessions)
    some = sessions.within(horizon)
    kept = sessions.step < some.longest
    products, discounts = some.products, some.discounts()
    corrected = discounts * products.of_row[:, None] * (some.feedback - q[kept])
    led = discounts * _before(some)[:, None] * v[kept]
    beyond = _beyond(sessions, some.longest, v) * products.final[:, None]
    names = ("PDIS", "SN-PDIS") if predicted is None else ("DR (session)", "SN-DR (session)")
    whole = some if predicted is None else sessions
    evidence = _evidence(names[normalise], some, products, options, whole=whole, normalise=normalise)
    if normalise:
        return conclude(evidence, *_beside_log(whole, *stepwise_sums(some, corrected, led, beyond, fit_error), options))
    sums = _per_user(some, np.column_stack([_per_session(some, corrected + led) + beyond, np.ones(some.count)]))
    return conclude(evidence, *_beside_log(whole, *with_fit_error(sums, fit_error, q.shape[1]), options))


def _critic_values(values: ArrayLike | None, field: str, sessions: Sessions) -> Vector:
    """What critics say of every request, [n, m]; 0 where there are none."""
    shape = sessions.feedback.shape
    array = np.zeros(shape) if values is None else np.asarray(values, np.float64)
    require(array.shape == shape, field, array.shape, f"{shape}, as feedback")
    require(bool(np.isfinite(array).all()), field, "not finite", "finite numbers")
    return array


def _beyond(sessions: Sessions, horizon: int, values: Vector) -> Vector:
    """What critics say of the request that follows the horizon, discounted to the session's start, [N, m]."""
    beyond = np.zeros((sessions.count, values.shape[1]))
    following = sessions.step == horizon
    beyond[sessions.session[following]] = values[following] * sessions.discount**horizon
    return beyond


def critic_weights(sessions: Sessions, *, normalise: bool = False, horizon: int | None = None) -> tuple[Vector, Vector]:
    """What `sequential_doubly_robust` multiplies q(s_t, a_t) and v(s_t) of every request by, float64[n, m] each: its
    derivatives with respect to the critics' answers, `−γ^t w_t / N` and `γ^t w_{t−1} / N` up to the horizon and 0 after
    it, with the sums of the weights in place of N where `normalise`."""
    some = sessions.within(horizon)
    products = some.products
    bottom = np.concatenate([[some.count], products.total if normalise else np.full(some.longest, some.count)])
    kept, following = sessions.step < some.longest, sessions.step == some.longest
    of_action, of_value = (np.zeros(sessions.feedback.shape) for _ in range(2))
    discounts = some.discounts()
    of_action[kept] = -discounts * (products.of_row / bottom[some.step + 1])[:, None]
    of_value[kept] = discounts * (_before(some) / bottom[some.step])[:, None]
    last = products.final[sessions.session[following]] / bottom[-1]
    of_value[following] = sessions.discount**some.longest * last[:, None]
    return of_action, of_value


def fitted_q_estimate(sessions: Sessions, expected: ArrayLike, options: EstimateOptions = DEFAULTS, *,
                      fit_error: ArrayLike | None = None, refused: str = "",
                      logged: ArrayLike | None = None) -> OffPolicyEstimate:
    """`mean_i v(s_{i,0})` of critics fitted to other rows.

    Args:
        expected: [n, m], v(s_t) of the policy in question, in the units of feedback.
        fit_error: [U', m], how each user of the critics' samples moved the mean (`LinearCritics.fit_error` at the
            sessions' first states), which the interval then counts; None where the critics were not fitted.
        refused: why these critics carry no estimate (`LinearCritics.refused`), "" where they do.
        logged: [n, m], v(s_t) of the logged policy by critics of the same samples, from which the change is then
            measured; None for the log's own mean.
    """
    v, width = np.asarray(expected, np.float64), sessions.feedback.shape[1]
    require(v.shape == sessions.feedback.shape, "expected", v.shape, f"{sessions.feedback.shape}, as feedback")
    first = (sessions.step == 0)[:, None]
    sums = _per_user(sessions, np.column_stack([_per_session(sessions, np.where(first, v, 0.0)),
                                                np.ones(sessions.count)]))
    everybody = np.full(1, float(sessions.count))
    evidence = _evidence("FQE", sessions, Products(np.ones(0), np.ones(sessions.count), everybody, everybody,
                                                   np.zeros(1)), EstimateOptions(min_ess=0.0))
    by_critics = None if logged is None else _per_user(
        sessions, _per_session(sessions, np.where(first, np.asarray(logged, np.float64), 0.0)))
    return conclude(dataclasses.replace(evidence, refused=evidence.refused or refused),
                    *_beside_log(sessions, *with_fit_error(sums, fit_error, width), options, by_critics))


def _beside_log(sessions: Sessions, sums: Vector | UserSums, statistic: Statistic, options: EstimateOptions,
                by_critics: Vector | None = None) -> tuple[UserSums, Statistic, EstimateOptions, Statistic]:
    """What `conclude` takes after its evidence: the sums with those of the log's own mean of a session before them, the
    statistic of the former, the options, and the relative change.

    Args:
        by_critics: [U, m], sums of what critics say of the logged policy, from which the change is then measured, in
            shares of the log's mean.
    """
    width, users = sessions.feedback.shape[1], sessions.users
    value = _per_session(sessions, sessions.discounts() * sessions.feedback)
    own = _per_user(sessions, np.column_stack([value, np.ones(sessions.count)]))
    own = np.hstack([own, own[:, :width] if by_critics is None else by_critics])
    rest = sums.blocks if isinstance(sums, UserSums) else ((slice(0, len(sums)), sums),)
    total = sums.users if isinstance(sums, UserSums) else len(sums)

    def estimate(s: Vector) -> Vector:
        return statistic(s[:, 2 * width + 1:])

    def change(s: Vector) -> Vector:
        logged, number = s[:, :width], s[:, width:width + 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            return (estimate(s) * number - s[:, width + 1:2 * width + 1]) / np.abs(logged)

    return UserSums(total, ((slice(0, users), own), *rest)), estimate, options, change


def _before(sessions: Sessions) -> Vector:
    """w_{t−1} of every request [n]."""
    order = np.lexsort((sessions.step, sessions.session))
    in_order = np.concatenate([[1.0], sessions.products.of_row[order][:-1]])
    before = np.empty(len(order))
    before[order] = np.where(sessions.step[order] == 0, 1.0, in_order)
    return before


def _last(products: Products) -> Products:
    """The weights of whole sessions alone."""
    return dataclasses.replace(products, total=products.total[-1:], squares=products.squares[-1:],
                               capped=products.capped[-1:])


def _per_session(sessions: Sessions, values: Vector) -> Vector:
    """[N, k] sums of [n, k]."""
    return np.stack([np.bincount(sessions.session, column, sessions.count) for column in values.T], 1)


def _per_user(sessions: Sessions, values: Vector) -> Vector:
    """[U, k] sums of [N, k]."""
    sums: Vector = np.stack([np.bincount(sessions.user, column, sessions.users) for column in values.T], 1)
    return sums


def _evidence(estimator: str, sessions: Sessions, products: Products, options: EstimateOptions,
              whole: Sessions | None = None, normalise: bool = True) -> Evidence:
    """What the sessions have, with the weights of each number of requests that counts; `whole` are the sessions that
    the estimate speaks of, where it speaks of more requests than these."""
    sizes, means = products.sizes, products.mean
    worst, users = int(np.argmin(sizes)), len(np.unique(sessions.user))
    mean_ratio = float(means.min() if normalise else means[np.argmax(np.abs(means - 1))])
    reason = refusal(sizes[worst], options, sessions.count, users, mean_ratio, "sessions", normalise)
    if reason and users > 1:
        reason = f"after {worst + 1 if len(sizes) > 1 else sessions.longest} requests, {reason}"
    whole = whole or sessions
    return Evidence(
        estimator=estimator, logged=_per_session(whole, whole.discounts() * whole.feedback).mean(0), size=sizes[worst],
        requests=len(sessions.feedback), users=users, cap=sessions.ratios.cap,
        capped_share=float(products.capped.mean() / sessions.count), mean_ratio=mean_ratio, per="session",
        refused=reason)
