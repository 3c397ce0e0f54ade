"""Session logs for `benchmarks.ingest`: as many rows as are asked for, seeded, with every kind of dirt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.logs.files import write_parquet
from recfuse.logs.schema import VOCABULARY_FILE, complete, session_log_schema
from recfuse.stats.gaussian import gaussian_log_density

STATES, ACTIONS = 53, 6
VOCABULARY = Vocabulary(
    behaviours=(Behaviour(name="watch_time", kind="long_term", transform="log1p"),
                *(Behaviour(name=name, kind="short_term") for name in ("click", "like", "comment", "follow"))),
    fusion_parameters=tuple(f"p{k}" for k in range(ACTIONS)), state_size=STATES,
    scenes=("home", "shop", "video", "search"))
# Of the rows: those with one bad value, those that a client sent again, those that another user's request names.
BAD, AGAIN, ACROSS = 5e-3, 1e-2, 1e-4
_A_USER, _A_SESSION = 60, 7
_FILE_ROWS = 100_000
_START = 1_650_000_000_000_000


def write_log(directory: Path, rows: int, seed: int = 0) -> Path:
    """A log of about so many rows, each file with all users of its own span of them."""
    directory.mkdir(parents=True)
    VOCABULARY.save(directory / VOCABULARY_FILE)
    for number, first in enumerate(range(0, rows, _FILE_ROWS)):
        content = _file(np.random.default_rng([seed, number]), first, min(_FILE_ROWS, rows - first), rows)
        write_parquet(content, directory / f"log-{number:05d}.parquet")
    return directory


def _file(rng: np.random.Generator, first: int, rows: int, total: int) -> pa.Table:
    """Requests of sessions that come one after the other; a user has many, over all files."""
    request = np.arange(first, first + rows)
    again = rng.random(rows) < AGAIN
    again[0] = False
    request[again] = request[np.flatnonzero(again) - 1]
    session = request // _A_SESSION
    # Every session has a user that a multiplicative hash draws, so that no table of them is kept.
    user = (session * np.int64(0x9E3779B1) & 0x7FFFFFFF) % max(total // _A_USER, 1)
    times = _START + session * 40_000_000 + request % _A_SESSION * 37_000_000
    user[rng.random(rows) < ACROSS] += 1
    state = np.zeros((rows, STATES), np.float32)
    state[:, :29] = rng.standard_normal((rows, 29)).round(3)
    state[np.arange(rows), 29 + session % 12] = 1.0
    state[:, 41:] = rng.integers(0, 20, (rows, 12))
    mu = np.tile(np.linspace(.3, 1.0, ACTIONS).astype(np.float32), (rows, 1))
    sigma = np.full((rows, ACTIONS), .7, np.float32)
    action = (mu + sigma * rng.standard_normal((rows, ACTIONS))).astype(np.float32)
    density = gaussian_log_density(action, mu, sigma)
    watched = rng.exponential(20.0, rows).astype(np.float32)
    kind = np.where(rng.random(rows) < BAD, rng.integers(0, 6, rows), -1)
    state[kind == 0, 0], density[kind == 1] = np.nan, density[kind == 1] + 1
    sigma[kind == 2, 1], watched[kind == 3] = 0.0, np.nan
    names = user.astype("U12").astype(object)
    names[kind == 4] = None
    scene = np.array(VOCABULARY.scenes, object)[session % 4]
    scene[kind == 5] = "nowhere"
    feedback = [watched, *((rng.random(rows) < share).astype(np.float32) for share in (.4, .05, .01, .005))]
    return complete({
        "session_id": pa.array(session.astype("U12").astype(object), pa.string()),
        "request_id": pa.array(np.char.add(np.char.add(session.astype("U12"), "-"),
                                           (request % _A_SESSION).astype("U2"))),
        "user_id": pa.array(names, pa.string()), "ts": pa.array(times).cast(pa.timestamp("us", "UTC")),
        "stage": pa.array(["fine"] * rows), "scene": pa.array(scene, pa.string()), "state": _lists(state),
        "mu": _lists(mu), "sigma": _lists(sigma), "action": _lists(action), "action_logp": pa.array(density),
        "explored": pa.array(np.ones(rows, bool)), "model_version": pa.array(["declared-4b5c6afb635e3d8d"] * rows),
        "vocabulary_hash": pa.array([VOCABULARY.meaning] * rows),
        "feedback": pa.StructArray.from_arrays([pa.array(each) for each in feedback],
                                               names=list(VOCABULARY.behaviour_names)),
        "last": pa.array(np.zeros(rows, bool)),
        "position": pa.array(request % _A_SESSION),
    }, session_log_schema(VOCABULARY))


def _lists(matrix: np.ndarray) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(matrix).reshape(-1)), matrix.shape[1])
