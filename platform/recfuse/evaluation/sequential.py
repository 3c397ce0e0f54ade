"""Off-policy evaluation of whole sessions from logs: what a session would have brought, later states included.

The weight of a session's t-th request is the capped product of the ratios so far,
`w_t = min(cap, Π_{k≤t} π(a_k|s_k) / π_b(a_k|s_k))`, and the value of a session is `Σ_t γ_j^t r_{t,j}`. Products of
ratios lose their support quickly: `supported_horizon` says after how many requests, and the estimators take a horizon,
so that they speak of the first requests of a session.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from recfuse.config import require
from recfuse.evaluation.support import (
    DEFAULTS,
    MIN_ESS,
    MIN_MEAN_PRODUCT,
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


@dataclass(frozen=True)
class Sessions:
    """Logged sessions, as the estimators of this module take them.

    Attributes:
        ratios: of the n requests.
        feedback: float64[n, m].
        discount: float64[m], γ per behaviour, in [0, 1].
        session: int64[n], 0..N − 1; step: int64[n], the request's place within its session, from 0.
        user: int64[N], 0..U − 1, of each session.
    """

    ratios: Ratios
    feedback: Vector
    discount: Vector
    session: NDArray[np.int64]
    step: NDArray[np.int64]
    user: NDArray[np.int64]

    @classmethod
    def of(cls, log_prob: ArrayLike, behaviour_log_prob: ArrayLike, feedback: ArrayLike, discount: ArrayLike,
           cap: float, session_id: ArrayLike, user_id: ArrayLike) -> Sessions:
        """Sessions from rows in the order of time; the rows of different sessions may be mixed.

        Args:
            log_prob, behaviour_log_prob, feedback, user_id: as of `recfuse.evaluation.ope.ncis`.
            discount: one number, or [m].
            cap: of the products of ratios.
            session_id: [n]; a session belongs to the user of its first row.

        Raises:
            InvalidFieldError: a shape that does not fit or a value that is not allowed.
        """
        ratios = Ratios.of(log_prob, behaviour_log_prob, cap)
        rows = len(ratios.log)
        values = feedback_array(feedback, rows)
        gamma = np.broadcast_to(np.asarray(discount, np.float64), values.shape[1:]).copy()
        require(bool(((gamma >= 0) & (gamma <= 1)).all()), "discount", gamma.tolist(), "numbers in [0, 1]")
        codes = []
        for field, ids in (("session_id", session_id), ("user_id", user_id)):
            code, _ = pd.factorize(np.asarray(ids))
            require(len(code) == rows, field, len(code), f"{rows} ids, one a row")
            require(bool((code >= 0).all()), field, None, "ids other than null")
            codes.append(code.astype(np.int64))
        session, user = codes
        order = np.argsort(session, kind="stable")
        starts = np.searchsorted(session[order], np.arange(session.max() + 1))
        step = np.empty(rows, np.int64)
        step[order] = np.arange(rows) - starts[session[order]]
        return cls(ratios, values, gamma, session, step, user[order][starts])

    @property
    def count(self) -> int:
        """N"""
        return len(self.user)

    @property
    def longest(self) -> int:
        """Requests of the longest session."""
        return int(self.step.max()) + 1

    def within(self, horizon: int | None) -> Sessions:
        """The first requests of every session; all where None."""
        if horizon is None or horizon >= self.longest:
            return self
        require(horizon >= 1, "horizon", horizon, "an integer ≥ 1")
        kept = self.step < horizon
        return dataclasses.replace(self, ratios=Ratios(self.ratios.log[kept], self.ratios.cap),
                                   feedback=self.feedback[kept], session=self.session[kept], step=self.step[kept])

    def weights(self) -> tuple[Vector, Vector]:
        """w_t of every request [n], and of every session after each number of requests [T, N]; what has ended keeps its
        last weight."""
        after, of_row = np.zeros((self.longest, self.count)), np.empty(len(self.step))
        running = np.zeros(self.count)
        for step in range(self.longest):
            rows = np.flatnonzero(self.step == step)
            running[self.session[rows]] += self.ratios.log[rows]
            with np.errstate(over="ignore"):
                after[step] = np.exp(np.minimum(running, self.ratios.limit))
            of_row[rows] = after[step, self.session[rows]]
        return of_row, after

    def discounts(self) -> Vector:
        """γ_j^t, [n, m]."""
        powers: Vector = self.discount[None] ** self.step[:, None]
        return powers


def supported_horizon(sessions: Sessions, min_ess: float = MIN_ESS) -> int:
    """The largest number of first requests at each of which the effective number of sessions is at least `min_ess` and
    the weights' mean at least half way from MIN_MEAN_PRODUCT to 1."""
    _, after = sessions.weights()
    for step, weight in enumerate(after):
        if effective_sample_size(weight) < min_ess or weight.mean() < (1 + MIN_MEAN_PRODUCT) / 2:
            return step
    return len(after)


