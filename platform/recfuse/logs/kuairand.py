"""Reads KuaiRand (Gao et al., CIKM 2022, doi 10.1145/3511808.3557624) in its official file and column names.

The public release is CSV; the same columns as Parquet are read as well. Choices made here:

- CSV may be compressed (`.csv.gz`, `.csv.zst`, `.csv.bz2`); files that are not read are named.
- A row whose `duration_ms` is not positive is quarantined. In KuaiRand-Pure those 1.6% are pictures, for which neither
  a long view nor a share of the video watched means anything.
- Statistics of a video over the whole month (`video_features_statistic_*`, `item_features`) are not read: as features
  they would carry the future into the past.
- The release gives no time for the single items of a user's earlier sequence, only that of the last one. Where that is
  not before the user's first row the sequence could hold the future, so it is left out.
- What the sequences tell beyond their order becomes features of users and items: how much was watched before the logs,
  and which share of it for long or with a like. Items count only sequences that end before the first row of all logs,
  so that nothing of the logged days is in them.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from recfuse.config import require
from recfuse.logs.account import Account
from recfuse.logs.delimited import WRONG_COLUMNS, files_beneath, is_table, read_rows, together
from recfuse.logs.exposures import LABELS, ROWS_SCHEMA, Exposures, sort_rows
from recfuse.runtime.locations import Location, locate

logger = logging.getLogger("recfuse")

_LABEL_COLUMNS = {label: label if label == "long_view" else f"is_{label}" for label in LABELS}
_LOG_COLUMNS = ("user_id", "video_id", "date", "hourmin", "time_ms", "play_time_ms", "duration_ms", "tab",
                *_LABEL_COLUMNS.values())
_USER_COUNTS = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
_ITEM_CATEGORIES = ("author_id", "video_type", "upload_dt", "upload_type", "music_id", "music_type")
_ITEM_SIZES = ("server_width", "server_height")
_PREFIXES = ("log_standard_", "video_features_basic", "user_features", "user_sequences")
_PAST_LISTS = {"long_view": "long_watch_seq", "like": "like_seq"}
# Ratios over few views are drawn to the pooled ratio by this many views' worth.
_USER_PRIOR, _ITEM_PRIOR = 5.0, 20.0


def read_exposures(path: str | Path) -> Exposures:
    """The exposures of a KuaiRand directory.

    Args:
        path: directory with `log_standard_*`, `user_features*`, `video_features_basic*` and, where there is one,
            `user_sequences*` (the items before the logs); each `.parquet` or `.csv`.

    Returns:
        Exposures: `scene` is `tab` as a string, `watch_time` is `play_time_ms` in seconds. Every row is kept or in
        the quarantine with its reason.

    Raises:
        InvalidFieldError: a file or a column is missing, or a file cannot be read.
    """
    directory = locate(path, "exposures")
    require(directory.kind() == pafs.FileType.Directory, "exposures", str(path), "a directory with the KuaiRand files")
    raw, broken = _read_files(directory, "log_standard_", _LOG_COLUMNS)
    log, reasons = _check(raw)
    kept, duplicates = _split_duplicates(log, np.flatnonzero(reasons == ""))
    reasons[duplicates] = _duplicate_reasons(log, kept, duplicates)
    bad = np.flatnonzero(reasons != "")
    quarantine = pa.concat_tables(
        [raw.take(pa.array(bad)).append_column("reason", pa.array(reasons[bad], pa.string())),
         *([pa.table({"row": broken, "reason": [WRONG_COLUMNS] * len(broken)})] if broken else [])],
        promote_options="default")
    names, counts = np.unique(reasons[bad], return_counts=True)
    quarantined = {str(name): int(count) for name, count in zip(names, counts, strict=True)}
    account = Account(rows_in=raw.num_rows + len(broken), kept=len(kept), notes=_not_read(directory),
                      quarantined=quarantined | ({WRONG_COLUMNS: len(broken)} if broken else {}))
    account.require(1.0, "exposures")
    rows = _rows(log, kept)
    items = _items(_read_files(directory, "video_features_basic", ("video_id", "video_duration", "tag"))[0], log, kept)
    users = _users(_read_files(directory, "user_features", ("user_id",))[0])
    sequences = _sequences(directory, rows)
    if sequences.num_rows:
        users, items = _past_of_users(users, sequences), _past_of_items(items, sequences, rows)
    logger.info("KuaiRand exposures of %s: %s", directory.uri, account)
    return Exposures(rows=rows, users=users, items=items, history=_history(sequences), account=account,
                     quarantine=quarantine)


def _read_files(directory: Location, prefix: str, columns: Sequence[str],
                optional: bool = False) -> tuple[pa.Table, list[str]]:
    """The rows of all files whose names begin so, and the texts of rows with a wrong number of columns."""
    infos = [info for info in files_beneath(directory) if info.base_name.startswith(prefix)
             and is_table(info.base_name) and info.size != 0]
    if optional and not infos:
        return pa.table({name: pa.array([], pa.int64()) for name in columns}), []
    require(bool(infos), "exposures", directory.uri, f"a directory with {prefix}*.parquet or {prefix}*.csv")
    tables, broken = [], list[str]()
    for info in infos:
        rows = read_rows(directory, info)
        for name in columns:
            require(name in rows.table.column_names, f"{info.base_name}: column {name}", rows.table.column_names,
                    f"a column {name}")
        if rows.broken:
            logger.warning("%s: %d rows with %s", info.base_name, len(rows.broken), WRONG_COLUMNS)
        tables.append(rows.table)
        broken += rows.broken
    return together(tables), broken


def _not_read(directory: Location) -> tuple[str, ...]:
    """What lies in the directory and is not read, in a sentence."""
    names = [info.base_name for info in files_beneath(directory) if info.size == 0 or not (
        info.base_name.startswith(_PREFIXES) and is_table(info.base_name))]
    return (f"files that are not read: {', '.join(names)}",) if names else ()


def _check(raw: pa.Table) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The log's columns as int64[N], and why a row is impossible: object[N], empty where it is fine."""
    reasons = np.full(raw.num_rows, "", dtype=object)

    def refuse(bad: np.ndarray, reason: str) -> None:
        reasons[bad & (reasons == "")] = reason

    log = {}
    for name in _LOG_COLUMNS:
        log[name], valid = _integers(raw[name])
        refuse(~valid, f"{name} is null or no integer")
    for name in ("user_id", "video_id", "time_ms", "play_time_ms", "tab"):
        refuse(log[name] < 0, f"{name} < 0")
    for name in _LABEL_COLUMNS.values():
        refuse((log[name] != 0) & (log[name] != 1), f"{name} is not 0 or 1")
    refuse(log["duration_ms"] <= 0, "duration_ms ≤ 0")
    month, day = log["date"] // 100 % 100, log["date"] % 100
    refuse((log["date"] < 19000101) | (month < 1) | (month > 12) | (day < 1) | (day > 31), "date is not yyyymmdd")
    refuse((log["hourmin"] < 0) | (log["hourmin"] > 2359), "hourmin is not in 0..2359")
    return log, reasons


