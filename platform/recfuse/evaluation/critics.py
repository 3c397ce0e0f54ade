"""Critics of a log's users by samples of others, and what they say of the policy that logged."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from recfuse.evaluation.fitted_q import ActionMoments, LinearCritics, Transitions, fit_critics
from recfuse.evaluation.held_out import HeldOut
from recfuse.evaluation.support import Vector

FOLDS = 2  # of users, where samples and log share some


@dataclass(frozen=True)
class LoggedCritics:
    """The rest of a session under the policy that logged, as critics see it.

    Attributes:
        value: v(s), linear in the state alone, by the same iteration as other critics.
        action_value: q(s, a), the regression of r + γ (1 − d) v(s') on state and action.
    """

    value: LinearCritics
    action_value: LinearCritics

    def predict(self, state: NDArray[np.float32], action: NDArray[np.float32]) -> tuple[Vector, Vector]:
        """q(s, a) and v(s), [n, m] each."""
        width = self.value.coefficients.shape[1]
        if not len(state):
            return np.zeros((0, width)), np.zeros((0, width))
        return self.action_value.predict(state, action), self.value.predict(state, np.zeros((len(state), 0)))


@dataclass(frozen=True)
class Fold:
    """Critics of the policy in question, and of the logged one.

    Attributes:
        samples: that they were fitted to; rows: bool[n], the logged requests that they speak of.
        request: of what a request itself brings; session: of what the rest of a session brings.
        logged: the latter under the logged policy.
    """

    samples: Transitions
    rows: NDArray[np.bool_]
    request: LinearCritics
    session: LinearCritics
    logged: LoggedCritics


def fit_folds(samples: Transitions, log: HeldOut, moments: ActionMoments, discount: float) -> tuple[Fold, ...]:
    """Critics of all samples; where these have users of the log, of each half of the users for the other half.

    References:
        Chernozhukov et al., "Double/Debiased Machine Learning for Treatment and Structural Parameters", 2018.
    """
    of_log = _fold(log.user_id)
    halves = [(samples, np.ones(len(of_log), bool))]
    if samples.user is not None and len(np.intersect1d(_text(samples.user), _text(log.user_id))):
        of_samples = _fold(samples.user)
        if len(np.unique(of_samples)) == FOLDS:
            halves = [(_take(samples, of_samples != fold), of_log == fold) for fold in range(FOLDS)]
    folds = []
    for some, rows in halves:
        # One pass over the samples fits both sets.
        request, session = fit_critics(some, moments, [0.0, discount])
        folds.append(Fold(some, rows, request, session, _fit_logged(some, moments, discount)))
    return tuple(folds)


def _fit_logged(samples: Transitions, moments: ActionMoments, discount: float) -> LoggedCritics:
    of_state = dataclasses.replace(samples, action=np.zeros((len(samples.state), 0), np.float32))
    value, = fit_critics(of_state, _no_action, [discount])
    following = value.predict(samples.next_state, np.zeros((len(samples.state), 0)))
    target = (samples.feedback + discount * (1 - samples.done[:, None]) * following).astype(np.float32)
    if not np.isfinite(target).all():  # the logged policy's own value does not settle
        target = samples.feedback
    action_value, = fit_critics(dataclasses.replace(samples, feedback=target), moments, [0.0])
    return LoggedCritics(value, action_value)


def _no_action(state: NDArray[np.float32]) -> tuple[Vector, Vector]:
    return np.zeros((len(state), 0)), np.zeros((len(state), 0))


def _text(ids: NDArray[Any]) -> NDArray[Any]:
    return np.asarray(pd.unique(np.asarray(ids)), str)


def _fold(ids: NDArray[Any]) -> NDArray[np.int64]:
    """The half of every row's user, the same in samples and log."""
    codes, names = pd.factorize(np.asarray(ids))
    of_user = pd.util.hash_array(np.asarray(names, str).astype(object)) % FOLDS
    return of_user.astype(np.int64)[codes]


def _take(samples: Transitions, mask: NDArray[np.bool_]) -> Transitions:
    columns: dict[str, Any] = {field.name: getattr(samples, field.name) for field in dataclasses.fields(samples)}
    return dataclasses.replace(samples, **{name: column[mask] for name, column in columns.items()
                                           if column is not None})
