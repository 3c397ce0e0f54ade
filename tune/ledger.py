"""One row per finished trial, appended as it finishes: JSON lines, and the same as Parquet."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recfuse.config import InvalidFieldError, require
from recfuse.learning.resume import changes, write_atomically

logger = logging.getLogger("recfuse")
Row = dict[str, Any]
JSONL, PARQUET, EARLIER, IDENTITY = "trials.jsonl", "trials.parquet", "earlier.jsonl", "sweep.json"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


class Ledger:
    """The trials of a sweep, by their keys.

    Rows are flat: `key`, `sweep`, `number`, `status` (finished, stopped by the scheduler, failed), `reason`, `seconds`,
    then the choices as `config.FIELD`, then the metrics. A line that a crash cut off is dropped, and its trial runs
    again.

    Args:
        sweep: names config and data; rows of another one do not compare, and `set_aside` moves them to `earlier.jsonl`,
            from which a sweep takes its own up again.
    """

    def __init__(self, directory: Path, sweep: str) -> None:
        self._jsonl, self._parquet = directory / JSONL, directory / PARQUET
        self._earlier, self._sweep = directory / EARLIER, sweep
        self._identity = directory / IDENTITY
        rows = {(row["sweep"], row["key"]): row for file in (self._earlier, self._jsonl) for row in _whole_lines(file)}
        self.rows = [row for row in rows.values() if row["sweep"] == sweep]
        self._other = [row for row in rows.values() if row["sweep"] != sweep]

    def set_aside(self, identity: Mapping[str, Any] | None = None) -> None:
        """Leaves only whole lines of this sweep in the files.

        Args:
            identity: what the sweep's name stands for, plain values; kept in `sweep.json`, by which a later sweep tells
                what has changed.
        """
        self._jsonl.parent.mkdir(parents=True, exist_ok=True)
        if self._other or self._earlier.is_file():
            _write(self._earlier, [*self._other, *self.rows])  # a crash between the two files loses no row
            self._replace(self.rows)
            _write(self._earlier, self._other)
        else:
            self._replace(self.rows)
        if identity is not None:
            self._say_changes(identity)
            write_atomically(self._identity, json.dumps(identity, indent=1, sort_keys=True))

    def _say_changes(self, identity: Mapping[str, Any]) -> None:
        try:
            before = json.loads(self._identity.read_text())
            lines = changes(before, identity)
        except (OSError, ValueError, AttributeError):
            lines = ["an earlier version has written them"]
        if lines and self._other:
            logger.warning("sweep: %d trials of another sweep are kept in %s and count for nothing here: %s",
                           len(self._other), self._earlier, "; ".join(lines))

    @property
    def keys(self) -> set[str]:
        """Of the trials that need not run again."""
        return {row["key"] for row in self.rows}

    def append(self, row: Mapping[str, Any]) -> None:
        """Adds a row; when this returns it is on the disk."""
        clean = {name: None if isinstance(value, float) and not math.isfinite(value) else value
                 for name, value in {"key": None, "sweep": self._sweep, **row}.items()}
        with self._jsonl.open("a") as file:
            file.write(json.dumps(clean) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.rows.append(clean)
        self._write_parquet()

    def drop(self, status: str) -> None:
        """Forgets the trials that ended so: they run again."""
        self._replace([row for row in self.rows if row["status"] != status])

    def _replace(self, rows: list[Row]) -> None:
        self.rows = rows
        _write(self._jsonl, rows)
        self._write_parquet()

    def _write_parquet(self) -> None:
        """Parquet has no appending: the file is replaced, which for a row per trial costs milliseconds."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        columns = {name: _column([row.get(name) for row in self.rows]) for name in names}
        temporary = self._parquet.with_suffix(".writing")
        pq.write_table(pa.table(columns) if names else pa.table({"key": pa.array([], pa.string())}), temporary)
        os.replace(temporary, self._parquet)


def _whole_lines(file: Path) -> list[Row]:
    """The rows of a file, but for a last line that a crash has cut off.

    Raises:
        InvalidFieldError: another line is no trial.
    """
    if not file.is_file():
        return []
    try:
        rows = [json.loads(line) for line in file.read_bytes().rpartition(b"\n")[0].splitlines()]
    except ValueError as error:
        raise InvalidFieldError("output", str(file), f"trials as JSON lines ({error})") from None
    require(all(isinstance(row, dict) and "key" in row for row in rows), "output", str(file),
            "trials as JSON lines, each with its key")
    return rows


def _write(file: Path, rows: list[Row]) -> None:
    write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))


def _column(values: list[Any]) -> pa.Array:
    """Numbers as float64 where all are, the rest as text."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([value if value is None or isinstance(value, str) else json.dumps(value) for value in values],
                    pa.string())