def trajectory_importance_sampling(sessions: Sessions, options: EstimateOptions = DEFAULTS, *, normalise: bool = False,
                                   horizon: int | None = None) -> OffPolicyEstimate:
    """`mean_i(w_i Σ_t γ^t r_t)` with the weight of the whole session, over `mean_i w_i` where `normalise`.

    References:
        Precup, Sutton & Singh, "Eligibility Traces for Off-Policy Policy Evaluation", ICML 2000.
    """
    some = sessions.within(horizon)
    _, after = some.weights()
    weight, width = after[-1], some.feedback.shape[1]
    value = _per_session(some, some.discounts() * some.feedback)
    bottom = weight if normalise else np.ones(some.count)
    sums = _per_user(some, np.column_stack([weight[:, None] * value, bottom]))
    return conclude(_evidence("SN-IS (session)" if normalise else "IS (session)", some, after[-1:], options.min_ess),
                    sums, lambda s: s[:, :width] / s[:, width:], options)


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
    weight, after = some.weights()
    discounts = some.discounts()
    corrected = discounts * weight[:, None] * (some.feedback - q[kept])
    led = discounts * _before(some, after)[:, None] * v[kept]
    beyond = _beyond(sessions, some.longest, v) * after[-1][:, None]
    names = ("PDIS", "SN-PDIS") if predicted is None else ("DR (session)", "SN-DR (session)")
    evidence = _evidence(names[normalise], some, after, options.min_ess, whole=None if predicted is None else sessions)
    sums, statistic = (_stepwise if normalise else _summed)(some, after, corrected, led, beyond)
    return conclude(evidence, *with_fit_error(sums, fit_error, q.shape[1], statistic), options)


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


def _summed(sessions: Sessions, after: Vector, corrected: Vector, led: Vector,
            beyond: Vector) -> tuple[Vector, None]:
    """Sums per user, of values and of sessions; arguments as of `_stepwise`."""
    value = _per_session(sessions, corrected + led) + beyond
    return _per_user(sessions, np.column_stack([value, np.ones(sessions.count)])), None


def _stepwise(sessions: Sessions, after: Vector, corrected: Vector, led: Vector,
              beyond: Vector) -> tuple[Vector, Callable[[Vector], Vector]]:
    """Sums per user, and the estimate from sums, where the weights of every step sum to one over the sessions.

    Args:
        after: [T, N], the sessions' weights after each number of requests.
        corrected: [n, m], weighted errors of the critics, over Σ w_t; led: [n, m], their weighted values, over
            Σ w_{t−1}; beyond: [N, m], the values of what follows the horizon, over Σ w_{T−1}.
    """
    steps, width = len(after), corrected.shape[1]
    weights = np.concatenate([np.ones((1, sessions.count)), after]).T  # w_{−1} before them
    # Columns of a user: Σ corrected [T·m], Σ led [T·m], Σ beyond [m], Σ w_t [1 + T].
    sums = np.concatenate([_per_step(sessions, corrected), _per_step(sessions, led), _per_user(sessions, beyond),
                           _per_user(sessions, weights)], 1)
    first, last = steps * width, (2 * steps + 1) * width

    def statistic(s: Vector) -> Vector:
        top = s[:, :first].reshape(-1, steps, width) / s[:, last + 1:, None]
        total: Vector = top.sum(1) + (s[:, first:last].reshape(-1, steps + 1, width) / s[:, last:, None]).sum(1)
        return total

    return sums, statistic


