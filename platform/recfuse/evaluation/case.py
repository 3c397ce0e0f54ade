"""A policy in question and the log that it is judged on: what every estimator is given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from recfuse.config import require
from recfuse.evaluation.answers import EstimateOptions
from recfuse.evaluation.config import EvaluateConfig
from recfuse.evaluation.critics import Fold, fit_folds
from recfuse.evaluation.fitted_q import ActionMoments, LinearCritics, Transitions
from recfuse.evaluation.held_out import HeldOut, has_samples, read_transitions
from recfuse.evaluation.sequential import supported_horizon
from recfuse.evaluation.sessions import Sessions
from recfuse.evaluation.slope import CAPS
from recfuse.fusion.inference import FusionActor

ROWS = 65_536  # requests that the policy decides at once
PRODUCT_CAP = 100.0  # of products of ratios where no cap is declared
_DRAWS = 32  # of actions, where their mean and variance have no closed form
RequestArguments = tuple[np.ndarray, np.ndarray, np.ndarray, float, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A policy in question and a log of another one.

    What estimators need beyond the log (densities, sessions, critics) is made when one of them first asks for it, and
    then kept. What stands beside the log, a row a request, is of all of its requests; `counted` says which ones an
    estimator is of.

    Attributes:
        actor: the policy.
        log: held-out requests, n of them, with m behaviours.
        samples: other requests, which critics are fitted to; None where there are none.
        cap: of the importance weights; None for one that the log supports (maths 4.9).
        session_discount: γ of a session's value.
        options: of the interval and of the support that is asked for.
        explore: the policy draws its actions; otherwise it takes their means, which have no density.
    """

    actor: FusionActor
    log: HeldOut
    samples: Transitions | None
    cap: float | None
    session_discount: float
    options: EstimateOptions
    explore: bool = True

    @classmethod
    def of(cls, config: EvaluateConfig, actor: FusionActor, log: HeldOut) -> Case:
        """The case of a config, with the samples that it names, but for a policy of several stages: a critic is of one.

        Raises:
            InvalidFieldError: the samples do not fit the policy.
        """
        samples = (read_transitions(config.samples, actor.vocabulary, config.critic_rows, config.stage)
                   if has_samples(config.samples) and not actor.stages else None)
        return cls(actor=actor, log=log, samples=samples, cap=config.cap, session_discount=config.session_discount,
                   options=config.options, explore=config.explore)

    @property
    def caps(self) -> tuple[float, ...]:
        """The caps that compete, or the one that is declared."""
        return CAPS if self.cap is None else (self.cap,)

    @property
    def product_cap(self) -> float:
        """Of products over all of a session, and of estimators that choose none."""
        return PRODUCT_CAP if self.cap is None else self.cap

    @cached_property
    def users(self) -> pd.Categorical:
        """Whose each request is, so that sums over some requests have the users of all (`stats.intervals`)."""
        codes, names = pd.factorize(np.asarray(self.log.user_id))
        return pd.Categorical.from_codes(codes, categories=pd.RangeIndex(len(names)))

    @cached_property
    def log_prob(self) -> np.ndarray:
        """log π(a_t|s_t) of the logged actions under the policy, float64[n]."""
        return policy_log_prob(self.actor, self.log)

    def counted(self, *, ratios: bool, sessions: bool) -> np.ndarray:
        """bool[n]: the requests that estimators are of.

        Args:
            ratios: of requests whose action was drawn, with a density that is known.
            sessions: of whole sessions, all of whose requests are such.
        """
        some = self.log.known if ratios else np.ones(len(self.log.state), bool)
        return self._of_sessions(some & self.log.whole) if sessions else some

    def _of_sessions(self, some: np.ndarray) -> np.ndarray:
        """bool[n]: the requests of sessions all of whose requests are among some."""
        codes, names = pd.factorize(self.log.session)
        broken = np.bincount(codes, ~some, len(names)) > 0
        return np.asarray(~broken[codes], bool)

    @cached_property
    def weighed(self) -> np.ndarray:
        """bool[n]: requests that the estimators of single requests weigh."""
        return self.counted(ratios=True, sessions=False)

    @cached_property
    def in_sessions(self) -> np.ndarray:
        """bool[n]: requests of `sessions`."""
        return self.counted(ratios=True, sessions=True)

    @property
    def request_arguments(self) -> RequestArguments:
        """What the estimators of `ope` take first: densities [k] under policy and log, feedback [k, m], cap, users; of
        the requests that have a ratio."""
        log = self.log.take(self.weighed)
        return (self.log_prob[self.weighed], log.log_prob, log.feedback, self.product_cap, self.users[self.weighed])

    @cached_property
    def sessions(self) -> Sessions:
        """The log's sessions, as the estimators of `sequential` take them: whole ones, all of whose requests
        have a ratio."""
        rows = self.in_sessions
        return self._sessions(rows, self.log_prob[rows], self.log.log_prob[rows])

    @cached_property
    def followed(self) -> Sessions:
        """Sessions all of whose requests have a ratio, also where the end of the log cuts them."""
        rows = self._of_sessions(self.log.known)
        return self._sessions(rows, self.log_prob[rows], self.log.log_prob[rows])

    @cached_property
    def whole_sessions(self) -> Sessions:
        """Those that are whole, however their actions were chosen, for estimators without ratios."""
        rows = self.counted(ratios=False, sessions=True)
        nothing = np.zeros(int(rows.sum()))  # whoever takes these sessions reads no ratio
        return self._sessions(rows, nothing, nothing)

    def _sessions(self, rows: np.ndarray, log_prob: np.ndarray, behaviour_log_prob: np.ndarray) -> Sessions:
        log = self.log.take(rows)
        return Sessions.of(log_prob, behaviour_log_prob, log.feedback, self.session_discount, self.product_cap,
                           log.session, self.users[rows])

    @cached_property
    def horizon(self) -> int:
        """The number of first requests of a session over which the log supports products of ratios."""
        return (supported_horizon(self.sessions, self.options.of_products)
                if self.explore and self.in_sessions.any() else 0)

    @property
    def session_share(self) -> float:
        """What the first requests with support have of the value of a session in the log, of the behaviour that has
        the least."""
        return float(self.sessions.covered(self.horizon).min()) if self.horizon else 0.0

    @cached_property
    def moments(self) -> ActionMoments:
        """Mean and variance of the policy's actions."""
        return action_moments(self.actor, self.options.seed, explore=self.explore)

    @cached_property
    def folds(self) -> tuple[Fold, ...]:
        """Critics, each with the requests that it may speak of: of users whom its samples lack.

        Raises:
            InvalidFieldError: there are no samples.
        """
        require(self.samples is not None, "samples", None, "samples that critics are fitted to")
        assert self.samples is not None
        return fit_folds(self.samples, self.log, self.moments, self.session_discount)

    @property
    def critics_refused(self) -> str:
        """Why the critics of sessions carry no estimate; "" where they do."""
        return next((fold.session.refused for fold in self.folds if fold.session.refused), "")

    @cached_property
    def request_values(self) -> tuple[np.ndarray, np.ndarray]:
        """q(s_t, a_t) and v(s_t) by the critics of requests, [n, m] each."""
        return self._values(lambda fold: fold.request)

    @cached_property
    def session_values(self) -> tuple[np.ndarray, np.ndarray]:
        """q(s_t, a_t) and v(s_t) by the critics of sessions, [n, m] each."""
        return self._values(lambda fold: fold.session)

    @cached_property
    def logged_values(self) -> tuple[np.ndarray, np.ndarray]:
        """q(s_t, a_t) and v(s_t) of the rest of a session under the logged policy, [n, m] each."""
        q, v = (np.empty(self.log.feedback.shape) for _ in range(2))
        for fold in self.folds:
            state, action = self.log.state[fold.rows], self.log.action[fold.rows]
            q[fold.rows], v[fold.rows] = fold.logged.predict(state, action)
        return q, v

    def fit_error(self, of_value: np.ndarray, of_action: np.ndarray) -> np.ndarray:
        """What the users of the samples moved an estimate by that weighs v(s_t) and q(s_t, a_t) of the critics of
        sessions so, [n, m] each; float64[U', m] (`LinearCritics.fit_error`)."""
        errors = []
        for fold in self.folds:
            some = fold.rows
            errors.append(fold.session.fit_error(
                fold.samples, self.moments, self.log.state[some], of_value=of_value[some],
                action=self.log.action[some], of_action=of_action[some]))
        return np.concatenate(errors)

    def left_out(self) -> list[str]:
        """What of the log is in none of the estimates, or not in those of sessions, in sentences."""
        drawn, known, whole = self.log.drawn, self.log.known, self.log.whole
        cut = len(pd.unique(self.log.session[~whole]))
        undrawn = len(pd.unique(self.log.session[whole & ~self.in_sessions]))
        sentences = []
        if not drawn.all():
            sentences.append(not_drawn(int((~drawn).sum()), len(drawn)))
        if (drawn & ~known).any():
            sentences.append(without_density(int((drawn & ~known).sum()), len(drawn)))
        if undrawn:
            sentences.append(f"{undrawn:,} sessions with such a request are left out of ratios of whole sessions")
        if cut:
            sentences.append(f"{cut:,} sessions that the end of the log cuts are left out of estimates of whole "
                             "sessions")
        return sentences

    def _values(self, critics: Callable[[Fold], LinearCritics]) -> tuple[np.ndarray, np.ndarray]:
        q, v = (np.empty(self.log.feedback.shape) for _ in range(2))
        for fold in self.folds:
            state = self.log.state[fold.rows]
            if len(state):
                q[fold.rows] = critics(fold).predict(state, self.log.action[fold.rows])
                v[fold.rows] = critics(fold).expect(state, self.moments)
        return q, v


