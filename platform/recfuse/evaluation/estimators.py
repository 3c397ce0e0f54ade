"""The estimators of the job `evaluate`, in the order of its tables.

A user extends the list where it is handed over: `evaluate(config, estimators=(*ESTIMATORS, Estimator(name=…, …)))`.
Notation of the formulas: ρ_t = min(cap, π(a_t|s_t) / π_b(a_t|s_t)); w_t is the capped product of a session's ratios up
to its t-th request; q and v are critics; n requests, N sessions; H first requests of a session have support.
"""

from __future__ import annotations

import numpy as np

from recfuse.evaluation.case import Case
from recfuse.evaluation.estimator import (
    CHANGED_REQUEST,
    DENSITIES,
    SAMPLES,
    SESSIONS,
    SETTLED_CRITICS,
    WHOLE_SESSION,
    Estimator,
)
from recfuse.evaluation.ope import direct_method, doubly_robust, importance_sampling, ncis
from recfuse.evaluation.sequential import (
    critic_weights,
    fitted_q_estimate,
    per_decision,
    sequential_doubly_robust,
    trajectory_importance_sampling,
)
from recfuse.evaluation.support import OffPolicyEstimate


def _doubly_robust(case: Case, normalise: bool) -> OffPolicyEstimate:
    predicted, expected = (values[case.weighed] for values in case.request_values)
    return doubly_robust(*case.request_arguments, predicted, expected, case.options, normalise=normalise)


def _direct_method(case: Case) -> OffPolicyEstimate:
    _, expected = case.request_values
    return direct_method(
        expected, case.log.feedback, case.log.user_id, case.options,
        fit_error=case.request_critics.fit_error(case.critic_samples, case.moments, case.log.state))


def _first_requests(case: Case) -> int:
    """Of a session; products of ratios go over at least one."""
    return max(case.horizon, 1)


def _session_doubly_robust(case: Case, normalise: bool) -> OffPolicyEstimate:
    horizon = _first_requests(case)
    predicted, expected = (values[case.in_sessions] for values in case.session_values)
    log = case.log.take(case.in_sessions)
    of_action, of_value = critic_weights(case.sessions, normalise=normalise, horizon=horizon)
    fit_error = case.session_critics.fit_error(case.critic_samples, case.moments, log.state, of_value=of_value,
                                               action=log.action, of_action=of_action)
    return sequential_doubly_robust(case.sessions, predicted, expected, case.options, normalise=normalise,
                                    horizon=horizon, fit_error=fit_error)


def _fitted_q(case: Case) -> OffPolicyEstimate:
    critics, sessions = case.session_critics, case.whole_sessions
    if critics.refused:
        return fitted_q_estimate(sessions, np.zeros_like(sessions.feedback), case.options, refused=critics.refused)
    rows = case.counted(ratios=False, sessions=True)
    first = case.log.state[rows][sessions.step == 0]
    return fitted_q_estimate(sessions, case.session_values[1][rows], case.options,
                             fit_error=critics.fit_error(case.critic_samples, case.moments, first))


OF_REQUESTS = (
    Estimator(
        name="NCIS", question=CHANGED_REQUEST, formula="Σ ρ_t r_t / Σ ρ_t", requirements=(DENSITIES,),
        estimate=lambda case: ncis(*case.request_arguments, case.options)),
    Estimator(
        name="IS", question=CHANGED_REQUEST, formula="Σ ρ_t r_t / n", requirements=(DENSITIES,),
        estimate=lambda case: importance_sampling(*case.request_arguments, case.options)),
    Estimator(
        name="DR", question=CHANGED_REQUEST, formula="Σ v(s_t) / n + Σ ρ_t (r_t − q(s_t, a_t)) / n",
        requirements=(DENSITIES, SAMPLES), estimate=lambda case: _doubly_robust(case, normalise=False)),
    Estimator(
        name="SN-DR", question=CHANGED_REQUEST, formula="Σ v(s_t) / n + Σ ρ_t (r_t − q(s_t, a_t)) / Σ ρ_t",
        requirements=(DENSITIES, SAMPLES), estimate=lambda case: _doubly_robust(case, normalise=True)),
    Estimator(
        name="DM", question=CHANGED_REQUEST, formula="Σ v(s_t) / n", requirements=(SAMPLES,), estimate=_direct_method),
)
OF_SESSIONS = (
    Estimator(
        name="SN-IS (session)", question=WHOLE_SESSION, formula="Σ_i w_{i,H−1} Σ_{t<H} γ^t r_{i,t} / Σ_i w_{i,H−1}",
        requirements=(DENSITIES, SESSIONS),
        estimate=lambda case: trajectory_importance_sampling(
            case.sessions, case.options, normalise=True, horizon=_first_requests(case))),
    Estimator(
        name="PDIS", question=WHOLE_SESSION, formula="Σ_i Σ_{t<H} γ^t w_{i,t} r_{i,t} / N",
        requirements=(DENSITIES, SESSIONS),
        estimate=lambda case: per_decision(case.sessions, case.options, horizon=_first_requests(case))),
    Estimator(
        name="SN-PDIS", question=WHOLE_SESSION, formula="Σ_{t<H} γ^t Σ_i w_{i,t} r_{i,t} / Σ_i w_{i,t}",
        requirements=(DENSITIES, SESSIONS),
        estimate=lambda case: per_decision(case.sessions, case.options, normalise=True,
                                           horizon=_first_requests(case))),
    Estimator(
        name="DR (session)", question=WHOLE_SESSION,
        formula="Σ_i [Σ_{t<H} γ^t (w_{i,t} (r_{i,t} − q_{i,t}) + w_{i,t−1} v_{i,t}) + γ^H w_{i,H−1} v_{i,H}] / N",
        requirements=(DENSITIES, SESSIONS, SAMPLES, SETTLED_CRITICS),
        estimate=lambda case: _session_doubly_robust(case, normalise=False)),
    Estimator(
        name="SN-DR (session)", question=WHOLE_SESSION,
        formula="as DR (session), each weight of step t over Σ_i of the weights of step t instead of N",
        requirements=(DENSITIES, SESSIONS, SAMPLES, SETTLED_CRITICS),
        estimate=lambda case: _session_doubly_robust(case, normalise=True)),
    Estimator(
        name="FQE", question=WHOLE_SESSION, formula="Σ_i v(s_{i,0}) / N", requirements=(SESSIONS, SAMPLES),
        estimate=_fitted_q),
)
ESTIMATORS: tuple[Estimator, ...] = (*OF_REQUESTS, *OF_SESSIONS)
