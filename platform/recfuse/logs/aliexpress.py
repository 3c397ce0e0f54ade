"""Reads AliExpress search logs (Li et al., CIKM 2020; tianchi.aliyun.com/dataset/74690) as MTReclib prepares them.

The layout is that of easezyc/Multitask-Recommendation-Library, `data/preprocess.py` and `datasets/aliexpress.py`
(ee2427f): one directory a country (`AliExpress_NL`, `_ES`, `_FR`, `_US`), each with `train.csv` and `test.csv`, and in
these `search_id`, `categorical_1` to `_16` (integers), `numerical_1` to `_63`, `click`, `conversion`. A country is a
scene; a search stands for its user, so that GAUC is within searches. Searches are numbered anew in every file, so a
user is a search of a file. There are no item ids, no times and no history.

The files give two parts, and MTReclib stops at the epoch that is best on test. Here training is split once more, by a
hash of the search, so that models are selected on rows that neither train nor test: day 1 trains, day 2 validates,
day 3 tests.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs

from recfuse.config import require
from recfuse.logs.delimited import find, read_rows
from recfuse.logs.exposures import Exposures
from recfuse.logs.orders import Orphan, order_exposures
from recfuse.runtime.locations import Location, locate

TRAINING, VALIDATION, TEST = 1, 2, 3
VALIDATION_SHARE = 0.1
_PREFIX = "AliExpress_"
_NUMBERS = 63


def read_exposures(path: str | Path, orphan: Orphan = "quarantine") -> Exposures:
    """The exposures of a directory of countries; `rows` have the files' features beside the columns of orders.

    Raises:
        InvalidFieldError: no country, a file or a column is missing, an id is no integer, or a part is empty.
    """
    directory = locate(path, "exposures")
    exists = directory.kind() == pafs.FileType.Directory
    require(exists, "exposures", directory.uri, f"a directory with {_PREFIX}NL and the like")
    entries = directory.filesystem.get_file_info(pafs.FileSelector(directory.root))
    countries = sorted(entry.base_name for entry in entries
                       if entry.type == pafs.FileType.Directory and entry.base_name.startswith(_PREFIX))
    require(bool(countries), "exposures", directory.uri, f"a directory with {_PREFIX}NL and the like")
    broken: list[str] = []
    parts = [_part(directory.below(country), country, name, broken)
             for country in countries for name in ("train", "test")]
    # Every file's searches follow those of the files before it.
    counts = np.cumsum([0, *(part["user_id"].to_numpy().max() + 1 for part in parts)])
    parts = [part.set_column(0, "user_id", pa.array(part["user_id"].to_numpy() + first))
             for part, first in zip(parts, counts[:-1], strict=True)]
    table = pa.concat_tables(parts, promote_options="default").combine_chunks()
    users = pa.table({"user_id": np.unique(table["user_id"].to_numpy())})
    return order_exposures(dict(zip(table.column_names, table.columns, strict=True)), users,
                           pa.table({"item_id": pa.array([0], pa.int64())}), orphan=orphan, broken=broken)


def feature_columns(rows: pa.Table) -> tuple[list[str], list[str]]:
    """Categorical and numerical feature columns of the rows."""
    return ([name for name in rows.column_names if name.startswith("categorical_")],
            [name for name in rows.column_names if name.startswith("numerical_")])


def _part(place: Location, country: str, name: str, broken: list[str]) -> pa.Table:
    """The rows of a file; rows with a wrong number of columns are added to `broken`."""
    file = find(place, f"{name}.csv")
    where = f"{country}/{file.base_name}"
    # Some numbers are 0 for long stretches: what they are must not be guessed from the first block.
    rows = read_rows(place, file, types={f"numerical_{k}": pa.float32() for k in range(1, _NUMBERS + 1)})
    raw = rows.table
    broken += rows.broken
    require(raw.num_rows > 0, where, 0, "at least one row")
    for column in ("search_id", "click", "conversion"):
        require(column in raw.column_names, f"{where}: column {column}", raw.column_names, f"a column {column}")
    categorical, numerical = feature_columns(raw)
    require(bool(categorical), f"{where}: columns", raw.column_names, "columns categorical_1 and so on")
    for column in ("search_id", *categorical):
        kind = raw[column].type
        require(pa.types.is_integer(kind), f"{where}: column {column}", str(kind), "integers")
    user = np.unique(raw["search_id"].to_numpy(), return_inverse=True)[1].reshape(-1).astype(np.int64)
    day = training_day(user) if name == "train" else np.full(len(user), TEST)
    return pa.table({
        "user_id": user, "item_id": np.zeros(len(user), np.int64),
        "scene": pa.array([country.removeprefix(_PREFIX)] * len(user)),
        "ts": pa.array(np.arange(len(user)) + day * 10**12).cast(pa.timestamp("us", "UTC")),
        "day": day.astype(np.int32), "hour": np.zeros(len(user), np.int8),
        "click": raw["click"].cast(pa.float64()), "order": raw["conversion"].cast(pa.float64()),
        **{column: raw[column] for column in categorical},
        **{column: raw[column] for column in numerical}})


def training_day(user: np.ndarray) -> np.ndarray:
    """TRAINING or VALIDATION, by a hash of the search: its rows stay together."""
    with np.errstate(over="ignore"):
        mixed = (user.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(40)
    return np.where(mixed < VALIDATION_SHARE * 2**24, VALIDATION, TRAINING)
