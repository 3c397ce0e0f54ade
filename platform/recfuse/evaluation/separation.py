"""Whether held-out rows are apart from the samples that the policy was trained on: the check against leakage."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from recfuse.config import require
from recfuse.evaluation.held_out import HeldOut, matrix, parquet_files

logger = logging.getLogger("recfuse")


@dataclass(frozen=True)
class Separation:
    """How the held-out rows are kept apart from the samples.

    Attributes:
        users: distinct held-out users; shared_users: of them, those whom the samples have too.
        shared_rows: held-out rows that are in the samples; evaluation refuses any.
        of_shared_users: bool[n], which held-out rows are theirs.
    """

    users: int
    shared_users: int
    shared_rows: int
    of_shared_users: np.ndarray = field(compare=False, repr=False)

    def __str__(self) -> str:
        return (f"{self.shared_rows} held-out rows and {self.shared_users:,} of {self.users:,} held-out users "
                "are in the samples")


def separate(samples: str | Path, log: HeldOut) -> Separation | None:
    """Compares held-out rows with the samples, by state and action; None where there are no samples."""
    files = parquet_files(samples)
    if not files:
        return None
    held_out_keys, shared_rows = _keys(log.state, log.action), 0
    user_of_row = pa.array(log.user_id).cast(pa.string())
    users = pc.unique(user_of_row)
    shared = np.zeros(len(users), bool)
    for batch in ds.dataset(files).to_batches(columns=["user_id", "state", "action"]):
        table = pa.Table.from_batches([batch])
        if not table.num_rows:
            continue
        keys = _keys(*(matrix(table[name], getattr(log, name).shape[1]) for name in ("state", "action")))
        shared_rows += int(np.isin(held_out_keys, keys).sum())
        shared |= pc.is_in(users, pc.unique(table["user_id"].cast(pa.string()))).to_numpy(zero_copy_only=False)
    rows = pc.is_in(user_of_row, users.filter(pa.array(shared))).to_numpy(zero_copy_only=False)
    return Separation(len(users), int(shared.sum()), shared_rows, rows)


def keep_apart(samples: str, log: HeldOut, new_users: bool) -> tuple[HeldOut, Separation | None]:
    """The held-out requests that count, and how they are kept apart from the samples.

    Args:
        new_users: only requests of users whom the samples lack count.

    Raises:
        InvalidFieldError: held-out rows are in the samples; or new users are wanted, and there are no samples to know
            the others from, or no new users.
    """
    separation = separate(samples, log)
    if separation:
        logger.info("evaluate: %s", separation)
        require(separation.shared_rows == 0, "holdout", f"{separation.shared_rows} rows that are in {samples}",
                "rows that the policy was not trained on")
    if not new_users:
        return log, separation
    require(separation is not None, "new_users", True, f"samples in {samples} to know their users from")
    assert separation is not None
    require(separation.shared_users < separation.users, "holdout", f"{separation.users} users, all in the samples",
            "a user whom the samples lack")
    log = log.take(~separation.of_shared_users)
    return log, separate(samples, log)


def _keys(state: np.ndarray, action: np.ndarray) -> np.ndarray:
    """uint64[n] of rows of float32: the same for the same bits."""
    bits = np.ascontiguousarray(np.concatenate([state, action], 1), np.float32).view(np.uint32).astype(np.uint64)
    factors = np.random.default_rng(0).integers(1, 1 << 63, bits.shape[1], np.uint64) | np.uint64(1)
    with np.errstate(over="ignore"):
        keys: np.ndarray = (bits * factors).sum(1, dtype=np.uint64)
    return keys
