"""Exposures as plain Parquet, on any filesystem that pyarrow knows: how a team brings its own scenes.

Beneath one path or URI lie `rows/` (or `rows.parquet`), `users.parquet`, `items.parquet` and, where something is known
from before the rows, `history.parquet` (`user_id`, `items: list<int64>`). Rows have `user_id`, `item_id`, `scene`, `ts`
and label columns; `day` and `hour` are taken from `ts` (UTC) where they are missing. A row without an id, scene or
time, or with a label that is neither 0 nor 1, is quarantined and counted; so is an order without its click, unless it
is repaired.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from recfuse.config import InvalidFieldError, require
from recfuse.logs.account import Account
from recfuse.logs.exposures import Exposures, Known, sort_rows
from recfuse.logs.orders import ORPHAN_REASON, Orphan
from recfuse.logs.source import read_parquet
from recfuse.runtime.locations import locate

_KEYS = {"user_id": pa.int64(), "item_id": pa.int64(), "scene": pa.string(), "ts": pa.timestamp("us", "UTC")}
_HISTORY = pa.schema([pa.field("user_id", pa.int64()), pa.field("items", pa.list_(pa.int64()))])


def read_exposures(path: str, labels: Sequence[str], orphan: Orphan = "quarantine") -> Exposures:
    """The exposures beneath a path or URI.

    Args:
        labels: columns that must be 0 or 1; a click, or without one the first of them, puts an item into a history.
        orphan: what to do with an order without its click, where both are labels.

    Raises:
        InvalidFieldError: a file or a column is missing or of the wrong type, or there are no rows.
    """
    raw = _required(path, ("rows", "rows.parquet"))
    rows, reasons = _keys(raw)
    rows, reasons = _labels(rows, reasons, labels, orphan)
    bad = np.flatnonzero(reasons != "")
    quarantine = raw.take(pa.array(bad)).append_column("reason", pa.array(reasons[bad].tolist(), pa.string()))
    kept = sort_rows(rows.take(pa.array(np.flatnonzero(reasons == ""))))
    require(kept.num_rows > 0, f"{path}/rows", kept.num_rows, "at least one row that is not quarantined")
    names, counts = np.unique(reasons[bad].astype(str), return_counts=True)
    account = Account(rows_in=raw.num_rows, kept=kept.num_rows,
                      quarantined=dict(zip(names.tolist(), counts.tolist(), strict=True)))
    opened = labels[0] if labels and "click" not in labels else "click"
    return Exposures(**vars(read_known(path)), rows=kept, account=account, quarantine=quarantine, opened=opened)


def read_known(path: str) -> Known:
    """The items, users and histories beneath a path or URI, without the rows.

    Raises:
        InvalidFieldError: a file or its id is missing or of the wrong type.
    """
    history = _read(path, ("history.parquet",))
    return Known(users=_keyed(path, "user"), items=_keyed(path, "item"),
                 history=(history or _HISTORY.empty_table()).select(_HISTORY.names).cast(_HISTORY))


def write_exposures(exposures: Exposures, path: str) -> None:
    """Writes what `read_exposures` reads."""
    location = locate(path)
    location.filesystem.create_dir(location.root, recursive=True)
    for name in ("rows", "users", "items", "history"):
        pq.write_table(getattr(exposures, name), f"{location.root}/{name}.parquet", filesystem=location.filesystem)


def _required(path: str, names: Sequence[str]) -> pa.Table:
    table = _read(path, names)
    if table is None:
        raise InvalidFieldError(f"{path}/{names[0]}", "missing", " or ".join(names))
    return table


def _read(path: str, names: Sequence[str]) -> pa.Table | None:
    """The table of the first name that is there."""
    location = locate(path, "exposures")
    for name in names:
        if location.kind(name) != pafs.FileType.NotFound:
            return read_parquet(location.below(name), f"{path}/{name}")
    return None


def _keyed(path: str, what: str) -> pa.Table:
    table = _required(path, (f"{what}s.parquet",))
    require(f"{what}_id" in table.column_names, f"{what}s.{what}_id", table.column_names, f"a column {what}_id")
    kind = table.schema.field(f"{what}_id").type
    require(pa.types.is_integer(kind), f"{what}s.{what}_id", str(kind), "64-bit integers")
    return table


def _keys(raw: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """Rows with their keys in the right types and `day`, `hour`; and why a row is bad: object[N]."""
    reasons = np.full(raw.num_rows, "", object)
    rows = raw
    for name, kind in _KEYS.items():
        require(name in raw.column_names, f"rows.{name}", raw.column_names, f"a column {name}")
        given = raw.schema.field(name).type
        whole = pa.types.is_integer(given)
        fits = whole if kind == pa.int64() else not whole or kind == pa.string()
        require(fits, f"rows.{name}", str(given), str(kind))
        try:
            # Digits beyond microseconds are cut.
            column = raw[name].cast(kind, safe=not pa.types.is_timestamp(given))
        except pa.ArrowException:
            raise InvalidFieldError(f"rows.{name}", str(given), str(kind)) from None
        missing = pc.is_null(column).to_numpy()
        reasons[(reasons == "") & missing] = f"{name} is null"
        rows = rows.set_column(rows.column_names.index(name), name, column)
    if "day" not in rows.column_names:
        day = pc.strftime(rows["ts"], "%Y%m%d").cast(pa.int32())
        rows = rows.append_column("day", day)
    if "hour" not in rows.column_names:
        rows = rows.append_column("hour", pc.hour(rows["ts"]).cast(pa.int8()))
    return rows, reasons


def _labels(rows: pa.Table, reasons: np.ndarray, labels: Sequence[str],
            orphan: Orphan) -> tuple[pa.Table, np.ndarray]:
    for name in labels:
        require(name in rows.column_names, f"rows.{name}", rows.column_names, f"a label column {name}")
        kind = rows.schema.field(name).type
        number = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
        require(number, f"rows.{name}", str(kind), "numbers")
        values = pc.fill_null(rows[name].cast(pa.float64()), float("nan")).to_numpy()
        reasons[(reasons == "") & ~np.isin(values, (0.0, 1.0))] = f"{name} is not 0 or 1"
        column = pa.array(np.isin(values, (1.0,)).astype(np.int8))
        rows = rows.set_column(rows.column_names.index(name), name, column)
    if {"click", "order"} <= set(labels):
        orphaned = (rows["order"].to_numpy() == 1) & (rows["click"].to_numpy() == 0) & (reasons == "")
        if orphan == "quarantine":
            reasons[orphaned] = ORPHAN_REASON
        else:
            click = pa.array(np.where(orphaned, 1, rows["click"].to_numpy()).astype(np.int8))
            rows = rows.set_column(rows.column_names.index("click"), "click", click)
    return rows, reasons
