"""Random session logs for property tests: types of ids and times, order of rows and files, nulls, duplicates, `last`,
columns that are absent; and the steps of ingest without Ray."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from hypothesis import strategies as st

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.logs.config import IngestConfig
from recfuse.logs.exchange import EXCHANGED, QUARANTINE, Exchange
from recfuse.logs.ingest import IngestResult, _close
from recfuse.logs.schema import VOCABULARY_FILE
from recfuse.logs.source import log_end, open_log, pieces
from recfuse.stats.gaussian import gaussian_log_density

VOCABULARY = Vocabulary(
    behaviours=(Behaviour(name="watch_time", kind="long_term"), Behaviour(name="like", kind="short_term")),
    fusion_parameters=("click", "like"), state_size=2)
MU, SIGMA = np.array([.25, -.5], np.float32), np.array([.5, .5], np.float32)
START = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
_IDS: dict[str, Callable[[list[Any]], pa.Array]] = {
    "string": lambda ids: pa.array(_words(ids), pa.string()),
    "large_string": lambda ids: pa.array(_words(ids), pa.large_string()),
    "string_view": lambda ids: pa.array(_words(ids), pa.string_view()),
    "binary": lambda ids: pa.array(_words(ids), pa.string()).cast(pa.binary()),
    "dictionary": lambda ids: pa.array(_words(ids), pa.string()).dictionary_encode(),
    "int64": lambda ids: pa.array(ids, pa.int64()),
    "decimal": lambda ids: pa.array(ids, pa.int64()).cast(pa.decimal128(20, 0)),
}
_TIMES = (("s", None), ("ms", "UTC"), ("us", None), ("us", "Europe/Berlin"), ("ns", "UTC"))

REQUEST = st.fixed_dictionaries({
    "user": st.integers(0, 4), "session": st.one_of(st.none(), st.integers(0, 2)),
    # Few times, so that many are equal; pauses shorter and longer than half an hour.
    "seconds": st.sampled_from([0, 0, 60, 60, 120, 1_800, 1_801, 3_600, 7_200, 100_000]),
    "last": st.sampled_from([None, False, False, True]), "position": st.one_of(st.none(), st.integers(0, 3)),
    "request": st.one_of(st.none(), st.none(), st.none(), st.integers(0, 5)),  # that of another row
    "fault": st.sampled_from([None] * 12 + ["user", "feedback", "like", "action", "density", "mean"]),
})
OPTIONS = st.fixed_dictionaries({
    "ids": st.sampled_from(sorted(_IDS)), "time": st.sampled_from(_TIMES), "files": st.integers(1, 3),
    "row_group": st.sampled_from([3, 1_000]), "order": st.integers(0, 2**16),
    "absent": st.sets(st.sampled_from(["session_id", "last", "position", "explored", "action_logp", "mu, sigma"])),
    "feedback": st.sampled_from(["struct", "map"]), "cut": st.sampled_from(["leave_out", "bootstrap"]),
})


def write_log(directory: Path, requests: list[dict[str, Any]], options: dict[str, Any]) -> Path:
    """A log of these requests."""
    directory.mkdir(parents=True)
    VOCABULARY.save(directory / VOCABULARY_FILE)
    rng = np.random.default_rng(options["order"])
    table = log_table([requests[place] for place in rng.permutation(len(requests))], options)
    for number, part in enumerate(np.array_split(np.arange(len(requests)), options["files"])):
        if len(part):
            pq.write_table(table.slice(part[0], len(part)), directory / f"{rng.integers(1 << 30)}-{number}.parquet",
                           row_group_size=options["row_group"])
    return directory


def log_table(requests: list[dict[str, Any]], options: dict[str, Any]) -> pa.Table:
    """The columns of requests; the number of each is its first entry of the state."""
    rng, rows = np.random.default_rng(options["order"] + 1), range(len(requests))
    fault = [request["fault"] for request in requests]
    number = np.arange(len(requests))
    action = (MU + SIGMA * rng.standard_normal((len(requests), 2))).astype(np.float32)
    action[[kind == "mean" for kind in fault]] = MU
    density = gaussian_log_density(action, MU, SIGMA) + np.array([kind == "density" for kind in fault])
    ids, (unit, zone) = _IDS[options["ids"]], options["time"]
    feedback = [None if fault[row] == "feedback" else
                {"watch_time": float(row), "like": None if fault[row] == "like" else float(row % 2)} for row in rows]
    kind: pa.DataType = pa.struct([("watch_time", pa.float64()), ("like", pa.float64())])
    if options["feedback"] == "map":
        feedback = [None if value is None else list(value.items()) for value in feedback]  # type: ignore[misc]
        kind = pa.map_(pa.string(), pa.float64())
    columns = {
        "session_id": ids([request["session"] for request in requests]),
        "request_id": ids([100 + (row if request["request"] is None else request["request"])
                           for row, request in enumerate(requests)]),
        "user_id": ids([None if fault[row] == "user" else requests[row]["user"] for row in rows]),
        "ts": pa.array([START + datetime.timedelta(seconds=request["seconds"]) for request in requests],
                       pa.timestamp("us", "UTC")).cast(pa.timestamp(unit, "UTC")).cast(pa.timestamp(unit, zone)),
        "stage": pa.array(["fine"] * len(requests), pa.string()),
        "scene": pa.array(["feed"] * len(requests), pa.string()),
        "state": pa.array(np.stack([number, -number], 1).astype(np.float32).tolist(), pa.list_(pa.float32())),
        "mu": pa.array([MU.tolist()] * len(requests), pa.list_(pa.float32())),
        "sigma": pa.array([SIGMA.tolist()] * len(requests), pa.list_(pa.float32())),
        "action": pa.array([[float("nan"), 0.0] if fault[row] == "action" else action[row].tolist() for row in rows],
                           pa.list_(pa.float32())),
        "action_logp": pa.array(density, pa.float64()),
        "explored": pa.array([kind != "mean" for kind in fault], pa.bool_()),
        "feedback": pa.array(feedback, kind),
        "last": pa.array([request["last"] for request in requests], pa.bool_()),
        "position": pa.array([request["position"] for request in requests], pa.int64()),
    }
    absent = {name for names in options["absent"] for name in names.split(", ")}
    if "action_logp" in absent:
        absent -= {"mu", "sigma"}
    return pa.table({name: column for name, column in columns.items() if name not in absent})


def ingest_here(config: IngestConfig, seed: int = 0, partitions: int = 3, **limits: int) -> IngestResult:
    """The steps of ingest in this process; tasks come in any order.

    Args:
        limits: `budget` and `row_group` of the exchange.
    """
    root, rng = Path(config.output), np.random.default_rng(seed)
    for directory in (QUARANTINE, EXCHANGED):
        (root / directory).mkdir(parents=True)
    source = open_log(config.logs, config.vocabulary)
    listing, unreadable = pieces(source)
    exchange = Exchange(source=source, filesystem=pafs.LocalFileSystem(), root=str(root), config=config,
                        log_end=log_end(source, listing), partitions=partitions, **limits)
    for place in rng.permutation(len(listing)):
        exchange.read([listing[place]])
    for number in rng.permutation(exchange.key_partitions):
        exchange.compare(int(number))
    for number in rng.permutation(partitions):
        exchange.deduplicate(int(number))
    for number in rng.permutation(partitions):
        exchange.cut(int(number))
    return _close(pafs.LocalFileSystem(), str(root), source.vocabulary, listing, unreadable, config, "key")


def _words(ids: list[Any]) -> list[str | None]:
    return [None if value is None else str(value) for value in ids]
