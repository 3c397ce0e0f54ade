"""A session in closed form: two states, two actions, values by linear algebra, and logs of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# P(next state | state, action), what remains of 1 ends the session; mean reward of (state, action).
NEXT = np.array([[[.5, .2], [.1, .5]], [[.3, .4], [.2, .2]]])
REWARD = np.array([[1.0, 3.0], [.5, 2.0]])
START = np.array([.6, .4])
BEHAVIOUR = np.array([[.5, .5], [.6, .4]])  # π_b(action | state)
TARGET = np.array([[.3, .7], [.45, .55]])


def values(policy: np.ndarray, discount: float) -> tuple[np.ndarray, np.ndarray]:
    """v(s) [2] and q(s, a) [2, 2] of a policy: v = (I − γ P_π)⁻¹ r_π."""
    onward = np.einsum("sa,san->sn", policy, NEXT)
    v = np.linalg.solve(np.eye(2) - discount * onward, (policy * REWARD).sum(1))
    return v, REWARD + discount * NEXT @ v


@dataclass(frozen=True)
class Log:
    """Requests in the order of time: arrays [n]."""

    session: np.ndarray
    step: np.ndarray
    state: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_state: np.ndarray
    done: np.ndarray

    @property
    def log_probs(self) -> tuple[np.ndarray, np.ndarray]:
        """log π(a|s), log π_b(a|s)."""
        return np.log(TARGET[self.state, self.action]), np.log(BEHAVIOUR[self.state, self.action])


def simulate(sessions: int, seed: int, noise: float = 1.0) -> Log:
    """Sessions under the behaviour policy."""
    rng = np.random.default_rng(seed)
    ids, state = np.arange(sessions), (rng.random(sessions) < START[1]).astype(int)
    parts, step = [], 0
    while len(ids):
        action = (rng.random(len(ids)) < BEHAVIOUR[state, 1]).astype(int)
        reward = REWARD[state, action] + noise * rng.standard_normal(len(ids))
        u, chance = rng.random(len(ids)), NEXT[state, action]
        following = np.where(u < chance[:, 0], 0, np.where(u < chance.sum(1), 1, -1))
        parts.append((ids, np.full(len(ids), step), state, action, reward, following.clip(min=0), following < 0))
        ids, state, step = ids[following >= 0], following[following >= 0], step + 1
    return Log(*(np.concatenate(column) for column in zip(*parts, strict=True)))
