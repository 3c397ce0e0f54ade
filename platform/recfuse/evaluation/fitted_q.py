"""Fitted Q evaluation: critics q_j(s, a) of a policy in question, from samples of another one.

A critic is linear in [1, s], [1, s] ⊗ a and the products of two entries of a, all standardised by the moments of the
samples. Its expectation over a policy's actions follows from their mean and variance, without draws. Each iteration
regresses `r + γ (1 − d) E_{a'∼π} q(s', a')` anew, which for linear critics is one product of matrices of the terms'
size: hundreds of iterations cost nothing (Le, Voloshin & Yue, "Batch Policy Learning under Constraints", ICML 2019).

Fit it on training samples, never on the rows that are evaluated. How far another draw of the users of these samples
would have moved an estimate is known in closed form too (`fit_error`); how wrong linear critics are is not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recfuse.config import require
from recfuse.evaluation.support import Vector
from recfuse.stats.intervals import sum_per_user

# Of states [n, S]: mean and variance [n, M] of the actions that the policy in question takes there, entry by entry
# independent.
ActionMoments = Callable[[NDArray[np.float32]], tuple[Vector, Vector]]
ITERATIONS, TOLERANCE = 1_000, 1e-6
_CHUNK = 16_384


@dataclass(frozen=True)
class Transitions:
    """Samples of the logged policy: state, next_state [n, S], action [n, M], feedback [n, m], done [n]; user [n] says
    whose, for `fit_error`."""

    state: NDArray[np.float32]
    action: NDArray[np.float32]
    feedback: NDArray[np.float32]
    next_state: NDArray[np.float32]
    done: NDArray[np.float32]
    user: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        rows = len(self.state)
        require(rows > 0, "samples", 0, "at least one row")
        for name in ("action", "feedback", "next_state", "done"):
            require(len(getattr(self, name)) == rows, name, len(getattr(self, name)), f"{rows} rows, as in state")
        require(self.user is None or len(self.user) == rows, "user", self.user, f"{rows} ids, one a row")
        for name in ("state", "action", "feedback", "next_state", "done"):
            require(bool(np.isfinite(getattr(self, name)).all()), name, "not finite", "finite numbers")


@dataclass(frozen=True)
class LinearCritics:
    """q_j(s, a) of m behaviours, in the units of the feedback.

    Attributes:
        coefficients: float64[terms, m].
        state_mean, state_std, action_mean, action_std: of the samples that the critics were fitted to.
        iterations: until they stood still; converged: whether they did.
        discount: γ; system: float64[terms, terms], the matrix whose solution the coefficients are.
    """

    coefficients: Vector
    state_mean: Vector
    state_std: Vector
    action_mean: Vector
    action_std: Vector
    iterations: int = 0
    converged: bool = True
    discount: float = 0.0
    system: Vector | None = None

    @property
    def refused(self) -> str:
        """Why these critics carry no estimate; "" where they do."""
        return "" if self.converged else (
            f"the fit of the critics did not stand still after {self.iterations:,} iterations: the samples hold too "
            "little of what this policy does")

    def predict(self, state: ArrayLike, action: ArrayLike) -> Vector:
        """q(s, a), float64[n, m], of states [n, S] and actions [n, M]."""
        s, a = np.asarray(state), np.asarray(action)
        return np.concatenate([self._terms(s[part], a[part]) @ self.coefficients for part in _chunks(len(s))])

    def expect(self, state: ArrayLike, moments: ActionMoments) -> Vector:
        """v(s) = E q(s, a) over the policy's actions, float64[n, m]."""
        s = np.asarray(state, np.float32)
        return np.concatenate([self._terms(s[part], *moments(s[part])) @ self.coefficients for part in _chunks(len(s))])

    def fit_error(self, samples: Transitions, moments: ActionMoments, state: ArrayLike, *,
                  of_value: ArrayLike | None = None, action: ArrayLike | None = None,
                  of_action: ArrayLike | None = None) -> Vector:
        """How each user of the samples moved an estimate that is linear in these critics,
        `Σ_i of_value_i v(s_i) + of_action_i q(s_i, a_i)`; float64[U, m], centred.

        Drawing the users anew moves it by Σ_u (w_u − 1) of these, to first order: with M = A − γB and b = xᵀ M⁻¹ of the
        terms x, weighted and summed as in the estimate, user u moved it by Σ_{i∈u} (b φ_i) δ_i / (1 − h_i),
        δ_i = r_i + γ (1 − d_i) v(s'_i) − q(s_i, a_i). The leverage h_i = (φ_i − γ (1 − d_i) φ'_i)ᵀ M⁻¹ φ_i makes it
        what leaving row i out changes exactly: a row draws the critics to itself, so that its own δ_i is too small
        where rows are few.

        Args:
            samples: those that the critics were fitted to, with their users; moments: of the policy in question.
            state: [n, S] of the rows of the estimate; action: [n, M], only where `of_action` is given.
            of_value, of_action: [n, m] each (`sequential.critic_weights`); None for the mean of v(s), and for no q.

        References:
            Hao et al., "Bootstrapping Fitted Q-Evaluation for Off-Policy Inference", ICML 2021; Duan, Jia & Wang,
            "Minimax-Optimal Off-Policy Evaluation with Linear Function Approximation", ICML 2020.
        """
        require(samples.user is not None, "user", None, "ids of the samples' users")
        assert samples.user is not None
        assert self.system is not None
        total = self._weighted_terms(moments, np.asarray(state, np.float32), of_value, action, of_action)
        inverse = np.linalg.inv(self.system)
        weight = inverse.T @ total
        moved = np.empty(samples.feedback.shape)
        for part in _chunks(len(moved)):
            here, rest = self._temporal_terms(samples, moments, part)
            leverage = np.einsum("nk,nk->n", rest @ inverse, here)
            scale = (here @ weight) / np.maximum(1 - leverage, .1)[:, None]
            moved[part] = scale * (samples.feedback[part] - rest @ self.coefficients)
        per_user = sum_per_user(moved, samples.user)
        return per_user - per_user.mean(0)

    def _weighted_terms(self, moments: ActionMoments, state: NDArray[np.float32], of_value: ArrayLike | None,
                        action: ArrayLike | None, of_action: ArrayLike | None) -> Vector:
        """Σ of the terms of an estimate's rows, weighted as the estimate does, [terms, m]; arguments as of
        `fit_error`."""
        shape = len(state), self.coefficients.shape[1]
        value = np.full(shape, 1 / len(state)) if of_value is None else np.asarray(of_value, np.float64)
        taken = np.zeros(shape) if of_action is None else np.asarray(of_action, np.float64)
        for field, weights in (("of_value", value), ("of_action", taken)):
            require(weights.shape == shape, field, weights.shape, f"{shape}, a row a state and a column a behaviour")
        require(of_action is None or action is not None, "action", None, "the actions that of_action speaks of")
        total = np.zeros(self.coefficients.shape)
        for part in _chunks(len(state)):
            total += self._terms(state[part], *moments(state[part])).T @ value[part]
            if of_action is not None:
                total += self._terms(state[part], np.asarray(action)[part]).T @ taken[part]
        return total

    def _temporal_terms(self, samples: Transitions, moments: ActionMoments, part: slice) -> tuple[Vector, Vector]:
        """φ_i, and φ_i − γ (1 − d_i) φ'_i, of some of the samples; [n, terms] each."""
        here = self._terms(samples.state[part], samples.action[part])
        rest = here.copy()
        going = part.start + np.flatnonzero(samples.done[part] < .5)
        if self.discount and len(going):
            there = self._terms(samples.next_state[going], *moments(samples.next_state[going]))
            rest[going - part.start] -= self.discount * there
        return here, rest

    def _terms(self, state: NDArray[np.generic], action: NDArray[np.generic],
               variance: NDArray[np.generic] | None = None) -> Vector:
        """[n, terms]; with a variance, their expectation over actions of this mean and variance."""
        s = (state.astype(np.float64) - self.state_mean) / self.state_std
        a = (action.astype(np.float64) - self.action_mean) / self.action_std
        left, right = np.triu_indices(a.shape[1])
        products = a[:, left] * a[:, right]
        if variance is not None:
            products[:, left == right] += variance.astype(np.float64) / self.action_std**2
        base = np.concatenate([np.ones((len(s), 1)), s], 1)
        return np.concatenate([base, (base[:, :, None] * a[:, None]).reshape(len(s), -1), products], 1)


