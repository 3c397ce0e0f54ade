"""The session-log table: Delta tables `sessions` and `events`, to which a decision log is moved exactly once.

Before a commit the new places in the log's segments go to `moving.json` beside these; the commit carries the same
number as a Delta transaction. So after a death in between the table itself says whether the commit took place, and
nothing is moved twice or left out. Many machines may write to the same tables, each from a log of its own.
"""

from __future__ import annotations

import json
import logging
import os
import re
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import yaml

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError, require
from recfuse.logs.schema import CANDIDATES, VOCABULARY_FILE, complete, session_log_schema
from recfuse.logs.source import read_vocabulary
from recfuse.runtime.locations import Location, locate
from recfuse.serving.decision_log import packed_size, unpacked
from recfuse.serving.meanings import Meanings
from recfuse.serving.segments import Places

logger = logging.getLogger("recfuse.serving")
SESSIONS, EVENTS, PROGRESS_FILE = "sessions", "events", "moving.json"
_DELTA_LOG = "_delta_log"
_ESCAPED = re.compile("%[0-9A-Fa-f]{2}")
_LOOK_BACK = 7 * 86_400.0  # seconds before its first event in which an event's decision is looked for
_COMPACT_EVERY = 50  # commits
_EVENT_SCHEMA = pa.schema([
    pa.field("request_id", pa.string()), pa.field("event_id", pa.string()), pa.field("ts", pa.timestamp("us", "UTC")),
    pa.field("status", pa.string()), pa.field("reason", pa.string()), pa.field("row", pa.string()),
])
_CANDIDATES = pa.struct([pa.field(field.name, pa.list_(pa.float32())) if field.name == "predictions" else field
                         for field in CANDIDATES])


@dataclass
class Progress:
    """Of one table: the number of its last commit, and the places in the segments before and after it."""

    version: int = 0
    before: Places = field(default_factory=dict)
    after: Places = field(default_factory=dict)


@dataclass(frozen=True)
class Event:
    """A row of `events`.

    Attributes:
        row: `request_id`, `event_id` and `ts` (seconds since 1970) of it, where they are known.
        status: what became of it; `reason`: why.
        text: of the whole row.
    """

    row: Mapping[str, Any]
    status: str
    reason: str | None
    text: str


