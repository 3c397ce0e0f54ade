"""Writes what a policy does in a world as native session logs (design 3.1)."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recfuse.fusion.policies import Policy
from recfuse.logs.files import TEMPORARY, write_parquet
from recfuse.logs.schema import VOCABULARY_FILE, complete, session_log_schema
from recfuse.runtime.console import Progress
from recfuse.simulation.candidates import logged_candidates
from recfuse.simulation.rollout import Requests, rollout
from recfuse.simulation.sessions import DAY
from recfuse.simulation.world import World

STAGE = "fine"
PERSONS_PER_PART = 1_000


def session_log(world: World, requests: Requests, model_version: str, candidates: bool = True) -> pa.Table:
    """Native session-log rows, sorted by person, session and request.

    The first person with a user's tastes has the user's id, the next ones `ID.1`, `ID.2`, …

    Args:
        candidates: whether the rows say what there was to rank.
    """
    order = np.lexsort([requests.request, requests.number, requests.person])
    requests = Requests(**{name: column[order] for name, column in vars(requests).items()})
    vocabulary = world.vocabulary
    user = pa.array(world.user_ids[requests.user]).cast(pa.string())
    twin = requests.person // world.users
    named = pc.binary_join_element_wise(user, pa.array(twin).cast(pa.string()), ".")
    user = pc.if_else(pa.array(twin > 0), named, user)
    number = pa.array(requests.number).cast(pa.string())
    request = pa.array(requests.request).cast(pa.string())
    session = pc.binary_join_element_wise(user, number, "-")
    ts = world.start + np.round(requests.clock * DAY * 1e6).astype(np.int64)
    scene = pa.array(np.array(world.scenes)[world.entry_scene[requests.entry]])
    feedback = pa.StructArray.from_arrays(
        [pa.array(requests.feedback[:, world.feedback.index(name)]) for name in vocabulary.behaviour_names],
        names=list(vocabulary.behaviour_names))
    rows = len(order)
    drawn = (requests.action != requests.mu).any(1)
    return complete({
        "session_id": session, "request_id": pc.binary_join_element_wise(session, request, "-"), "user_id": user,
        "ts": pa.array(ts).cast(pa.timestamp("us", "UTC")), "stage": pa.array(np.full(rows, STAGE)), "scene": scene,
        **{name: _lists(getattr(requests, name)) for name in ("state", "mu", "sigma", "action")},
        "action_logp": pa.array(requests.action_logp), "explored": pa.array(drawn),
        "model_version": pa.array(np.full(rows, model_version)),
        "vocabulary_hash": pa.array(np.full(rows, vocabulary.meaning)), "feedback": feedback,
        "last": pa.array(requests.last), "position": pa.array(requests.request.astype(np.int64)),
        **(logged_candidates(world, requests) if candidates else {}),
    }, session_log_schema(vocabulary))


def _lists(values: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def write_logs(world: World, policy: Policy, directory: str | Path, *, persons: int | np.ndarray, seed: int,
               model_version: str, candidates: bool = True) -> int:
    """Rolls persons with exploration on and writes `part-*.parquet` and `vocabulary.yaml`.

    Args:
        persons: which, as in `rollout`; a number n for persons 0..n − 1.
        candidates: whether the rows say what there was to rank.

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
            temporary = directory / f"{TEMPORARY}{target.name}.{os.getpid()}"
            write_parquet(session_log(world, requests, model_version, candidates), temporary)
            os.replace(temporary, target)
        rows += pq.read_metadata(target).num_rows
        progress.advance(len(some), f"{rows:,} requests")
    progress.finish(f"{rows:,} requests")
    return rows
