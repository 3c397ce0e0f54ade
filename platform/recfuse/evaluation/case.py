"""A policy in question and the log that it is judged on: what every estimator is given."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from recfuse.config import require
from recfuse.evaluation.config import EvaluateConfig
from recfuse.evaluation.fitted_q import ActionMoments, LinearCritics, Transitions, fit_critics
from recfuse.evaluation.held_out import HeldOut, read_transitions
from recfuse.evaluation.sequential import Sessions, supported_horizon
from recfuse.evaluation.support import EstimateOptions
from recfuse.fusion.inference import FusionActor

ROWS = 65_536  # requests that the policy decides at once
_DRAWS = 32  # of actions, where their mean and variance have no closed form
RequestArguments = tuple[np.ndarray, np.ndarray, np.ndarray, float, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A policy in question and a log of another one.

    What estimators need beyond the log (densities, sessions, critics) is made when one of them first asks for it, and
    then kept.

    Attributes:
        actor: the policy, with its exploration.
        log: held-out requests, n of them, with m behaviours.
        samples: other requests, which critics are fitted to; None where there are none.
        cap: of the importance weights.
        session_discount: γ of a session's value.
        options: of the interval and of the support that is asked for.
    """

    actor: FusionActor
    log: HeldOut
    samples: Transitions | None
    cap: float
    session_discount: float
    options: EstimateOptions

    @classmethod
    def of(cls, config: EvaluateConfig, actor: FusionActor, log: HeldOut) -> Case:
        """The case of a config, with the samples that it names.

        Raises:
            InvalidFieldError: the samples do not fit the policy.
        """
        samples = read_transitions(config.samples, actor.vocabulary, config.critic_rows)
        return cls(actor=actor, log=log, samples=samples, cap=config.cap, session_discount=config.session_discount,
                   options=config.options)

    @cached_property
    def log_prob(self) -> np.ndarray:
        """log π(a_t|s_t) of the logged actions under the policy, float64[n]."""
        return policy_log_prob(self.actor, self.log)

    @property
    def request_arguments(self) -> RequestArguments:
        """What the estimators of `ope` take first: densities [n] under policy and log, feedback [n, m], cap, users."""
        return self.log_prob, self.log.log_prob, self.log.feedback, self.cap, self.log.user_id

    @cached_property
    def sessions(self) -> Sessions:
        """The log's sessions, as the estimators of `sequential` take them."""
        return Sessions.of(self.log_prob, self.log.log_prob, self.log.feedback, self.session_discount, self.cap,
                           self.log.session, self.log.user_id)

    @cached_property
    def horizon(self) -> int:
        """The number of first requests of a session over which the log supports products of ratios."""
        return supported_horizon(self.sessions, self.options.min_ess)

    @cached_property
    def moments(self) -> ActionMoments:
        """Mean and variance of the policy's actions."""
        return action_moments(self.actor, self.options.seed)

    @cached_property
    def _critics(self) -> tuple[LinearCritics, LinearCritics]:
        # One pass over the samples fits both sets.
        request, session = fit_critics(self.critic_samples, self.moments, [0.0, self.session_discount])
        return request, session

    @property
    def critic_samples(self) -> Transitions:
        """The samples.

        Raises:
            InvalidFieldError: there are none.
        """
        require(self.samples is not None, "samples", None, "samples that critics are fitted to")
        assert self.samples is not None
        return self.samples

    @property
    def request_critics(self) -> LinearCritics:
        """Critics of what a request itself brings."""
        return self._critics[0]

    @property
    def session_critics(self) -> LinearCritics:
        """Critics of what the rest of a session brings."""
        return self._critics[1]

    @cached_property
    def request_values(self) -> tuple[np.ndarray, np.ndarray]:
        """q(s_t, a_t) and v(s_t) by the critics of requests, [n, m] each."""
        return self._values(self.request_critics)

    @cached_property
    def session_values(self) -> tuple[np.ndarray, np.ndarray]:
        """q(s_t, a_t) and v(s_t) by the critics of sessions, [n, m] each."""
        return self._values(self.session_critics)

    def _values(self, critics: LinearCritics) -> tuple[np.ndarray, np.ndarray]:
        return critics.predict(self.log.state, self.log.action), critics.expect(self.log.state, self.moments)


def policy_log_prob(actor: FusionActor, log: HeldOut) -> np.ndarray:
    """log π(a_t|s_t) of the logged actions under the policy with its exploration, float64[n]."""
    parts = []
    for start in range(0, len(log.state), ROWS):
        part = slice(start, start + ROWS)
        parts.append(actor.log_prob(log.state[part].astype(np.float32), log.action[part]))
    return np.concatenate(parts)


def action_moments(actor: FusionActor, seed: int = 0) -> ActionMoments:
    """Mean and variance of the policy's actions with its exploration: those of the Gaussian, or, where it is squashed
    to a range, of draws."""
    rng = np.random.default_rng([seed, 0xAD])

    def moments(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        decision = actor.act(state, explore=False)
        if np.array_equal(decision.action, decision.mu):
            return decision.mu.astype(np.float64), decision.sigma.astype(np.float64) ** 2
        draws = np.stack([actor.act(state, explore=True, rng=rng).action.astype(np.float64) for _ in range(_DRAWS)])
        return draws.mean(0), draws.var(0, ddof=1)

    return moments
