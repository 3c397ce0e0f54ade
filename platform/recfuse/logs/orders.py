"""Exposures of shops: an impression, its click, its order (maths 3.6)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pyarrow as pa

from recfuse.config import require
from recfuse.logs.account import Account
from recfuse.logs.delimited import WRONG_COLUMNS
from recfuse.logs.exposures import Exposures, sort_rows

# What happens to an order without its click: its row is left out, or the click that it implies is added.
Orphan = Literal["quarantine", "repair"]

ORDER_SCHEMA = pa.schema([
    pa.field("user_id", pa.int64(), nullable=False),
    pa.field("item_id", pa.int64(), nullable=False),
    pa.field("scene", pa.string(), nullable=False),
    pa.field("ts", pa.timestamp("us", "UTC"), nullable=False),
    pa.field("day", pa.int32(), nullable=False),  # yyyymmdd, or a number that grows with time
    pa.field("hour", pa.int8(), nullable=False),
    pa.field("click", pa.int8(), nullable=False),
    pa.field("order", pa.int8(), nullable=False),
])
ORPHAN_REASON = "order without its click"


def checked_labels(raw: Mapping[str, np.ndarray], orphan: Orphan = "quarantine") -> tuple[np.ndarray, np.ndarray]:
    """Clicks after repair int8[N], and why a row is bad: object[N], empty where it is fine.

    Args:
        raw: `click` and `order`, numbers [N]; NaN where one is missing.
        orphan: what to do with an order without its click.

    Raises:
        InvalidFieldError: an unknown `orphan`.
    """
    require(orphan in get_args(Orphan), "orphan", orphan, ", ".join(get_args(Orphan)))
    click, order = (np.asarray(raw[name], np.float64) for name in ("click", "order"))
    reasons = np.full(len(click), "", object)
    for name, values in (("click", click), ("order", order)):
        reasons[(reasons == "") & ~np.isin(values, (0.0, 1.0))] = f"{name} is not 0 or 1"
    orphaned = (reasons == "") & (order == 1) & (click == 0)
    if orphan == "quarantine":
        reasons[orphaned] = ORPHAN_REASON
    return np.where(orphaned, 1, np.nan_to_num(click)).astype(np.int8), reasons


def order_exposures(columns: Mapping[str, np.ndarray | pa.Array | pa.ChunkedArray], users: pa.Table, items: pa.Table, *,
                    orphan: Orphan = "quarantine", history: pa.Table | None = None,
                    broken: Sequence[str] = ()) -> Exposures:
    """Exposures from the columns of ORDER_SCHEMA; rows with a bad label are quarantined and counted.

    Args:
        columns: each [N]; `click` and `order` may hold anything; what is beyond ORDER_SCHEMA describes the row.
        users, items, history: as in Exposures; without `history` nothing is known from before the rows.
        orphan: what to do with an order without its click.
        broken: rows with another number of columns than their file, as text.
    """
    names = ORDER_SCHEMA.names
    for name in names:
        require(name in columns, f"rows.{name}", sorted(columns), f"a column {name}")
    click, reasons = checked_labels({name: np.asarray(columns[name]) for name in ("click", "order")}, orphan)
    raw = pa.table({name: columns[name] for name in (*names, *(other for other in columns if other not in names))})
    schema = pa.schema([*ORDER_SCHEMA, *list(raw.schema)[len(names):]])
    bad = np.flatnonzero(reasons != "")
    quarantine = raw.take(pa.array(bad)).append_column("reason", pa.array(reasons[bad].tolist(), pa.string()))
    if broken:
        texts = pa.table({"row": list(broken), "reason": [WRONG_COLUMNS] * len(broken)})
        quarantine = pa.concat_tables([quarantine, texts], promote_options="default")
    fixed = raw.set_column(names.index("click"), "click", pa.array(click))
    rows = sort_rows(fixed.take(pa.array(np.flatnonzero(reasons == ""))).cast(schema))
    given, counts = np.unique(reasons[bad].astype(str), return_counts=True)
    quarantined = {str(name): int(count) for name, count in zip(given, counts, strict=True)}
    account = Account(rows_in=raw.num_rows + len(broken), kept=rows.num_rows,
                      quarantined=quarantined | ({WRONG_COLUMNS: len(broken)} if broken else {}))
    account.require(1.0, "exposures")
    if history is None:
        history = pa.table({"user_id": pa.array([], pa.int64()), "items": pa.array([], pa.list_(pa.int64()))})
    return Exposures(rows=rows, users=users, items=items, history=history, account=account, quarantine=quarantine)
