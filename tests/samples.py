"""A logged contextual bandit with a known optimum, as samples (design 3.2)."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.logs.schema import VOCABULARY_FILE, complete, sample_schema

STATES, ACTIONS, SIGMA = 3, 2, 0.5
# `like` wants the same action in every state, `watch_time` one that depends on it.
LIKED = np.array([0.6, -0.6])


def vocabulary(multiplier: float = 1.0) -> Vocabulary:
    return Vocabulary(
        behaviours=(Behaviour(name="watch_time", kind="long_term", discount=0.5),
                    Behaviour(name="like", kind="short_term", multiplier=multiplier)),
        fusion_parameters=("first", "second"), state_size=STATES,
    )


def optimum(state: np.ndarray) -> np.ndarray:
    """The action that watch time prefers, [n, M]."""
    return 0.5 * np.tanh(2.0 * state[:, :ACTIONS])


def bandit(rows: int = 6000, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns of samples: actions from N(0, SIGMA²), rewards quadratic around the preferred actions."""
    rng = np.random.default_rng(seed)
    state = rng.standard_normal((rows, STATES)).astype(np.float32)
    action = (SIGMA * rng.standard_normal((rows, ACTIONS))).astype(np.float32)
    density = (-0.5 * (action / SIGMA) ** 2 - np.log(SIGMA) - 0.5 * np.log(2 * np.pi)).sum(1)
    watch = -((action - optimum(state)) ** 2).sum(1) + 0.1 * rng.standard_normal(rows)
    like = -((action - LIKED) ** 2).sum(1) + 0.1 * rng.standard_normal(rows)
    return {
        "state": state, "action": action, "action_logp": density.astype(np.float32),
        "feedback": np.stack([watch, like], 1).astype(np.float32),
        "next_state": rng.standard_normal((rows, STATES)).astype(np.float32),
        "done": np.ones(rows, np.float32),
    }


def table(columns: dict[str, np.ndarray], of: Vocabulary) -> pa.Table:
    """Columns in the schema of samples."""
    rows = range(len(columns["done"]))
    arrays = {"user_id": pa.array([f"u{number // 10}" for number in rows]),
              "request_id": pa.array([f"r{number}" for number in rows])}
    for name, column in columns.items():
        if column.dtype == bool:
            arrays[name] = pa.array(column)
            continue
        values = np.ascontiguousarray(column, np.float32)
        flat = pa.array(values.ravel())
        arrays[name] = pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.ndim == 2 else flat
    return complete(arrays, sample_schema(of))


def write(directory: Path, columns: dict[str, np.ndarray], of: Vocabulary | None = None, files: int = 3) -> Path:
    """Writes samples and their vocabulary."""
    of = of or vocabulary()
    directory.mkdir(parents=True, exist_ok=True)
    of.save(directory / VOCABULARY_FILE)
    whole = table(columns, of)
    edges = np.linspace(0, whole.num_rows, files + 1).astype(int)
    for number, (start, end) in enumerate(itertools.pairwise(edges)):
        pq.write_table(whole.slice(start, end - start), directory / f"part-{number:05d}.parquet")
    return directory
