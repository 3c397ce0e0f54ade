"""Rolls a policy through a world, and writes what happened as native session logs (design 3.1)."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recfuse.config import require
from recfuse.fusion.policies import Decision, Policy
from recfuse.logs.files import write_parquet
from recfuse.logs.schema import VOCABULARY_FILE, session_log_schema
from recfuse.runtime.console import Progress
from recfuse.simulation.environment import DAY, Page, SessionEngine, Sessions
from recfuse.simulation.world import FEEDBACK, World

STAGE = "fine"
PERSONS_PER_PART = 1_000
Act = Callable[[np.ndarray, np.ndarray], Decision]


@dataclass(frozen=True)
class Requests:
    """Requests in the order in which they were simulated; arrays `[N]` unless said otherwise.

    Attributes:
        user: position in the world; person: whose life it is; number: of the person's session; request: within the
            session, from 0.
        entry: position in the world's entries; clock: days since the world's start.
        state: float32[N, S]; mu, sigma, action: float32[N, M]; action_logp: float64.
        feedback: float32[N, len(FEEDBACK)]; last: bool, the session ended here.
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


@dataclass(frozen=True)
class Totals:
    """Per simulated person: float64[n, len(FEEDBACK)] sums over the horizon, and how many requests and sessions."""

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
    nothing = np.zeros((len(user), 0), np.float32)
    while len(slot):
        state = engine.observe(sessions) if observe else nothing[:len(slot)]
        decision = act(state, slot)
        before = _snapshot(sessions)
        page = engine.step(sessions, decision.action)
        last = page.left | page.cut
        yield Step(slot, before, state, decision, page, last)
        over = np.flatnonzero(last)
        if len(over):
            sessions.put(over, engine.next(sessions.take(over)))
            going = np.flatnonzero(~last | (sessions.clock < horizon))
            if len(going) < len(slot):
                sessions, slot = sessions.take(going), slot[going]


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
            "feedback": step.page.feedback, "last": step.last})
    return Requests(**{name: np.concatenate([part[name] for part in parts]) for name in parts[0]})


def collect(simulation: Iterator[Step], persons: int) -> Totals:
    """Sums the feedback per slot."""
    feedback = np.zeros((persons, len(FEEDBACK)))
    requests, sessions = np.zeros(persons, np.int64), np.zeros(persons, np.int64)
    for step in simulation:  # a slot occurs once in a step, so plain indexing adds right
        feedback[step.slot] += step.page.feedback
        requests[step.slot] += 1
        sessions[step.slot] += step.last
    return Totals(feedback, requests, sessions)


def live_with(engine: SessionEngine, vectors: np.ndarray, persons: np.ndarray) -> Totals:
    """What persons [n] do over the horizon, each ranked for by a fusion vector of its own, [n, M]."""
    weights = vectors.astype(np.float32)
    unit = np.ones_like(weights[:1])

    def act(_: np.ndarray, slot: np.ndarray) -> Decision:
        mine = weights[slot]
        return Decision(mine, unit, mine, np.zeros(len(mine)))

    user = persons % engine.world.users
    return collect(steps(engine, user, act, persons=persons, observe=False), len(persons))


def session_log(world: World, requests: Requests, model_version: str) -> pa.Table:
    """Native session-log rows, sorted by person, session and request.

    The first person with a user's tastes has the user's id, the next ones `ID.1`, `ID.2`, …
    """
    order = np.lexsort([requests.request, requests.number, requests.person])
    vocabulary = world.vocabulary
    user = pa.array(world.user_ids[requests.user[order]]).cast(pa.string())
    twin = requests.person[order] // world.users
    named = pc.binary_join_element_wise(user, pa.array(twin).cast(pa.string()), ".")
    user = pc.if_else(pa.array(twin > 0), named, user)
    number = pa.array(requests.number[order]).cast(pa.string())
    request = pa.array(requests.request[order]).cast(pa.string())
    session = pc.binary_join_element_wise(user, number, "-")
    ts = world.start + np.round(requests.clock[order] * DAY * 1e6).astype(np.int64)
    scene = pa.array(np.array(world.scenes)[world.entry_scene[requests.entry[order]]])
    feedback = pa.StructArray.from_arrays(
        [pa.array(requests.feedback[order, FEEDBACK.index(name)]) for name in vocabulary.behaviour_names],
        names=list(vocabulary.behaviour_names))
    rows = len(order)
    columns = [session, pc.binary_join_element_wise(session, request, "-"), user,
               pa.array(ts).cast(pa.timestamp("us", "UTC")), pa.array(np.full(rows, STAGE)), scene,
               *(_lists(getattr(requests, name)[order]) for name in ("state", "mu", "sigma", "action")),
               pa.array(requests.action_logp[order]), pa.array(np.full(rows, model_version)), feedback,
               pa.array(requests.last[order])]
    return pa.Table.from_arrays(columns, schema=session_log_schema(vocabulary))


def _lists(values: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def write_logs(world: World, policy: Policy, directory: str | Path, *, persons: int | np.ndarray, seed: int,
               model_version: str) -> int:
    """Rolls persons with exploration on and writes `part-*.parquet` and `vocabulary.yaml`.

    Args:
        persons: which, as in `rollout`; a number n for persons 0..n − 1.

    A part holds PERSONS_PER_PART persons. A part that is there already is kept, so a rerun of an interrupted call goes
    on where it stopped.

    Returns:
        Rows in the directory.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    world.vocabulary.save(directory / VOCABULARY_FILE)
    everyone = np.arange(persons) if isinstance(persons, int) else persons
    progress, rows = Progress("simulating", len(everyone), "persons"), 0
    for part, start in enumerate(range(0, len(everyone), PERSONS_PER_PART)):
        some = everyone[start:start + PERSONS_PER_PART]
        target = directory / f"part-{part:05d}.parquet"
        if not target.exists():
            requests = rollout(world, policy, seed=seed, persons=some)
            temporary = target.with_suffix(f".{os.getpid()}.tmp")
            write_parquet(session_log(world, requests, model_version), temporary)
            os.replace(temporary, target)
        rows += pq.read_metadata(target).num_rows
        progress.advance(len(some), f"{rows:,} requests")
    progress.finish(f"{rows:,} requests")
    return rows
