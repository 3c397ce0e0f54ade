"""Exposures: what was shown to whom, where, and how it was answered; the input of the multi-scene scorer."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recfuse.config import require
from recfuse.logs.account import Account

# Feedback columns that a source may have besides watch time; 0/1 each.
LABELS = ("click", "long_view", "like", "follow", "comment", "forward", "hate")

# The simulator's response model is fitted on rows with `row_share` below this, the scorer on the others.
RESPONSE_SHARE = 0.3
SCORER_SHARE = 1 - RESPONSE_SHARE

ROWS_SCHEMA = pa.schema([
    pa.field("user_id", pa.int64(), nullable=False),
    pa.field("item_id", pa.int64(), nullable=False),
    pa.field("scene", pa.string(), nullable=False),
    pa.field("ts", pa.timestamp("us", "UTC"), nullable=False),
    pa.field("day", pa.int32(), nullable=False),  # yyyymmdd, in the local calendar of whoever logged
    pa.field("hour", pa.int8(), nullable=False),  # 0..23, local
    pa.field("watch_time", pa.float32(), nullable=False),  # seconds
    *(pa.field(label, pa.int8(), nullable=False) for label in LABELS),
])


@dataclass(frozen=True)
class Exposures:
    """One source of exposures; its ids are keys (recfuse.logs.ids).

    Attributes:
        rows: ROWS_SCHEMA, sorted by (ts, user_id, item_id); no full duplicates.
        users: `user_id` (int64, unique) and the users' features known before the rows; integer and string columns are
            categorical, floating ones numeric.
        items: `item_id` (int64, unique), `duration` (seconds, float32) and the items' features, likewise.
        history: `user_id` and `items: list<int64>`, what the user watched before the first row, oldest first.
        account: rows in = kept + quarantined.
        quarantine: the quarantined rows as they came, with a column `reason`.
        opened: the label whose rows put an item into its user's history.
    """

    rows: pa.Table
    users: pa.Table
    items: pa.Table
    history: pa.Table
    account: Account
    quarantine: pa.Table
    opened: str = "click"

    def filter(self, mask: np.ndarray) -> Exposures:
        """The exposures whose rows are in the mask `bool[N]`; users, items and history stay whole."""
        require(mask.shape == (self.rows.num_rows,), "mask", mask.shape, f"({self.rows.num_rows},)")
        return dataclasses.replace(self, rows=self.rows.filter(pa.array(mask)))

    def column(self, name: str) -> np.ndarray:
        """A column of `rows` as numpy."""
        return self.rows[name].to_numpy()


@dataclass(frozen=True)
class Known:
    """What exposures know beside their rows: attributes as those of `Exposures`, but ids as they were written, integers
    or text, where nobody has made keys of them."""

    users: pa.Table
    items: pa.Table
    history: pa.Table


def sort_rows(rows: pa.Table) -> pa.Table:
    """Rows in the order that every split and history relies on."""
    order = pc.sort_indices(rows, [("ts", "ascending"), ("user_id", "ascending"), ("item_id", "ascending")])
    return rows.take(order)


def row_share(exposures: Exposures, seed: int = 0) -> np.ndarray:
    """A number in [0, 1) for every row, from a hash of (user, item, ts): disjoint shares for disjoint models.

    The scorer that is fused and the response model that answers in the simulator are fitted on different shares, so
    that no policy is graded by its own predictions.
    """
    with np.errstate(over="ignore"):
        key = exposures.column("user_id").astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        key ^= exposures.column("item_id").astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
        key ^= exposures.rows["ts"].cast(pa.int64()).to_numpy().astype(np.uint64) + np.uint64(seed)
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # the finaliser of splitmix64
            key = (key ^ (key >> np.uint64(shift))) * np.uint64(factor)
        key ^= key >> np.uint64(31)
    return (key >> np.uint64(11)).astype(np.float64) / float(1 << 53)