def _integers(column: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """int64[N] (exact, −1 where invalid) and valid: bool[N], of integers, whole floats or digits in strings."""
    if pa.types.is_floating(column.type):
        values = column.to_numpy(zero_copy_only=False).astype(np.float64)
        valid = np.isfinite(values) & (np.abs(values) < 2.0**53)
        valid[valid] = values[valid] == np.round(values[valid])
        return np.where(valid, values, -1).astype(np.int64), valid
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        digits = pc.match_substring_regex(column, r"^-?[0-9]{1,18}$")
        column = pc.if_else(digits, column, None)
    elif not (pa.types.is_integer(column.type) or pa.types.is_boolean(column.type)):
        column = pa.chunked_array([pa.nulls(len(column), pa.int64())])
    column = column.cast(pa.int64())
    valid = pc.is_valid(column).to_numpy()
    return pc.fill_null(column, -1).to_numpy(), valid


def _split_duplicates(log: dict[str, np.ndarray], fine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of the rows with one (user, video, time) the one played longest is kept, whatever the order in the files."""
    # The last key of lexsort is the first to sort by; every column takes part, so that ties are equal rows.
    rest = [log[name][fine] for name in _LOG_COLUMNS if name != "play_time_ms"]
    key = ("time_ms", "video_id", "user_id")
    order = fine[np.lexsort([*rest, -log["play_time_ms"][fine], *(log[name][fine] for name in key)])]
    again = np.ones(len(order), dtype=bool)
    again[:1] = False
    for name in key:
        again[1:] &= log[name][order][1:] == log[name][order][:-1]
    return order[~again], order[again]


def _duplicate_reasons(log: dict[str, np.ndarray], kept: np.ndarray, duplicates: np.ndarray) -> np.ndarray:
    """Tells a copy of the kept row from a row that only shares its (user, video, time)."""
    keys = np.stack([log[name] for name in ("user_id", "video_id", "time_ms")], axis=1)
    ranks = np.unique(keys[np.concatenate([kept, duplicates])], axis=0, return_inverse=True)[1].reshape(-1)
    original = np.empty(len(kept), dtype=np.int64)
    original[ranks[: len(kept)]] = kept
    original = original[ranks[len(kept):]]
    same = np.ones(len(duplicates), dtype=bool)
    for name in _LOG_COLUMNS:
        same &= log[name][original] == log[name][duplicates]
    return np.where(same, "full duplicate", "duplicate (user_id, video_id, time_ms)").astype(object)


def _rows(log: dict[str, np.ndarray], kept: np.ndarray) -> pa.Table:
    columns = {
        "user_id": log["user_id"][kept],
        "item_id": log["video_id"][kept],
        "scene": pa.array(log["tab"][kept]).cast(pa.string()),
        "ts": pa.array(log["time_ms"][kept] * 1000).cast(pa.timestamp("us", "UTC")),
        "day": log["date"][kept].astype(np.int32),
        "hour": (log["hourmin"][kept] // 100).astype(np.int8),
        "watch_time": (log["play_time_ms"][kept] / 1000).astype(np.float32),
        **{label: log[name][kept].astype(np.int8) for label, name in _LABEL_COLUMNS.items()},
    }
    return sort_rows(pa.table({name: columns[name] for name in ROWS_SCHEMA.names}, schema=ROWS_SCHEMA))


def _users(raw: pa.Table) -> pa.Table:
    """Ranges, flags and encrypted features are categories; the plain counts are numbers."""
    columns = {}
    for name in raw.column_names:
        if name in _USER_COUNTS:
            columns[name] = raw[name].cast(pa.float32())
        elif name == "user_id":
            columns[name] = raw[name].cast(pa.int64())
        else:
            columns[name] = _category(raw[name])
    return _unique(pa.table(columns), "user_id")


def _items(raw: pa.Table, log: dict[str, np.ndarray], kept: np.ndarray) -> pa.Table:
    """Items of the feature file, and those that only the rows know (their features are null).

    `duration` is the file's, else that of the rows, else NaN (pictures).
    """
    item_ids = np.asarray(raw["video_id"].cast(pa.int64()))
    shown, first = np.unique(log["video_id"][kept], return_index=True)
    features = {name: _category(raw[name]) for name in _ITEM_CATEGORIES if name in raw.column_names}
    # Several tags come as "20,43"; the first is the main one.
    features["tag"] = pc.list_element(pc.split_pattern(pc.fill_null(raw["tag"].cast(pa.string()), ""), ","), 0)
    features |= {name: raw[name].cast(pa.float32()) for name in _ITEM_SIZES if name in raw.column_names}
    known = pa.table({"item_id": pa.array(item_ids), **features})
    extra = pa.table({"item_id": pa.array(shown[~np.isin(shown, item_ids)])})
    items = _unique(pa.concat_tables([known, extra], promote_options="default"), "item_id")
    duration = _lookup(items["item_id"].to_numpy(), item_ids, _floats(raw["video_duration"]))
    logged = _lookup(items["item_id"].to_numpy(), shown, log["duration_ms"][kept][first].astype(np.float64))
    seconds = np.where(np.isfinite(duration), duration, logged) / 1000
    return items.append_column("duration", pa.array(seconds.astype(np.float32)))


def _sequences(directory: Location, rows: pa.Table) -> pa.Table:
    """The users' sequences that end before the user's first row, one a user."""
    raw, _ = _read_files(directory, "user_sequences", ("user_id", "last_time_ms", "watch_seq"), optional=True)
    first = rows.group_by("user_id").aggregate([("ts", "min")])
    first_ms = first["ts_min"].cast(pa.int64()).to_numpy() / 1000
    starts = _lookup(np.asarray(raw["user_id"]), np.asarray(first["user_id"]), first_ms)
    earlier = ~(np.asarray(raw["last_time_ms"]) >= starts)  # The start is NaN for a user without rows.
    dropped = int((~earlier).sum())
    if dropped:
        logger.info("KuaiRand history: %d users' sequences reach into the logs and are left out", dropped)
    return _unique(raw.filter(pa.array(earlier)), "user_id")


def _history(sequences: pa.Table) -> pa.Table:
    lists = sequences["watch_seq"] if sequences.num_rows else pa.array([], pa.list_(pa.int64()))
    return pa.table({"user_id": sequences["user_id"], "items": lists.cast(pa.list_(pa.int64()))})


def _past_of_users(users: pa.Table, sequences: pa.Table) -> pa.Table:
    """`user_past_views` and the ratios that the sequences know; NaN for users without a sequence."""
    keys = sequences["user_id"].to_numpy()
    columns = _past({name: _lengths(sequences[name]) for name in _list_columns(sequences)}, _USER_PRIOR)
    if "history_len" in sequences.column_names:  # The lists themselves end at 50.
        columns["past_views"] = _floats(sequences["history_len"])
    for name, values in columns.items():
        aligned = _lookup(users["user_id"].to_numpy(), keys, values)
        users = users.append_column(f"user_{name}", pa.array(aligned.astype(np.float32)))
    return users


def _past_of_items(items: pa.Table, sequences: pa.Table, rows: pa.Table) -> pa.Table:
    """`item_past_views` and the ratios, over the sequences that end before the first of all rows."""
    begin = rows["ts"].cast(pa.int64()).to_numpy().min(initial=np.iinfo(np.int64).max) / 1000
    before = sequences.filter(pa.array(sequences["last_time_ms"].to_numpy() < begin))
    keys = items["item_id"].to_numpy()
    columns = _past({name: _occurrences(before[name], keys) for name in _list_columns(before)}, _ITEM_PRIOR)
    for name, values in columns.items():
        items = items.append_column(f"item_{name}", pa.array(values.astype(np.float32)))
    return items


def _list_columns(sequences: pa.Table) -> list[str]:
    return ["watch_seq", *(name for name in _PAST_LISTS.values() if name in sequences.column_names)]


def _past(counts: dict[str, np.ndarray], prior: float) -> dict[str, np.ndarray]:
    """Views, and the ratio of each other list to them, smoothed: (count + prior · pooled ratio) / (views + prior).

    The lists are cut one by one at the last 50, so a ratio may exceed 1.
    """
    views = counts["watch_seq"]
    columns = {"past_views": views}
    for label, name in _PAST_LISTS.items():
        if name in counts:
            pooled = counts[name].sum() / max(views.sum(), 1.0)
            columns[f"past_{label}_ratio"] = (counts[name] + prior * pooled) / (views + prior)
    return columns


def _lengths(lists: pa.ChunkedArray) -> np.ndarray:
    return pc.fill_null(pc.list_value_length(lists), 0).to_numpy().astype(np.float64)


def _occurrences(lists: pa.ChunkedArray, keys: np.ndarray) -> np.ndarray:
    """float64[len(keys)]: how often each of the sorted keys occurs in the lists."""
    values = pc.list_flatten(lists).to_numpy()
    place = np.searchsorted(keys, values).clip(max=len(keys) - 1)
    return np.bincount(place[keys[place] == values], minlength=len(keys)).astype(np.float64)


def _category(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Strings stay; numbers become int64 (whole floats are how CSV writes integers with gaps)."""
    if not pa.types.is_integer(column.type) and not pa.types.is_floating(column.type):
        return column.cast(pa.string())
    values, valid = _integers(column)
    return pa.chunked_array([pa.array(values, mask=~valid)])


def _floats(column: pa.ChunkedArray) -> np.ndarray:
    return column.cast(pa.float64()).to_numpy(zero_copy_only=False)


def _unique(table: pa.Table, key: str) -> pa.Table:
    """The first row of every key, in the order of the key."""
    first = np.unique(np.asarray(table[key]), return_index=True)[1]
    return table.take(pa.array(first))


def _lookup(wanted: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """float64[len(wanted)]: the value at each wanted key, NaN where there is none."""
    result = np.full(len(wanted), np.nan)
    if len(keys):
        order = np.argsort(keys, kind="stable")
        place = np.minimum(np.searchsorted(keys[order], wanted), len(keys) - 1)
        hit = keys[order][place] == wanted
        result[hit] = values[order][place[hit]]
    return result
