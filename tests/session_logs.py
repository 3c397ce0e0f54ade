"""Small session logs for tests: a vocabulary and rows that are all good until a test breaks one."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.logs.schema import CANDIDATES, VOCABULARY_FILE, complete, session_log_schema

# log N((.5, −.5); 0, 1): −½ (.25 + .25) − ln 2π.
LOGP = -.25 - math.log(2 * math.pi)
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
        "action_logp": LOGP,
        "explored": True,
        "model_version": "v1",
        "scorer_version": None,
        "vocabulary_hash": None,
        "feedback": {"watch_time": 1.0 * number, "like": 0.0},
        "last": False,
        "position": None,
        "candidates": None,
        "candidates_total": None,
        "shown": None,
    }
    return values | changes


def ranked_row(number: int, rng: np.random.Generator, of: Vocabulary, count: int, page: int = 3,
               **changes: Any) -> dict:
    """A request with candidates: some of them seen, and the page that a random action ranks the others to."""
    parameters = of.action_size
    predictions = rng.gamma(1.0, .1, (parameters, count)).astype(np.float16)
    seen = rng.random(count) < .2
    action = rng.normal(size=parameters).astype(np.float32)
    terms = predictions.astype(np.float64)
    scores = action.astype(np.float64) @ (terms if of.formula == "linear" else np.log(terms + of.offset))
    order = np.argsort(np.where(seen, np.inf, -scores), kind="stable")
    values = {
        "mu": [0.0] * parameters, "sigma": [1.0] * parameters, "action": action.astype(float).tolist(),
        "action_logp": None, "candidates": {"item_ids": [f"i{k}" for k in range(count)],
                                            "predictions": predictions.ravel().tolist(), "seen": seen.tolist()},
        "candidates_total": count, "shown": order[:min(page, int((~seen).sum()))].tolist(),
    }
    return row(number, **values | changes)


def table(rows: list[dict], of: Vocabulary | None = None) -> pa.Table:
    """Rows in the native schema."""
    return pa.Table.from_pylist(rows, schema=session_log_schema(of or vocabulary()))


def for_delta(rows: pa.Table) -> pa.Table:
    """The same rows with predictions in single precision, since a Delta table knows no half precision."""
    place = rows.schema.get_field_index("candidates")
    kinds = [field.with_type(pa.list_(pa.float32())) if field.name == "predictions" else field for field in CANDIDATES]
    return rows.set_column(place, "candidates", rows["candidates"].cast(pa.struct(kinds)))


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


def write_many(directory: Path, rows: int, files: int) -> Path:
    """Session logs of many users, every tenth request twice."""
    of, rng = vocabulary(state_size=24), np.random.default_rng(0)
    directory.mkdir()
    of.save(directory / VOCABULARY_FILE)
    number = np.arange(rows)
    number[::10] = number[1::10]
    user = rng.integers(rows // 20, size=rows)[number]

    def lists(width: int, low: float = -1.0) -> pa.Array:
        flat = pa.array(rng.uniform(low, 1.0, rows * width).astype(np.float32))
        return pa.FixedSizeListArray.from_arrays(flat, width)

    columns = {
        "session_id": pa.nulls(rows, pa.string()), "request_id": pa.array([f"r{n}" for n in number]),
        "user_id": pa.array([f"u{n}" for n in user]),
        "ts": pa.array(1_650_000_000_000_000 + number.astype(np.int64) * 7_000_000).cast(pa.timestamp("us", "UTC")),
        "stage": pa.array(["fine"] * rows), "scene": pa.array(["feed"] * rows), "state": lists(24), "mu": lists(2),
        "sigma": lists(2, low=0.5), "action": lists(2), "action_logp": pa.nulls(rows, pa.float64()),
        "explored": pa.nulls(rows, pa.bool_()),
        "model_version": pa.array(["v"] * rows), "scorer_version": pa.nulls(rows, pa.string()),
        "vocabulary_hash": pa.nulls(rows, pa.string()),
        "feedback": pa.StructArray.from_arrays([pa.array(rng.exponential(size=rows).astype(np.float32)),
                                                pa.array((rng.random(rows) < .1).astype(np.float32))],
                                               names=["watch_time", "like"]),
        "last": pa.array(np.zeros(rows, bool)), "position": pa.nulls(rows, pa.int64())}
    table = complete(columns, session_log_schema(of))
    for place, start in enumerate(range(0, rows, -(-rows // files))):
        pq.write_table(table.slice(start, -(-rows // files)), directory / f"log-{place:03d}.parquet")
    return directory
