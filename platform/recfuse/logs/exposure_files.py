"""Exposures as plain Parquet, on any filesystem that pyarrow knows: how a team brings its own scenes.

Beneath one path or URI lie `rows/` (or `rows.parquet`), `users.parquet`, `items.parquet` and, where something is known
from before the rows, `history.parquet` (`user_id`, `items`: a list of ids). Rows have `user_id`, `item_id`, `scene`,
`ts` and label columns; `day` and `hour` are taken from `ts` (UTC) where they are missing. Ids are integers or text
(recfuse.logs.ids); of two rows about one user or item the last counts. A row without an id, scene or time, or with a
label that is neither 0 nor 1 where its scene has that task, is quarantined and counted; so is an order without its
click, unless it is repaired.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recfuse.config import InvalidFieldError, require
from recfuse.logs.account import Account
from recfuse.logs.columns import decoded, floats, is_number
from recfuse.logs.exposures import Exposures, Known, sort_rows
from recfuse.logs.ids import ids_of, read_keys
from recfuse.logs.orders import ORPHAN_REASON, Orphan
from recfuse.logs.source import read_parquet
from recfuse.runtime.locations import locate

logger = logging.getLogger("recfuse")
_KEYS = ("user_id", "item_id")
_TYPES = {"scene": pa.string(), "ts": pa.timestamp("us", "UTC")}


def read_exposures(path: str, labels: Sequence[str], orphan: Orphan = "quarantine", *, numbers: Collection[str] = (),
                   tasks: Mapping[str, Collection[str]] | None = None) -> Exposures:
    """The exposures beneath a path or URI; ids become their keys (recfuse.logs.ids).

    Args:
        labels: columns that must be 0 or 1; a click, or without one the first of them, puts an item into a history.
        orphan: what to do with an order without its click, where both are labels.
        numbers: columns that must be ≥ 0, where they are there.
        tasks: scene → the labels and numbers that its rows have, all others are 0 there, as is what no row of the
            scene has; absent, all rows must have all.

    Raises:
        InvalidFieldError: a file or a column is missing or of the wrong type, or there are no rows.
    """
    raw = _required(path, ("rows", "rows.parquet"))
    rows, reasons = _keys(raw)
    logged = (*labels, *(name for name in numbers if name in rows.column_names))
    having = {name: _having(rows, name, tasks) for name in logged}
    for name, mask in having.items():
        rows = _checked(rows, reasons, name, name in labels, mask)
    if {"click", "order"} <= set(labels):
        rows = _ordered(rows, reasons, orphan, having["click"] & having["order"])
    bad = np.flatnonzero(reasons != "")
    column = "reason" if "reason" not in raw.column_names else "quarantine_reason"
    quarantine = raw.take(pa.array(bad)).append_column(column, pa.array(reasons[bad].tolist(), pa.string()))
    kept = sort_rows(rows.take(pa.array(np.flatnonzero(reasons == ""))))
    names, counts = np.unique(reasons[bad].astype(str), return_counts=True)
    account = Account(rows_in=raw.num_rows, kept=kept.num_rows,
                      quarantined=dict(zip(names.tolist(), counts.tolist(), strict=True)))
    commonest = f"; the commonest fault is {names[counts.argmax()]}" if len(names) else ""
    require(kept.num_rows > 0, f"{path}/rows", kept.num_rows, f"at least one row that is not quarantined{commonest}")
    opened = labels[0] if labels and "click" not in labels else "click"
    return Exposures(**vars(_keyed(read_known(path))), rows=kept, account=account, quarantine=quarantine,
                     opened=opened)


def read_known(path: str) -> Known:
    """The items, users and histories beneath a path or URI, without the rows; ids as they are written there.

    Raises:
        InvalidFieldError: a file or its id is missing or of the wrong type.
    """
    return Known(users=_described(path, "user"), items=_described(path, "item"), history=_history(path))


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


def _described(path: str, what: str) -> pa.Table:
    """The table of users or items: each id once, the last row of it, and no row without an id."""
    name, field = f"{what}_id", f"{what}s.{what}_id"
    table = _decoded(_required(path, (f"{what}s.parquet",)))
    require(name in table.column_names, field, table.column_names, f"a column {name}")
    keys, valid = read_keys(table[name], field)
    _, last = np.unique(keys[::-1], return_index=True)
    chosen = np.zeros(len(keys), bool)
    chosen[len(keys) - 1 - last] = True
    chosen &= valid
    if left := int((~chosen).sum()):
        logger.info("%ss: %d rows are left out, without an id or with that of a later row", what, left)
        table = table.filter(pa.array(chosen))
    return table.set_column(table.column_names.index(name), name, ids_of(table[name], field))


def _history(path: str) -> pa.Table:
    """`user_id` and `items`, a list for each user with one; nulls in it count nothing, and lists of one user join."""
    table = _read(path, ("history.parquet",))
    if table is None:
        return pa.table({"user_id": pa.array([], pa.int64()), "items": pa.array([], pa.list_(pa.int64()))})
    for name in ("user_id", "items"):
        require(name in table.column_names, f"history.{name}", table.column_names, f"a column {name}")
    lists = decoded(table["items"]).combine_chunks()
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_null)
    require(any(test(lists.type) for test in kinds), "history.items", str(lists.type), "lists of item ids")
    if pa.types.is_null(lists.type):
        lists = lists.cast(pa.list_(pa.int64()))
    users = ids_of(table["user_id"], "history.user_id").combine_chunks()
    items = ids_of(pa.chunked_array([pc.list_flatten(lists)]), "history.items").combine_chunks()
    pairs = pa.table({"user_id": users.take(pc.list_parent_indices(lists)), "items": items})
    known = pc.and_(*(pa.array(read_keys(pairs[name], f"history.{name}")[1]) for name in pairs.column_names))
    joined = pairs.filter(known).group_by("user_id", use_threads=False).aggregate([("items", "list")])
    return joined.rename_columns({"items_list": "items"}).select(["user_id", "items"])


def _keyed(known: Known) -> Known:
    """The same with the keys of the ids, int64."""
    tables = {}
    for what, table in (("user", known.users), ("item", known.items)):
        name = f"{what}_id"
        keys = pa.array(read_keys(table[name], f"{what}s.{name}")[0])
        tables[f"{what}s"] = table.set_column(table.column_names.index(name), name, keys)
    lists = known.history["items"].combine_chunks()
    items = read_keys(pa.chunked_array([lists.values]), "history.items")[0]
    users = read_keys(known.history["user_id"], "history.user_id")[0]
    history = pa.table({"user_id": users, "items": pa.ListArray.from_arrays(lists.offsets, pa.array(items))})
    return Known(**tables, history=history)


def _decoded(table: pa.Table) -> pa.Table:
    """The same rows without dictionaries and other ways of writing text and numbers."""
    return pa.table({name: decoded(column) for name, column in zip(table.column_names, table.columns, strict=True)})


def _keys(raw: pa.Table) -> tuple[pa.Table, np.ndarray]:
    """Rows with their keys in the right types and `day`, `hour`; and why a row is bad: object[N]."""
    reasons = np.full(raw.num_rows, "", object)
    for name in (*_KEYS, *_TYPES):
        require(name in raw.column_names, f"rows.{name}", raw.column_names, f"a column {name}")
    rows = _decoded(raw)
    for name in _KEYS:
        keys, valid = read_keys(rows[name], f"rows.{name}")
        reasons[(reasons == "") & ~valid] = f"{name} is null"
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(keys))
    for name, kind in _TYPES.items():
        given = rows.schema.field(name).type
        require(not pa.types.is_integer(given) or kind == pa.string(), f"rows.{name}", str(given), str(kind))
        try:
            # Digits beyond microseconds are cut.
            column = rows[name].cast(kind, safe=not pa.types.is_timestamp(given))
        except pa.ArrowException:
            raise InvalidFieldError(f"rows.{name}", str(given), str(kind)) from None
        missing = pc.is_null(column).to_numpy()
        reasons[(reasons == "") & missing] = f"{name} is null"
        rows = rows.set_column(rows.column_names.index(name), name, column)
    day, hour = pc.strftime(rows["ts"], "%Y%m%d").cast(pa.int32()), pc.hour(rows["ts"]).cast(pa.int8())
    return _or_given(_or_given(rows, "day", day), "hour", hour), reasons


def _or_given(rows: pa.Table, name: str, of_time: pa.ChunkedArray) -> pa.Table:
    """With `day` or `hour` as the rows have it, numbers or a date; where they have none, that of their time."""
    if name not in rows.column_names:
        return rows.append_column(name, of_time)
    given = rows[name]
    if name == "day" and pa.types.is_temporal(given.type):
        given = pc.strftime(given, "%Y%m%d")
    elif name == "day" and not is_number(given.type):
        given = pc.replace_substring(given.cast(pa.string()), "-", "")
    try:
        column = pc.coalesce(given.cast(of_time.type), of_time)
    except pa.ArrowException:
        allowed = "integers yyyymmdd, or dates" if name == "day" else "integers from 0 to 23"
        raise InvalidFieldError(f"rows.{name}", str(rows.schema.field(name).type), allowed) from None
    return rows.set_column(rows.column_names.index(name), name, column)


def _having(rows: pa.Table, name: str, tasks: Mapping[str, Collection[str]] | None) -> NDArray[np.bool_]:
    """bool[N]: the rows whose scene has this label or number."""
    require(name in rows.column_names, f"rows.{name}", rows.column_names, f"a label column {name}")
    if tasks is None:
        return np.ones(rows.num_rows, bool)
    logged = pc.unique(rows["scene"].filter(pc.is_valid(rows[name]))).to_pylist()
    scenes = [scene for scene, names in tasks.items() if name in names and scene in logged]
    return pc.is_in(rows["scene"], pa.array(scenes, pa.string())).to_numpy()


def _checked(rows: pa.Table, reasons: np.ndarray, name: str, is_label: bool, having: NDArray[np.bool_]) -> pa.Table:
    """With a label as 0 and 1, or a number, and 0 in the rows that need none; adds reasons."""
    kind = rows.schema.field(name).type
    fits = is_number(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)
    require(fits, f"rows.{name}", str(kind), "numbers")
    values = pc.fill_null(floats(rows[name]), float("nan")).to_numpy()
    bad = ~np.isin(values, (0.0, 1.0)) if is_label else ~((values >= 0) & np.isfinite(values))
    reasons[(reasons == "") & having & bad] = f"{name} is not 0 or 1" if is_label else f"{name} is not a number ≥ 0"
    known = np.where(having & ~bad, values, 0.0)
    column = pa.array(known).cast(pa.int8() if is_label else kind if pa.types.is_floating(kind) else pa.float64())
    return rows.set_column(rows.column_names.index(name), name, column)


def _ordered(rows: pa.Table, reasons: np.ndarray, orphan: Orphan, having: NDArray[np.bool_]) -> pa.Table:
    """With the clicks that orders imply, or a reason for their rows, in the rows that have both."""
    clicks = rows["click"].to_numpy()
    orphaned = (rows["order"].to_numpy() == 1) & (clicks == 0) & (reasons == "") & having
    if orphan == "quarantine":
        reasons[orphaned] = ORPHAN_REASON
        return rows
    repaired = pa.array(np.where(orphaned, 1, clicks).astype(np.int8))
    return rows.set_column(rows.column_names.index("click"), "click", repaired)
