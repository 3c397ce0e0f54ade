"""Rolls policies through a world: every request as it comes, all of them as columns, or sums per person."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recfuse.config import require
from recfuse.fusion.inference import FusionActor
from recfuse.fusion.policies import Decision, FixedGaussian, Policy
from recfuse.simulation.sessions import Page, SessionEngine, Sessions
from recfuse.simulation.world import World

_PERSONS_AT_ONCE = 16_384
Act = Callable[[np.ndarray, np.ndarray], Decision]


@dataclass(frozen=True)
class Requests:
    """Requests in the order in which they were simulated; arrays `[N]` unless said otherwise.

    Attributes:
        user: position in the world; person: whose life it is; number: of the person's session; request: within the
            session, from 0.
        entry: position in the world's entries; clock: days since the world's start.
        state: float32[N, S]; mu, sigma, action: float32[N, M]; action_logp: float64.
        feedback: float32[N, F], as in `World.feedback`; last: bool, the session ended here.
        offset: where in the entry's pool the candidates began; seen: bool[N, candidates], those that were not to be
            shown again; shown: int16[N, page], places among the candidates, best first.
    """

    user: np.ndarray
    person: np.ndarray
    number: np.ndarray
    request: np.ndarray
    entry: np.ndarray
    clock: np.ndarray
    state: np.ndarray
    mu: np.ndarray
    sigma: np.ndarray
    action: np.ndarray
    action_logp: np.ndarray
    feedback: np.ndarray
    last: np.ndarray
    offset: np.ndarray
    seen: np.ndarray
    shown: np.ndarray


@dataclass(frozen=True)
class Totals:
    """Per simulated person: float64[n, F] sums over the horizon, and how many requests and sessions."""

    feedback: np.ndarray
    requests: np.ndarray
    sessions: np.ndarray


@dataclass(frozen=True)
class Step:
    """One request of every user under way: `slot` is the user's place in the array that was rolled."""

    slot: np.ndarray
    before: Sessions
    state: np.ndarray
    decision: Decision
    page: Page
    last: np.ndarray


def steps(engine: SessionEngine, user: np.ndarray, act: Act, *, persons: np.ndarray | None = None,
          observe: bool = True) -> Iterator[Step]:
    """Simulates these users to the end of the horizon, all in step.

    Args:
        user: int64[n], positions in the world; persons: int64[n], what their luck hangs on (default: the user).
        act: (states [B, S], slots [B]) → Decision.
        observe: False where `act` reads no state; the states are then empty.

    The luck of a user's request depends on the engine's seed, person, session and request alone.
    """
    horizon = engine.config.horizon_days
    sessions, slot = engine.first(user, user if persons is None else persons), np.arange(len(user))
    no_state = np.zeros((len(user), 0), np.float32)
    while len(slot):
        state = engine.observe(sessions) if observe else no_state[:len(slot)]
        decision = act(state, slot)
        before = _snapshot(sessions)
        page = engine.step(sessions, decision.action)
        last = page.left | page.cut
        yield Step(slot, before, state, decision, page, last)
        over = np.flatnonzero(last)
        if len(over):
            sessions.put(over, engine.next(sessions.take(over)))
            active = np.flatnonzero(~last | (sessions.clock < horizon))
            if len(active) < len(slot):
                sessions, slot = sessions.take(active), slot[active]


def _snapshot(sessions: Sessions) -> Sessions:
    """The sessions as they are; `seen`, which is wide, is shared and goes on changing."""
    return Sessions(**{name: column if name == "seen" else column.copy() for name, column in sessions.__dict__.items()})


def policy_act(policy: Policy, explore: bool, rng: np.random.Generator) -> Act:
    """A policy as `steps` takes it."""
    return lambda state, slot: policy.act(state, explore, rng)


def rollout(world: World, policy: Policy, *, seed: int, persons: np.ndarray | None = None,
            explore: bool = True) -> Requests:
    """Every request of these persons under a policy; the same seed gives the same result.

    Args:
        persons: int64[n]; person p has the tastes of the world's user p mod U, and a life of its own. Default: one per
            user.
    """
    persons = np.arange(world.users) if persons is None else persons
    require(len(persons) > 0, "persons", persons.tolist(), "at least one person")
    engine, rng = SessionEngine(world, seed), np.random.default_rng([seed, 0xAC, int(persons[0])])
    parts: list[dict[str, np.ndarray]] = []
    for step in steps(engine, persons % world.users, policy_act(policy, explore, rng), persons=persons):
        before, decision = step.before, step.decision
        parts.append({
            "user": before.user, "person": before.person, "number": before.number, "request": before.request,
            "entry": before.entry, "clock": before.clock, "state": step.state, "mu": decision.mu,
            "sigma": decision.sigma, "action": decision.action, "action_logp": decision.action_logp,
            "feedback": step.page.feedback, "last": step.last, "offset": step.page.offset, "seen": step.page.seen,
            "shown": step.page.places.astype(np.int16)})
    return Requests(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def collect(simulation: Iterator[Step], persons: int, columns: int) -> Totals:
    """Sums the feedback, of so many columns, per slot."""
    feedback = np.zeros((persons, columns))
    requests, sessions = np.zeros(persons, np.int64), np.zeros(persons, np.int64)
    for step in simulation:  # a slot occurs once in a step, so plain indexing adds right
        feedback[step.slot] += step.page.feedback
        requests[step.slot] += 1
        sessions[step.slot] += step.last
    return Totals(feedback, requests, sessions)


def live(world: World, policy: Policy, persons: NDArray[np.int64], *, seed: int, explore: bool,
         rng: np.random.Generator) -> Totals:
    """What persons [n] do over the horizon under a policy.

    Args:
        seed: of their luck; rng: of the policy's exploration.
    """
    engine, parts = SessionEngine(world, seed), []
    if isinstance(policy, FusionActor) and policy.fixed is not None:
        policy = policy.fixed
    for start in range(0, len(persons), _PERSONS_AT_ONCE):
        some = persons[start:start + _PERSONS_AT_ONCE]
        simulation = steps(engine, some % world.users, policy_act(policy, explore, rng), persons=some,
                           observe=not isinstance(policy, FixedGaussian))
        parts.append(collect(simulation, len(some), len(world.feedback)))
    return Totals(*(np.concatenate([getattr(part, name) for part in parts])
                    for name in ("feedback", "requests", "sessions")))


def live_with(engine: SessionEngine, vectors: np.ndarray, persons: np.ndarray) -> Totals:
    """What persons [n] do over the horizon, each ranked for by a fusion vector of its own, [n, M]."""
    weights = vectors.astype(np.float32)
    unit = np.ones_like(weights[:1])

    def act(_: np.ndarray, slot: np.ndarray) -> Decision:
        current = weights[slot]
        return Decision(current, unit, current, np.zeros(len(slot)))

    user = persons % engine.world.users
    return collect(steps(engine, user, act, persons=persons, observe=False), len(persons), len(engine.world.feedback))
