"""What a policy is worth in a world, by simulation: the truth of every question that is asked of a log (maths 4.4).

The two policies meet the same luck, in what people do and in what the policies draw, so that few persons tell much.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from recfuse.config import require
from recfuse.fusion.policies import Policy
from recfuse.simulation.sessions import SessionEngine, Sessions
from recfuse.simulation.uniform import mix, uniform
from recfuse.simulation.world import World
from recfuse.stats.intervals import bootstrap, relative_change

_PERSONS_AT_ONCE = 4_096
_EXPLORATION = 0xAC7  # sets the policies' draws apart from the people's
_STANDARD_ERRORS = 1.96
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Truth:
    """Attributes:
        change: float64[m], relative to the logged policy, of a vocabulary's behaviours; NaN where it has none of one.
        error: float64[m], 1.96 standard errors, over persons.
    """

    change: Array
    error: Array


@dataclass(frozen=True)
class Truths:
    """What a policy changes, by what is asked.

    Attributes:
        changed_request: at a request of people who are used to the logged policy, if it decided that one alone.
        followed_request: at a request, if it decided all of them.
        whole_session: in a session that begins as a logged one did, if it decided all of the session's requests.
        user_over_time: by a person over the world's time, if it decided everything.
    """

    changed_request: Truth
    followed_request: Truth
    whole_session: Truth
    user_over_time: Truth


def truths(world: World, logged: Policy, policy: Policy, *, persons: NDArray[np.int64], seed: int,
           explore: bool = True, discount: float = 1.0) -> Truths:
    """Lets the persons live under the logged policy, with its exploration, and under the policy in question.

    Args:
        persons: int64[n], as of `rollout`; seed: of their luck and of what the policies draw.
        explore: the policy in question draws its actions; otherwise it takes their means.
        discount: γ of a session's value.

    Raises:
        InvalidFieldError: fewer than two persons.
    """
    require(len(persons) >= 2, "persons", len(persons), "at least 2 persons")
    engine = SessionEngine(world, seed)
    parts = [_sums(engine, logged, policy, persons[start:start + _PERSONS_AT_ONCE], explore, discount)
             for start in range(0, len(persons), _PERSONS_AT_ONCE)]
    columns = world.columns(world.vocabulary.behaviour_names)
    return _changes(*(np.concatenate(part)[:, columns] if part[0].ndim == 2 else np.concatenate(part)
                      for part in zip(*parts, strict=True)))


def _changes(base: Array, base_requests: Array, alone: Array, base_sessions: Array, sessions: Array, followed: Array,
             requests: Array) -> Truths:
    """The truths from sums per person, float64[n, m], and numbers of requests, float64[n]."""
    blocks = [base, base_requests[:, None], alone, base_sessions, sessions, followed, requests[:, None]]
    edges = np.cumsum([block.shape[1] for block in blocks])[:-1]

    def statistic(sums: Array) -> Array:
        logged, number, changed, begun, whole, all_of_it, count = np.split(sums, edges, axis=1)
        return np.concatenate([
            relative_change(changed, logged), relative_change(all_of_it / count, logged / number),
            relative_change(whole, begun), relative_change(all_of_it, logged)], axis=1)

    change, drawn = bootstrap(np.concatenate(blocks, 1), statistic)
    error = _STANDARD_ERRORS * drawn.std(0, ddof=1)
    return Truths(*(Truth(*pair) for pair in zip(np.split(change, 4), np.split(error, 4), strict=True)))


def _sums(engine: SessionEngine, logged: Policy, policy: Policy, persons: NDArray[np.int64], explore: bool,
          discount: float) -> tuple[Array, ...]:
    """What `_changes` takes, of all behaviours of a world."""
    noise = _Noise(engine.seed)
    base, alone, base_sessions = (np.zeros((len(persons), len(engine.world.feedback))) for _ in range(3))
    requests, begun = np.zeros(len(persons)), []
    sessions, slot = _first(engine, persons)
    while len(slot):
        begins = np.flatnonzero(sessions.request == 0)
        begun.append((slot[begins], sessions.take(begins)))
        state, weight = engine.observe(sessions), discount**sessions.request[:, None]
        noise.stand_at(sessions)
        other = policy.act(state, explore, noise).action
        action = logged.act(state, True, noise).action
        alone[slot] += engine.step(copy.deepcopy(sessions), other).feedback
        page = engine.step(sessions, action)
        base[slot] += page.feedback
        base_sessions[slot] += weight * page.feedback
        requests[slot] += 1
        sessions, slot = _go_on(engine, sessions, slot, page.left | page.cut)
    whole = _sessions(engine, policy, noise, begun, len(persons), explore, discount)
    return base, requests, alone, base_sessions, whole, *_follow(engine, policy, noise, persons, explore)


def _follow(engine: SessionEngine, policy: Policy, noise: _Noise, persons: NDArray[np.int64],
            explore: bool) -> tuple[Array, Array]:
    """What persons [n] bring over the time under a policy, and by how many requests."""
    total, requests = np.zeros((len(persons), len(engine.world.feedback))), np.zeros(len(persons))
    sessions, slot = _first(engine, persons)
    while len(slot):
        noise.stand_at(sessions)
        page = engine.step(sessions, policy.act(engine.observe(sessions), explore, noise).action)
        total[slot] += page.feedback
        requests[slot] += 1
        sessions, slot = _go_on(engine, sessions, slot, page.left | page.cut)
    return total, requests


def _sessions(engine: SessionEngine, policy: Policy, noise: _Noise, begun: list[tuple[np.ndarray, Sessions]],
              persons: int, explore: bool, discount: float) -> Array:
    """What the sessions that have begun bring per person, if the policy decides them to their ends."""
    total = np.zeros((persons, len(engine.world.feedback)))
    slot = np.concatenate([some for some, _ in begun])
    names = vars(begun[0][1])
    sessions = Sessions(**{name: np.concatenate([getattr(one, name) for _, one in begun]) for name in names})
    while len(slot):
        weight = discount**sessions.request[:, None]
        noise.stand_at(sessions)
        page = engine.step(sessions, policy.act(engine.observe(sessions), explore, noise).action)
        np.add.at(total, slot, weight * page.feedback)  # a person has begun several
        going = np.flatnonzero(~(page.left | page.cut))
        sessions, slot = sessions.take(going), slot[going]
    return total


def _first(engine: SessionEngine, persons: NDArray[np.int64]) -> tuple[Sessions, np.ndarray]:
    return engine.first(persons % engine.world.users, persons), np.arange(len(persons))


def _go_on(engine: SessionEngine, sessions: Sessions, slot: np.ndarray,
           last: np.ndarray) -> tuple[Sessions, np.ndarray]:
    """The next sessions of those whose one is over, without those whose time is."""
    over = np.flatnonzero(last)
    sessions.put(over, engine.next(sessions.take(over)))
    active = np.flatnonzero(~last | (sessions.clock < engine.config.horizon_days))
    return sessions.take(active), slot[active]


class _Noise(np.random.Generator):
    """Standard normal numbers that hang on the person, the session and the request: whatever the policies do, and
    whoever else is simulated, both draw with the same luck."""

    def __init__(self, seed: int) -> None:
        super().__init__(np.random.PCG64(seed))
        self._seed, self._key = seed, np.zeros(0, np.uint64)

    def stand_at(self, sessions: Sessions) -> None:
        """The next numbers are of the next requests of these sessions."""
        self._key = mix(self._seed, _EXPLORATION, sessions.person, sessions.number, sessions.request)

    def standard_normal(self, size: Any = None, dtype: Any = np.float64, out: Any = None) -> Any:
        """[B, M], a row a session."""
        share = uniform(self._key[:, None], np.arange(size[1])) + 2.0**-54  # 0 has no quantile
        return ndtri(share).astype(dtype)
