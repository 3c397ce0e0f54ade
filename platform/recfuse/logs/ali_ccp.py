"""Reads Ali-CCP (Ma et al., SIGIR 2018): Taobao impressions with click and conversion, in its official layout.

`sample_skeleton_{train,test}.csv`: sample id, click, conversion, index of common features, number of features,
features; `common_features_{train,test}.csv`: index, number of features, features. Features are field, \\x02, feature,
\\x03, value, and divided by \\x01. Neither file has a header. Field 301, the position of the impression, is the scene,
as in the papers on several scenes; 101 is the user, 205 the item. Fields with one value are read, the weighted lists of
earlier behaviour (109_14 and the like) are not. Days as in recfuse.logs.aliexpress: 1 trains, 2 validates, 3 tests.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from recfuse.config import require
from recfuse.logs.aliexpress import TEST, training_day
from recfuse.logs.delimited import find, read_rows
from recfuse.logs.exposures import Exposures
from recfuse.logs.orders import Orphan, order_exposures
from recfuse.runtime.locations import Location, locate

USER, ITEM, SCENE = "101", "205", "301"
USER_FIELDS = ("121", "122", "124", "125", "126", "127", "128", "129")
ITEM_FIELDS = ("206", "207", "216")
CONTEXT_FIELDS = ("508", "509", "702", "853")
_SKELETON = ("sample_id", "click", "order", "common", "count", "features")
_COMMON = ("common", "count", "features")


def read_exposures(path: str | Path, orphan: Orphan = "quarantine") -> Exposures:
    """The exposures of a directory with the four files; a sample without user, item or scene is quarantined.

    Raises:
        InvalidFieldError: a file is missing, unreadable or empty.
    """
    directory = locate(path, "exposures")
    require(directory.kind() == pafs.FileType.Directory, "exposures", str(path), "a directory with the Ali-CCP files")
    broken: list[str] = []
    parts = [_part(directory, name, broken) for name in ("train", "test")]
    table = pa.concat_tables(parts).combine_chunks()
    users = _unique(table, "user_id", [f"user_{name}" for name in USER_FIELDS])
    items = _unique(table, "item_id", [f"item_{name}" for name in ITEM_FIELDS])
    columns = dict(zip(table.column_names, table.columns, strict=True))
    kept = [name for name in columns if not name.startswith(("user_", "item_")) or name in ("user_id", "item_id")]
    return order_exposures({name: columns[name] for name in kept}, users, items, orphan=orphan,
                           broken=broken)


def _part(directory: Location, name: str, broken: list[str]) -> pa.Table:
    """The samples of a part; rows with a wrong number of columns are added to `broken`."""
    samples = _read(directory, f"sample_skeleton_{name}.csv", _SKELETON, broken)
    common = _read(directory, f"common_features_{name}.csv", _COMMON, broken)
    place = pc.index_in(samples["common"], value_set=common["common"])
    shared = pc.fill_null(common["features"].take(place), "")
    # One list of features a sample: its own, then those it shares with the user's other samples.
    features = pc.binary_join_element_wise(samples["features"], shared, "\x01")
    values = {field: _field(features, field)
              for field in (USER, ITEM, SCENE, *USER_FIELDS, *ITEM_FIELDS, *CONTEXT_FIELDS)}
    count = samples.num_rows
    user = pc.fill_null(values[USER], -1)
    day = training_day(user.to_numpy(zero_copy_only=False)) if name == "train" else np.full(count, TEST)
    whole = [pc.is_valid(values[field]) for field in (USER, ITEM, SCENE)]
    complete = pc.and_(pc.and_(whole[0], whole[1]), whole[2])
    return pa.table({
        "user_id": user, "item_id": pc.fill_null(values[ITEM], -1),
        "scene": pc.fill_null(values[SCENE], -1).cast(pa.string()),
        "ts": pa.array(np.arange(count) + day * 10**12).cast(pa.timestamp("us", "UTC")),
        "day": pa.array(day.astype(np.int32)), "hour": pa.array(np.zeros(count, np.int8)),
        # Without user, item or scene no label can be used.
        "click": pc.if_else(complete, samples["click"].cast(pa.float64()), float("nan")),
        "order": samples["order"].cast(pa.float64()),
        **{f"user_{field}": values[field] for field in USER_FIELDS},
        **{f"item_{field}": values[field] for field in ITEM_FIELDS},
        **{f"context_{field}": values[field] for field in CONTEXT_FIELDS}})


def _read(directory: Location, name: str, names: tuple[str, ...], broken: list[str]) -> pa.Table:
    file = find(directory, name)
    types = {"features": pa.string(), "common": pa.string(), "click": pa.int64(), "order": pa.int64()}
    rows = read_rows(directory, file, names, {name: kind for name, kind in types.items() if name in names})
    broken += rows.broken
    require(rows.table.num_rows > 0, file.base_name, 0, "at least one row")
    return rows.table


def _field(features: pa.ChunkedArray, field: str) -> pa.ChunkedArray:
    """int64[N]: the first feature of a field, null where there is none."""
    matches = pc.extract_regex(features, f"(?:^|\x01){field}\x02(?P<value>[0-9]{{1,18}})\x03")
    return pc.struct_field(matches, "value").cast(pa.int64())


def _unique(table: pa.Table, key: str, features: list[str]) -> pa.Table:
    """A row for each key, with the features of its first row."""
    keys, first = np.unique(table[key].to_numpy(), return_index=True)
    rows = table.select([key, *features]).take(pa.array(first))
    return rows.filter(pa.array(keys >= 0))
