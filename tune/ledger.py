"""One row per finished trial, appended as it finishes: JSON lines, and the same as Parquet."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]
JSONL, PARQUET, EARLIER = "trials.jsonl", "trials.parquet", "earlier.jsonl"
FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


class Ledger:
    """The trials of a sweep, by their keys.

    Rows are flat: `key`, `sweep`, `number`, `status` (finished, stopped by the scheduler, failed), `reason`, `seconds`,
    then the choices as `config.FIELD`, then the metrics. A line that a crash cut off is dropped, and its trial runs
    again.

    Args:
        sweep: names config and data; rows of another one do not compare, and `set_aside` moves them to `earlier.jsonl`.
    """

    def __init__(self, directory: Path, sweep: str) -> None:
        self._jsonl, self._parquet = directory / JSONL, directory / PARQUET
        self._earlier, self._sweep = directory / EARLIER, sweep
        self._other: list[Row] = []
        self.rows: list[Row] = []
        if self._jsonl.is_file():
            whole = self._jsonl.read_bytes().rpartition(b"\n")[0]
            rows = [json.loads(line) for line in whole.splitlines()]
            self.rows = [row for row in rows if row["sweep"] == sweep]
            self._other = [row for row in rows if row["sweep"] != sweep]

    def set_aside(self) -> None:
        """Leaves only whole lines of this sweep in the files."""
        self._jsonl.parent.mkdir(parents=True, exist_ok=True)
        if self._other:
            with self._earlier.open("a") as file:
                file.writelines(json.dumps(row) + "\n" for row in self._other)
            self._other = []
        self._replace(self.rows)

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
        temporary = self._jsonl.with_suffix(".writing")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        os.replace(temporary, self._jsonl)
        self._write_parquet()

    def _write_parquet(self) -> None:
        """Parquet has no appending: the file is replaced, which for a row per trial costs milliseconds."""
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        columns = {name: _column([row.get(name) for row in self.rows]) for name in names}
        temporary = self._parquet.with_suffix(".writing")
        pq.write_table(pa.table(columns) if names else pa.table({"key": pa.array([], pa.string())}), temporary)
        os.replace(temporary, self._parquet)


def _column(values: list[Any]) -> pa.Array:
    """Numbers as float64 where all are, the rest as text."""
    known = [value for value in values if value is not None]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in known):
        return pa.array([None if value is None else float(value) for value in values], pa.float64())
    return pa.array([value if value is None or isinstance(value, str) else json.dumps(value) for value in values],
                    pa.string())