def critic_weights(sessions: Sessions, *, normalise: bool = False, horizon: int | None = None) -> tuple[Vector, Vector]:
    """What `sequential_doubly_robust` multiplies q(s_t, a_t) and v(s_t) of every request by, float64[n, m] each: its
    derivatives with respect to the critics' answers, `−γ^t w_t / N` and `γ^t w_{t−1} / N` up to the horizon and 0 after
    it, with the sums of the weights in place of N where `normalise`."""
    some = sessions.within(horizon)
    weight, after = some.weights()
    bottom = np.concatenate([[some.count], after.sum(1) if normalise else np.full(len(after), some.count)])
    kept, following = sessions.step < some.longest, sessions.step == some.longest
    of_action, of_value = (np.zeros(sessions.feedback.shape) for _ in range(2))
    discounts = some.discounts()
    of_action[kept] = -discounts * (weight / bottom[some.step + 1])[:, None]
    of_value[kept] = discounts * (_before(some, after) / bottom[some.step])[:, None]
    last = after[-1, sessions.session[following]] / bottom[-1]
    of_value[following] = sessions.discount**some.longest * last[:, None]
    return of_action, of_value


def fitted_q_estimate(sessions: Sessions, expected: ArrayLike, options: EstimateOptions = DEFAULTS, *,
                      fit_error: ArrayLike | None = None, refused: str = "") -> OffPolicyEstimate:
    """`mean_i v(s_{i,0})` of critics fitted to other rows.

    Args:
        expected: [n, m], v(s_t) of the policy in question, in the units of feedback.
        fit_error: [U', m], how each user of the critics' samples moved the mean (`LinearCritics.fit_error` at the
            sessions' first states), which the interval then counts; None where the critics were not fitted.
        refused: why these critics carry no estimate (`LinearCritics.refused`), "" where they do.
    """
    v, width = np.asarray(expected, np.float64), sessions.feedback.shape[1]
    require(v.shape == sessions.feedback.shape, "expected", v.shape, f"{sessions.feedback.shape}, as feedback")
    first = sessions.step == 0
    sums = _per_user(sessions, np.column_stack([_per_session(sessions, np.where(first[:, None], v, 0.0)),
                                                np.ones(sessions.count)]))
    evidence = _evidence("FQE", sessions, np.ones((1, sessions.count)), 0.0)
    return conclude(dataclasses.replace(evidence, refused=evidence.refused or refused),
                    *with_fit_error(sums, fit_error, width), options)


def _before(sessions: Sessions, after: Vector) -> Vector:
    """w_{t−1} of every request [n], of the sessions' weights `after` each number of requests."""
    before, later = np.ones(len(sessions.step)), sessions.step > 0
    before[later] = after[sessions.step[later] - 1, sessions.session[later]]
    return before


def _per_session(sessions: Sessions, values: Vector) -> Vector:
    """[N, k] sums of [n, k]."""
    return np.stack([np.bincount(sessions.session, column, sessions.count) for column in values.T], 1)


def _per_user(sessions: Sessions, values: Vector) -> Vector:
    """[U, k] sums of [N, k]."""
    sums: Vector = np.stack([np.bincount(sessions.user, column) for column in values.T], 1).astype(np.float64)
    return sums


def _per_step(sessions: Sessions, values: Vector) -> Vector:
    """[U, T·m] sums of [n, m] per user and step."""
    steps, users = sessions.longest, int(sessions.user.max()) + 1
    place = sessions.user[sessions.session] * steps + sessions.step
    sums: Vector = np.stack([np.bincount(place, column, users * steps) for column in values.T], 1).astype(np.float64)
    return sums.reshape(users, -1)


def _evidence(estimator: str, sessions: Sessions, after: Vector, least: float,
              whole: Sessions | None = None) -> Evidence:
    """What the sessions have, whose weights after each number of requests are `after` [T, N]; `whole` are the sessions
    that the estimate speaks of, where it speaks of more requests than these."""
    sizes, means = [effective_sample_size(weight) for weight in after], after.mean(1)
    worst, users, mean_ratio = int(np.argmin(sizes)), int(sessions.user.max()) + 1, float(means.min())
    reason = refusal(sizes[worst], least, sessions.count, users, mean_ratio, "sessions", MIN_MEAN_PRODUCT)
    if reason and users > 1:
        reason = f"after {worst + 1 if len(after) > 1 else sessions.longest} requests, {reason}"
    whole = whole or sessions
    return Evidence(
        estimator=estimator, logged=_per_session(whole, whole.discounts() * whole.feedback).mean(0), size=sizes[worst],
        requests=len(sessions.feedback), users=users, capped_share=float((after >= sessions.ratios.cap).mean()),
        mean_ratio=mean_ratio, per="session", refused=reason)
