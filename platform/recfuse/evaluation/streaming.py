"""NCIS and IS of logs that do not fit in memory: sums per user of every batch, wherever it is computed, merged."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from recfuse.config import require
from recfuse.evaluation.support import (
    DEFAULTS,
    EstimateOptions,
    Evidence,
    OffPolicyEstimate,
    Ratios,
    conclude,
    feedback_array,
    refusal,
)

_COUNTS = ("weight", "squared", "rows", "capped")


def user_sums(log_prob: ArrayLike, behaviour_log_prob: ArrayLike, feedback: ArrayLike, cap: float,
              user_id: ArrayLike) -> pa.Table:
    """What the estimates need of a batch, one row a user: Σρ, Σρ², rows, capped ones, Σρr and Σr per behaviour.

    Arguments as of `recfuse.evaluation.ope.ncis`; the cap must be finite, so that batches are on one scale.
    """
    require(cap < np.inf, "cap", cap, "a finite number > 0")
    ratios = Ratios.of(log_prob, behaviour_log_prob, cap)
    values, weight = feedback_array(feedback, len(ratios.log)), ratios.weights
    columns = {"weight": weight, "squared": weight**2, "rows": np.ones(len(weight)),
               "capped": (ratios.log > ratios.limit).astype(np.float64)}
    for index, column in enumerate(values.T):
        columns |= {f"weighted_{index}": weight * column, f"plain_{index}": column}
    return _grouped(pa.table({"user_id": pa.array(np.asarray(user_id)).cast(pa.string()), **columns}))


def merge(parts: Iterable[pa.Table]) -> pa.Table:
    """The sums of all batches, users in the order of their ids; empty ones say nothing."""
    total: pa.Table | None = None
    for part in parts:
        if not part.num_rows:
            continue
        total = part if total is None else _grouped(pa.concat_tables([total, part]))
    require(total is not None and total.num_rows > 0, "log", 0, "at least one request")
    assert total is not None
    return total.sort_by("user_id")


def estimates_of_sums(sums: pa.Table, options: EstimateOptions = DEFAULTS) -> list[OffPolicyEstimate]:
    """[NCIS, IS] of merged sums; the same as in memory."""
    behaviours = sum(name.startswith("plain_") for name in sums.column_names)
    weight, squared, rows, capped = (sums[name].to_numpy() for name in _COUNTS)
    weighted, plain = (np.stack([sums[f"{kind}_{index}"].to_numpy() for index in range(behaviours)], 1)
                       for kind in ("weighted", "plain"))
    count, size = int(rows.sum()), float(weight.sum()) ** 2 / max(float(squared.sum()), 1e-300)
    mean_ratio = float(weight.sum()) / count
    reason = refusal(size, options.min_ess, count, len(weight), mean_ratio)
    return [conclude(Evidence(estimator=name, logged=plain.sum(0) / count, size=size, requests=count, users=len(weight),
                              capped_share=float(capped.sum()) / count, mean_ratio=mean_ratio, refused=reason),
                     np.column_stack([weighted, bottom]), lambda s: s[:, :-1] / s[:, -1:], options)
            for name, bottom in (("NCIS", weight), ("IS", rows))]


def _grouped(table: pa.Table) -> pa.Table:
    names = [name for name in table.column_names if name != "user_id"]
    grouped = table.group_by("user_id").aggregate([(name, "sum") for name in names])
    return grouped.select(["user_id", *(f"{name}_sum" for name in names)]).rename_columns(["user_id", *names])