class SessionTable:
    """Both Delta tables, with how far one decision log has been moved to them.

    Args:
        directory: of the decision log.
        output: directory or URL of the tables, whose vocabulary lies beside them; the first who opens them writes it.
        vocabulary: of the model that serves; the table's own counts where there is one.
        meanings: of decisions that do not name their vocabulary.
        refuse_unnamed: those of which nothing tells it are misfits.

    Raises:
        InvalidFieldError: the output holds something that is no such table.
    """

    def __init__(self, directory: Path, output: str, vocabulary: Vocabulary, meanings: Meanings,
                 refuse_unnamed: bool = False) -> None:
        self._directory, self._output = directory, locate(output, "output")
        _require_table(self._output)
        self.vocabulary = _table_vocabulary(self._output, vocabulary)
        # A row that does not name its vocabulary was decided by an older server, whose model was mostly this one.
        self._served = vocabulary
        self._meanings, self._refuse_unnamed = meanings, refuse_unnamed
        self._log_id, self._progress = self._load()

    def misfit(self, row: Mapping[str, Any]) -> str | None:
        """Why a decision is no row of `sessions`; None where it is one.

        Its numbers must mean what the table's do, which `Vocabulary.meaning` tells, and its lists have their lengths.
        """
        own, told = self.vocabulary, row.get("vocabulary_hash")
        if told is None and (reason := self._other_meaning(row)):
            return reason
        if told is not None and told != own.meaning:
            known = told == self._served.meaning
            fields = own.differences(self._served) if known else ()
            return f"vocabulary_hash: {told}, not {own.meaning}" + (f" (other {', '.join(fields)})" if fields else "")
        sizes = {"state": own.state_size, **dict.fromkeys(("mu", "sigma", "action"), own.action_size)}
        for name, size in sizes.items():
            if len(row[name]) != size:
                return f"{name}: {len(row[name])} numbers, not {size}"
        candidates = row.get("candidates")
        numbers = own.action_size * len(candidates["item_ids"]) if candidates is not None else 0
        if candidates is not None and len(candidates["predictions"]) != packed_size(numbers):
            return f"candidates.predictions: {len(candidates['predictions'])} characters, not {packed_size(numbers)}"
        return None

    def unnamed(self, row: Mapping[str, Any]) -> bool:
        """Whether nothing tells the vocabulary of a decision: no hash, no bundle, no file beside the log."""
        return row.get("vocabulary_hash") is None and self._meanings.source(row) is None

    def _other_meaning(self, row: Mapping[str, Any]) -> str | None:
        """Why a decision without a hash means something else than the table's; None where it does not, or may not."""
        own, source = self.vocabulary, self._meanings.source(row)
        if source is not None:
            fields = own.differences(source[0])
            return f"vocabulary: {source[1]} has other {', '.join(fields)}" if fields else None
        if fields := own.differences(self._served):
            return f"vocabulary: the model that serves has other {', '.join(fields)}"
        return (f"vocabulary_hash: absent, and neither a bundle {row.get('model_version')} nor {VOCABULARY_FILE} "
                "beside the log tells it" if self._refuse_unnamed else None)

    def places(self, name: str) -> Places:
        """Up to where the log's segments have been moved to the table `name`."""
        return self._progress[name].after

    def places_of_both(self) -> Places:
        """Up to where they have been moved to both tables."""
        sessions, events = self.places(SESSIONS), self.places(EVENTS)
        return {segment: min(place, events.get(segment, 0)) for segment, place in sessions.items()}

    def commit_sessions(self, rows: list[dict[str, Any]], feedback: Mapping[str, Mapping[str, float]],
                        ended: set[str], after: Places) -> None:
        """Adds decisions and moves the places of `sessions`.

        Args:
            rows: decisions, as the log has them.
            feedback: request id → behaviour → value.
            ended: request ids after which the session ended.
        """
        schema = _sessions_schema(self.vocabulary)
        values: dict[str, list[Any]] = {
            **{name: [row.get(name) for row in rows] for name in schema.names},
            "feedback": [feedback[row["request_id"]] for row in rows],
            "last": [row["request_id"] in ended for row in rows], "ts": _microseconds(row["ts"] for row in rows)}
        candidates = _candidates(values.pop("candidates"))
        columns = {name: pa.array(values[name], schema.field(name).type) for name in values}
        self._commit(SESSIONS, complete({**columns, "candidates": candidates}, schema), after)

    def commit_events(self, events: Sequence[Event], after: Places) -> None:
        """Adds events and moves the places of `events`."""
        self._commit(EVENTS, pa.table({
            "request_id": [event.row["request_id"] for event in events],
            "event_id": [event.row.get("event_id") for event in events],
            "ts": pa.array([None if (ts := event.row.get("ts")) is None else _microseconds([ts])[0]
                            for event in events], pa.timestamp("us", "UTC")),
            "status": [event.status for event in events],
            "reason": [event.reason for event in events],
            "row": [event.text for event in events],
        }, schema=_EVENT_SCHEMA), after)

    def decision_times(self, request_ids: set[str], oldest: float) -> dict[str, float]:
        """Request id → seconds since 1970, of those that are in `sessions`; `oldest` is the time of the first event."""
        since = pa.scalar(round((oldest - _LOOK_BACK) * 1e6), pa.int64()).cast(pa.timestamp("us", "UTC"))
        rows = self._read(SESSIONS, ["request_id", "ts"], request_ids, pc.field("ts") >= since)
        seconds = rows["ts"].cast(pa.int64()).to_numpy() / 1e6
        return dict(zip(rows["request_id"].to_pylist(), seconds.tolist(), strict=True))

    def event_keys(self, request_ids: set[str]) -> set[tuple[str, str]]:
        """(request id, event id) of those that are in `events`."""
        rows = self._read(EVENTS, ["request_id", "event_id"], request_ids, pc.scalar(True))
        return set(zip(rows["request_id"].to_pylist(), rows["event_id"].to_pylist(), strict=True))

    def _read(self, name: str, columns: list[str], request_ids: set[str], condition: Any) -> pa.Table:
        table = self._open(name)
        if table is None or not request_ids:
            schema = _EVENT_SCHEMA if name == EVENTS else _sessions_schema(self.vocabulary)
            return schema.empty_table().select(columns)
        wanted = pc.field("request_id").isin(pa.array(sorted(request_ids), pa.string()))
        return table.to_pyarrow_dataset().to_table(columns, filter=wanted & condition)

    def _open(self, name: str) -> Any:
        from deltalake import DeltaTable

        place = self._output.below(name)
        uri, options = place.delta_uri, place.delta_options
        return DeltaTable(uri, storage_options=options) if DeltaTable.is_deltatable(uri, options) else None

    def _commit(self, name: str, rows: pa.Table, after: Places) -> None:
        from deltalake import CommitProperties, Transaction, write_deltalake

        progress = self._progress[name]
        if after == progress.after:
            return
        progress.before, progress.after = progress.after, after
        if rows.num_rows:
            progress.version += 1
            self._save()
            # A table that an earlier version began gets the columns that it lacks.
            place = self._output.below(name)
            write_deltalake(
                place.delta_uri, rows, mode="append", schema_mode="merge", storage_options=place.delta_options,
                commit_properties=CommitProperties(
                    app_transactions=[Transaction(self._log_id, progress.version)],
                    custom_metadata={"recfuse.log": self._log_id, "recfuse.places": json.dumps(after)}))
            if progress.version % _COMPACT_EVERY == 0:
                self._open(name).optimize.compact()
        progress.before = after
        self._save()

    def _load(self) -> tuple[str, dict[str, Progress]]:
        path = self._directory / PROGRESS_FILE
        if not path.exists():
            return uuid.uuid4().hex, {SESSIONS: Progress(), EVENTS: Progress()}
        try:
            state = json.loads(path.read_bytes())
            loaded = {name: Progress(**state[name]) for name in (SESSIONS, EVENTS)}
            assert isinstance(state["app"], str)
        except (OSError, ValueError, KeyError, TypeError, AssertionError):
            # What was moved already is not known without it, and would be moved twice.
            raise InvalidFieldError("decision_log", str(path), "how far the log has been moved, as collect wrote it"
                                    ) from None
        for name, progress in loaded.items():
            if progress.before != progress.after:  # Somebody died between the two, and the table knows where.
                table = self._open(name)
                if table is not None and (table.transaction_version(state["app"]) or 0) >= progress.version:
                    progress.before = progress.after
                else:
                    progress.after, progress.version = progress.before, progress.version - 1
        return state["app"], loaded

    def _save(self) -> None:
        path = self._directory / PROGRESS_FILE
        temporary = path.with_suffix(".writing")
        with open(temporary, "w") as file:
            json.dump({"app": self._log_id, **{name: asdict(each) for name, each in self._progress.items()}}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


def _require_table(output: Location) -> None:
    """Refuses a directory of other things: with the tables in it, what lay there would no longer be read as a log."""
    # deltalake decodes a local path once more than it should.
    readable = "://" in output.uri or _ESCAPED.search(output.uri) is None
    require(readable, "output", output.uri, "a path without % before two hexadecimal digits, for a Delta table")
    require(output.kind() != pafs.FileType.File, "output", output.uri, "a directory")
    if output.kind() == pafs.FileType.NotFound or output.below(SESSIONS).kind(_DELTA_LOG) == pafs.FileType.Directory:
        return
    names = {info.base_name for info in output.filesystem.get_file_info(pafs.FileSelector(output.root))}
    foreign = sorted(names - {VOCABULARY_FILE, f"{VOCABULARY_FILE}.writing", SESSIONS, EVENTS})
    require(not foreign, "output", f"{output.uri}: {', '.join(foreign[:3])}",
            "an empty directory, or one with the tables of a served log")


def _table_vocabulary(output: Location, served: Vocabulary) -> Vocabulary:
    filesystem, target = output.filesystem, output.below(VOCABULARY_FILE).root
    if output.kind(VOCABULARY_FILE) == pafs.FileType.NotFound:
        filesystem.create_dir(output.root, recursive=True)
        with filesystem.open_output_stream(f"{target}.writing") as stream:
            stream.write(yaml.safe_dump(json.loads(json.dumps(served.to_dict())), sort_keys=False).encode())
        filesystem.move(f"{target}.writing", target)
        return served
    vocabulary = read_vocabulary(output.uri, name="output")
    if fields := vocabulary.differences(served):
        logger.error("the table in %s has other %s than the model that serves: its rows go to `events` as misfits; a "
                     "new directory takes them", output.uri, ", ".join(fields))
    return vocabulary


def _sessions_schema(vocabulary: Vocabulary) -> pa.Schema:
    """That of a session log, with predictions in single precision, which holds the same numbers: Delta has no half."""
    schema = session_log_schema(vocabulary)
    return schema.set(schema.get_field_index("candidates"), pa.field("candidates", _CANDIDATES))


def _candidates(rows: list[dict[str, Any] | None]) -> pa.StructArray:
    """The column `candidates` from what decisions say of them."""
    numbers = [np.zeros(0, np.float16) if row is None else unpacked(row["predictions"]) for row in rows]
    ends = np.cumsum([0, *map(len, numbers)])
    flat = np.concatenate([np.zeros(0, np.float16), *numbers]).astype(np.float32)
    predictions = pa.ListArray.from_arrays(pa.array(ends, pa.int32()), pa.array(flat))
    item_ids = [None if row is None else [str(item_id) for item_id in row["item_ids"]] for row in rows]
    seen = [None if row is None or row["seen"] is None else _flags(row["seen"], len(row["item_ids"])) for row in rows]
    return pa.StructArray.from_arrays(
        [pa.array(item_ids, pa.list_(pa.string())), predictions, pa.array(seen, pa.list_(pa.bool_()))],
        fields=list(_CANDIDATES), mask=pa.array([row is None for row in rows], pa.bool_()))


def _flags(positions: list[int], count: int) -> np.ndarray:
    flags = np.zeros(count, bool)
    flags[positions] = True
    return flags


def _microseconds(seconds: Iterable[float]) -> list[int]:
    values: list[int] = (np.array(list(seconds), np.float64) * 1e6).round().astype(np.int64).tolist()
    return values