def fit_critics(samples: Transitions, moments: ActionMoments, discounts: list[float], *, ridge: float = 1e-4,
                iterations: int = ITERATIONS) -> list[LinearCritics]:
    """Critics of a policy, one set for each of the discounts; the samples are gone through once.

    Args:
        samples: of the logged policy, none of them among the rows that are evaluated.
        moments: of the policy in question.
        discounts: γ, in [0, 1].
        ridge: penalty of a coefficient, in units of the samples' number; the constant has none.

    A fit that does not stand still after `iterations` is marked: linear critics of another policy may diverge.
    """
    require(all(0 <= gamma <= 1 for gamma in discounts), "discounts", discounts, "numbers in [0, 1]")
    empty = LinearCritics(np.zeros((0, 0)), *_moments(samples.state), *_moments(samples.action))
    gram, onward, reward = _normal_equations(empty, samples, moments)
    width = reward.shape[1]
    penalty = np.full(len(gram), ridge * len(samples.state))
    penalty[0] = ridge * 1e-3  # keeps an exactly repeated column solvable, no more
    penalised = gram + np.diag(penalty)
    solved = np.linalg.solve(penalised, np.concatenate([reward, onward], 1))
    result = []
    for gamma in discounts:
        coefficients, number, converged = _iterate(solved[:, :width], solved[:, width:], gamma, iterations)
        result.append(dataclasses.replace(empty, coefficients=coefficients, iterations=number, converged=converged,
                                          discount=gamma, system=penalised - gamma * onward))
    return result