def not_drawn(requests: int, of: int) -> str:
    """A sentence on requests that no ratio is known of."""
    return (f"{requests:,} of {of:,} held-out requests are left out of ratios, since their action was not drawn from "
            "the policy that logged it")


def without_density(requests: int, of: int) -> str:
    """A sentence on requests whose logged policy nobody knows."""
    return (f"{requests:,} of {of:,} held-out requests are left out of ratios, since the log has no density of their "
            "action")


def policy_log_prob(actor: FusionActor, log: HeldOut) -> np.ndarray:
    """log π(a_t|s_t) of the logged actions under the policy of each request's stage, with its exploration,
    float64[n]."""
    result = np.empty(len(log.state))
    for own, places in who_decides(actor, log):
        result[places] = own.log_prob(log.state[places].astype(np.float32), log.action[places])
    return result


def who_decides(actor: FusionActor, log: HeldOut) -> Iterator[tuple[FusionActor, np.ndarray]]:
    """(actor, positions of at most ROWS requests) of every stage with a policy of its own, and of all others."""
    others, parts = np.ones(len(log.state), bool), []
    for stage, own in actor.stages.items() if log.stage is not None else ():
        of_stage = np.asarray(log.stage == stage, bool)
        others &= ~of_stage
        parts.append((own, np.flatnonzero(of_stage)))
    for own, places in (*parts, (actor, np.flatnonzero(others))):
        for start in range(0, len(places), ROWS):
            yield own, places[start:start + ROWS]


def action_moments(actor: FusionActor, seed: int = 0, explore: bool = True) -> ActionMoments:
    """Mean and variance of the policy's actions: with its exploration those of the Gaussian, or, where it is squashed
    to a range, of draws; without it no variance."""
    rng = np.random.default_rng([seed, 0xAD])

    def moments(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        decision = actor.act(state, explore=False)
        if not explore:
            return decision.action.astype(np.float64), np.zeros(decision.action.shape)
        if np.array_equal(decision.action, decision.mu):
            return decision.mu.astype(np.float64), decision.sigma.astype(np.float64) ** 2
        draws = np.stack([actor.act(state, explore=True, rng=rng).action.astype(np.float64) for _ in range(_DRAWS)])
        return draws.mean(0), draws.var(0, ddof=1)

    return moments
