"""The estimators of the job `evaluate`, in the order of its tables.

A user extends the list where it is handed over: `evaluate(config, estimators=(*ESTIMATORS, Estimator(name=…, …)))`.
Notation of the formulas: ρ_t = min(cap, π(a_t|s_t) / π_b(a_t|s_t)); w_t is the capped product of a session's ratios up
to its t-th request, or of the last k of them; q and v are critics; n requests, N sessions; H first requests of a
session have support. Where no cap is declared it is one that the log supports; k is SLOPE's (maths 4.9).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd

from recfuse.evaluation.answers import OffPolicyEstimate, Part
from recfuse.evaluation.case import Case
from recfuse.evaluation.estimator import (
    CHANGED_REQUEST,
    DENSITIES,
    FIRST_SUPPORT,
    FOLLOWED_REQUEST,
    SAMPLES,
    SESSIONS,
    SETTLED_CRITICS,
    WHOLE_SESSION,
    WHOLE_SUPPORT,
    Estimator,
)
from recfuse.evaluation.ope import direct_method, ratio_part, robust_part
from recfuse.evaluation.return_to_go import failure
from recfuse.evaluation.sequential import (
    critic_weights,
    fitted_q_estimate,
    per_decision,
    sequential_doubly_robust,
)
from recfuse.evaluation.sessions import Sessions
from recfuse.evaluation.slope import choose_cap, choose_window, window_logs
from recfuse.evaluation.support import Ratios, Vector

# An estimate of which critics carry more than the rest only ranks policies.
MIN_FEEDBACK_SHARE = 0.7


def _of_requests(case: Case, normalise: bool) -> OffPolicyEstimate:
    log = case.log.take(case.weighed)
    values, ones = np.asarray(log.feedback, np.float64), np.ones(len(log.state))

    def part(ratios: Ratios) -> Part:
        return ratio_part(ratios, values, ones, case.users[case.weighed], case.options, normalise=normalise)

    return choose_cap(part, _log_ratio(case), case.caps, case.options)


def _doubly_robust(case: Case, normalise: bool) -> OffPolicyEstimate:
    values = np.asarray(case.log.feedback[case.weighed], np.float64)
    predicted, expected = (of_all[case.weighed] for of_all in case.request_values)

    def part(ratios: Ratios) -> Part:
        return robust_part(ratios, values, case.users[case.weighed], predicted, expected, case.options,
                           normalise=normalise)

    return _with_share(choose_cap(part, _log_ratio(case), case.caps, case.options), 1.0)


def _log_ratio(case: Case) -> Vector:
    return Ratios.of(case.log_prob[case.weighed], case.log.log_prob[case.weighed], case.product_cap).log


def _direct_method(case: Case) -> OffPolicyEstimate:
    predicted, expected = case.request_values
    answer = direct_method(expected, case.log.feedback, case.users, case.options, predicted=predicted)
    return _with_share(answer, 0.0).ranking(
        "ranks policies, no more: critics alone carry it, and how wrong they are nobody knows")


def _windowed_requests(case: Case) -> OffPolicyEstimate:
    return _windowed(case, case.followed, case.followed.feedback, np.ones(len(case.followed.step)),
                     "windowed NCIS", "request")


def _ratio_of_rates(case: Case) -> OffPolicyEstimate:
    sessions = case.sessions
    return _windowed(case, sessions, sessions.discounts() * sessions.feedback, sessions.last.astype(np.float64),
                     "ratio of rates", "session")


def _windowed(case: Case, sessions: Sessions, top: Vector, bottom: Vector, name: str, per: str) -> OffPolicyEstimate:
    """`Σ w_t top_t / Σ w_t bottom_t` of the windows and caps that SLOPE takes."""
    users = pd.Categorical.from_codes(sessions.user[sessions.session], categories=case.users.categories)

    def part(ratios: Ratios, window: int) -> Part:
        options = case.options if window == 1 else case.options.of_products
        return ratio_part(ratios, top, bottom, users, options, name=name, per=per, window=window)

    return choose_window(part, list(window_logs(sessions.ratios.log, sessions.session, sessions.step)), case.caps,
                         case.options)


def _session_doubly_robust(case: Case, normalise: bool) -> OffPolicyEstimate:
    rows = case.in_sessions
    predicted, expected = (values[rows] for values in case.session_values)

    def answer(fit_error: Vector | None) -> OffPolicyEstimate:
        return _by_critics(case, sequential_doubly_robust(
            case.sessions, predicted, expected, case.options.of_products, normalise=normalise, horizon=case.horizon,
            fit_error=fit_error), case.session_share)

    found = answer(None)
    if found.refused or found.ranks_only:
        # Nobody asks for the error of the fit, which takes long; without it draws cannot be compared with others.
        return dataclasses.replace(found, drawn=None)
    of_action, of_value = (np.zeros(case.log.feedback.shape) for _ in range(2))
    of_action[rows], of_value[rows] = critic_weights(case.sessions, normalise=normalise, horizon=case.horizon)
    return answer(case.fit_error(of_value, of_action))


def _fitted_q(case: Case) -> OffPolicyEstimate:
    sessions, refused = case.whole_sessions, case.critics_refused
    if refused:
        return fitted_q_estimate(sessions, np.zeros_like(sessions.feedback), case.options, refused=refused)
    rows = case.counted(ratios=False, sessions=True)
    of_value = np.zeros(case.log.feedback.shape)
    of_value[np.flatnonzero(rows)[sessions.step == 0]] = 1 / sessions.count
    answer = fitted_q_estimate(sessions, case.session_values[1][rows], case.options, logged=case.logged_values[1][rows],
                               fit_error=case.fit_error(of_value, np.zeros_like(of_value)))
    return _by_critics(case, answer, 0.0)


def _by_critics(case: Case, answer: OffPolicyEstimate, share: float) -> OffPolicyEstimate:
    """An answer about sessions, to which logged feedback brings the share: without interval where critics bring most of
    it, or fail their test."""
    if answer.refused:
        return answer
    answer, reasons = _with_share(answer, share), []
    if share < MIN_FEEDBACK_SHARE:
        reasons.append(f"ranks policies, no more: logged feedback carries {share:.0%} of its value and critics the "
                       "rest; it assumes the state is Markov")
    if failed := failure(case):
        reasons.append(failed)
    return answer.ranking(*reasons) if reasons else answer


def _with_share(answer: OffPolicyEstimate, share: float) -> OffPolicyEstimate:
    return dataclasses.replace(answer, feedback_share=share)


RATIO_OF_RATES = Estimator(
    name="ratio of rates", question=WHOLE_SESSION,
    formula="Σ w_t γ^t r_t / Σ w_t last_t, w_t of the last k ratios", requirements=(DENSITIES, SESSIONS),
    estimate=_ratio_of_rates)
OF_REQUESTS = (
    Estimator(
        name="NCIS", question=CHANGED_REQUEST, formula="Σ ρ_t r_t / Σ ρ_t", requirements=(DENSITIES,),
        estimate=lambda case: _of_requests(case, normalise=True)),
    Estimator(
        name="IS", question=CHANGED_REQUEST, formula="Σ ρ_t r_t / n", requirements=(DENSITIES,),
        estimate=lambda case: _of_requests(case, normalise=False)),
    Estimator(
        name="DR", question=CHANGED_REQUEST, formula="Σ v(s_t) / n + Σ ρ_t (r_t − q(s_t, a_t)) / n",
        requirements=(DENSITIES, SAMPLES), estimate=lambda case: _doubly_robust(case, normalise=False)),
    Estimator(
        name="SN-DR", question=CHANGED_REQUEST, formula="Σ v(s_t) / n + Σ ρ_t (r_t − q(s_t, a_t)) / Σ ρ_t",
        requirements=(DENSITIES, SAMPLES), estimate=lambda case: _doubly_robust(case, normalise=True)),
    Estimator(
        name="DM", question=CHANGED_REQUEST, formula="Σ v(s_t) / n", requirements=(SAMPLES,), estimate=_direct_method),
)
OF_FOLLOWED = (
    Estimator(
        name="windowed NCIS", question=FOLLOWED_REQUEST, formula="Σ w_t r_t / Σ w_t, w_t of the last k ratios",
        requirements=(DENSITIES,), estimate=_windowed_requests),
)
OF_SESSIONS = (
    RATIO_OF_RATES,
    Estimator(
        name="PDIS", question=WHOLE_SESSION, formula="Σ_i Σ_t γ^t w_{i,t} r_{i,t} / N",
        requirements=(DENSITIES, SESSIONS, WHOLE_SUPPORT),
        estimate=lambda case: per_decision(case.sessions, case.options.of_products)),
    Estimator(
        name="SN-PDIS", question=WHOLE_SESSION, formula="Σ_t γ^t Σ_i w_{i,t} r_{i,t} / Σ_i w_{i,t}",
        requirements=(DENSITIES, SESSIONS, WHOLE_SUPPORT),
        estimate=lambda case: per_decision(case.sessions, case.options.of_products, normalise=True)),
    Estimator(
        name="DR (session)", question=WHOLE_SESSION,
        formula="Σ_i [Σ_{t<H} γ^t (w_{i,t} (r_{i,t} − q_{i,t}) + w_{i,t−1} v_{i,t}) + γ^H w_{i,H−1} v_{i,H}] / N",
        requirements=(DENSITIES, SESSIONS, SAMPLES, SETTLED_CRITICS, FIRST_SUPPORT),
        estimate=lambda case: _session_doubly_robust(case, normalise=False)),
    Estimator(
        name="SN-DR (session)", question=WHOLE_SESSION,
        formula="as DR (session), each weight of step t over Σ_i of the weights of step t instead of N",
        requirements=(DENSITIES, SESSIONS, SAMPLES, SETTLED_CRITICS, FIRST_SUPPORT),
        estimate=lambda case: _session_doubly_robust(case, normalise=True)),
    Estimator(
        name="FQE", question=WHOLE_SESSION, formula="Σ_i v(s_{i,0}) / N", requirements=(SESSIONS, SAMPLES),
        estimate=_fitted_q),
)
ESTIMATORS: tuple[Estimator, ...] = (*OF_REQUESTS, *OF_FOLLOWED, *OF_SESSIONS)