def _normal_equations(critics: LinearCritics, samples: Transitions,
                      moments: ActionMoments) -> tuple[Vector, Vector, Vector]:
    """Σ φ φᵀ and Σ (1 − d) φ φ'ᵀ [terms, terms], and Σ φ r [terms, m], of all samples."""
    size = critics._terms(samples.state[:1], samples.action[:1]).shape[1]
    gram, onward = np.zeros((size, size)), np.zeros((size, size))
    reward = np.zeros((size, samples.feedback.shape[1]))
    for part in _chunks(len(samples.state)):
        here = critics._terms(samples.state[part], samples.action[part])
        gram += here.T @ here
        reward += here.T @ samples.feedback[part].astype(np.float64)
        going = part.start + np.flatnonzero(samples.done[part] < .5)
        if len(going):
            there = critics._terms(samples.next_state[going], *moments(samples.next_state[going]))
            onward += here[going - part.start].T @ there
    return gram, onward, reward


def _iterate(start: Vector, step: Vector, gamma: float, iterations: int) -> tuple[Vector, int, bool]:
    """x = start + γ step x by repetition from `start`; the last x, the iterations, and whether it stood still."""
    current, number, still = start.copy(), 0, gamma == 0
    # Whatever the unit of the feedback: coefficients that grow this far beyond the first ones do not settle.
    limit = 1e12 * np.abs(start).max(0)
    while not still and number < iterations:
        new = start + gamma * (step @ current)
        number += 1
        change, scale = np.abs(new - current).max(0), np.abs(new).max(0)
        current = new
        if not np.isfinite(current).all() or (scale > limit).any():
            break
        still = bool((change <= TOLERANCE * scale).all())
    return current, number, still


def _moments(values: NDArray[np.float32]) -> tuple[Vector, Vector]:
    mean, std = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    return mean, np.where(std > 1e-6 * np.maximum(1.0, np.abs(mean)), std, 1.0)


def _chunks(rows: int) -> Iterator[slice]:
    return (slice(start, min(start + _CHUNK, rows)) for start in range(0, rows, _CHUNK))
