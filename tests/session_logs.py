"""Small session logs for tests: a vocabulary and rows that are all good until a test breaks one."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.logs.schema import VOCABULARY_FILE, session_log_schema

EPOCH = datetime.datetime(2022, 5, 1, tzinfo=datetime.UTC)


def vocabulary(state_size: int = 3, parameters: int = 2) -> Vocabulary:
    return Vocabulary(
        behaviours=(
            Behaviour(name="watch_time", kind="long_term", transform="log1p"),
            Behaviour(name="like", kind="short_term", multiplier=0.5),
        ),
        fusion_parameters=tuple(f"p{k}" for k in range(parameters)),
        state_size=state_size,
        scenes=("feed", "cart"),
    )


def row(
    number: int, *, user: str = "u", session: str | None = "s", seconds: float | None = None, **changes: Any
) -> dict:
    """One good request; `seconds` after EPOCH (default: its number × 10)."""
    values = {
        "session_id": session,
        "request_id": f"r{number}",
        "user_id": user,
        "ts": EPOCH + datetime.timedelta(seconds=number * 10 if seconds is None else seconds),
        "stage": "fine",
        "scene": "feed",
        "state": [float(number), 1.0, 2.0],
        "mu": [0.0, 0.0],
        "sigma": [1.0, 1.0],
        "action": [0.5, -0.5],
        "action_logp": -2.0,
        "model_version": "v1",
        "feedback": {"watch_time": 1.0 * number, "like": 0.0},
        "last": False,
    }
    return values | changes


def table(rows: list[dict], of: Vocabulary | None = None) -> pa.Table:
    """Rows in the native schema."""
    return pa.Table.from_pylist(rows, schema=session_log_schema(of or vocabulary()))


def loose_table(rows: list[dict]) -> pa.Table:
    """Rows whose lists may have any length, as a careless writer would store them."""
    kinds = {"state": pa.list_(pa.float64()), "mu": pa.list_(pa.float64()), "sigma": pa.list_(pa.float64()),
             "action": pa.list_(pa.float64())}
    fields = [field.with_type(kinds.get(field.name, field.type)) for field in session_log_schema(vocabulary())]
    return pa.Table.from_pylist(rows, schema=pa.schema(fields))


def write(directory: Path, *tables: pa.Table, of: Vocabulary | None = None) -> Path:
    """A log directory with one file per table."""
    directory.mkdir(parents=True, exist_ok=True)
    (of or vocabulary()).save(directory / VOCABULARY_FILE)
    for number, content in enumerate(tables):
        pq.write_table(content, directory / f"log-{number}.parquet")
    return directory


def random_rows(rows: int, seed: int = 0, users: int = 20) -> list[dict]:
    """Good rows of several users, with and without session ids."""
    random = np.random.default_rng(seed)
    result = []
    for number in range(rows):
        user = int(random.integers(users))
        session = None if user % 3 == 0 else f"s{user}-{int(random.integers(4))}"
        result.append(row(number, user=f"u{user}", session=session, seconds=float(random.integers(200_000))))
    return result
