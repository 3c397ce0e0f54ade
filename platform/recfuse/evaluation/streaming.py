"""Logs that do not fit in memory: NCIS and IS from sums per user of every row group, wherever these are computed.

Session logs become samples first, by the pipeline of ingest, so that rows and sessions are the same as in memory. What
needs the requests themselves is estimated from the first of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError, require
from recfuse.evaluation.case import not_drawn, policy_log_prob
from recfuse.evaluation.config import EvaluateConfig
from recfuse.evaluation.held_out import HeldOut, Reading, check_vocabulary, has_samples, microseconds
from recfuse.evaluation.separation import Identities, Separation
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
from recfuse.fusion.inference import FusionActor
from recfuse.logs.account import Account
from recfuse.logs.reading import (
    account_of_samples,
    count_samples,
    open_samples,
    read_samples,
    sessions_of_samples,
)
from recfuse.logs.source import LogSource, open_log
from recfuse.runtime.locations import locate

# Beneath the output: the samples of held-out session logs.
HELD_OUT_SAMPLES = "held_out_samples"
_COUNTS = ("weight", "squared", "rows", "capped")


@dataclass(frozen=True)
class Stream:
    """Held-out samples beyond memory.

    Attributes:
        source: the samples.
        first: the first sessions of them, and the account of all.
        separation: of all held-out rows and the samples that the policy was trained on; None where there are none.
        streamed: NCIS and IS of all rows whose action was drawn.
        left_out: what of all rows is in neither, in sentences.
    """

    source: LogSource
    first: Reading
    separation: Separation | None
    streamed: tuple[OffPolicyEstimate, ...]
    left_out: tuple[str, ...]


def read_stream(config: EvaluateConfig, actor: FusionActor) -> Stream:
    """Reads held-out logs on the initialised Ray.

    Raises:
        InvalidFieldError: as `recfuse.evaluation.held_out.read_held_out`.
    """
    source, account, whose, checked = _as_samples(config)
    check_vocabulary(source.vocabulary, actor.vocabulary, "holdout")
    first = _first_sessions(source, config.critic_rows, actor.vocabulary)
    identities, counts = Identities(), []
    for rows in read_samples(source, "holdout"):
        identities.add(rows["request_id"].to_numpy(), rows["user_id"].to_numpy(), microseconds(rows["ts"]))
        counts.append(count_samples(rows))
    counted = _sum(counts)
    separation = None
    if has_samples(config.samples):
        separation = identities.separate(read_samples(open_samples(config.samples)))
    left_out = (not_drawn(counted.not_drawn, counted.kept),) if counted.not_drawn else ()
    reading = replace(first, account=account or counted, account_of=whose, checked=checked)
    # Where no action was drawn, the first requests have the reason why there is no answer.
    streamed = _estimates(source, actor, config) if counted.not_drawn < counted.kept else []
    return Stream(source, reading, separation, tuple(streamed), left_out)


def _as_samples(config: EvaluateConfig) -> tuple[LogSource, Account | None, str, bool]:
    """The held-out samples, their account and whose it is, and whether their rows were checked here."""
    if open_log(config.holdout, config.reading.vocabulary, "holdout").kind == "samples":
        source = open_samples(config.holdout, "holdout")
        account, whose = account_of_samples(source) or (None, "of the samples, which have none of their ingest")
        return source, account, whose, False
    from recfuse.logs.ingest import IngestConfig, ingest

    directory = locate(config.output, "output").below(HELD_OUT_SAMPLES).uri
    try:
        # How many rows may be quarantined is looked at once all is written.
        result = ingest(IngestConfig(**{**config.reading.to_dict(), "quarantine_limit": 1.0}, logs=config.holdout,
                                     output=directory))
    except InvalidFieldError as error:
        names = {"logs": "holdout"}
        raise InvalidFieldError(names.get(error.field, error.field), error.value, error.allowed) from None
    return open_samples(directory, "holdout"), result.account, "of the log itself", True


def _first_sessions(source: LogSource, rows: int, vocabulary: Vocabulary) -> Reading:
    """As many of the first sessions as hold the rows, at least one."""
    parts = list(read_samples(source, "holdout", rows + 1))
    require(sum(part.num_rows for part in parts) > 0, "holdout", 0, "at least one sample")
    table = pa.concat_tables(parts).combine_chunks()
    sessions = sessions_of_samples(table)
    if table.num_rows > rows:
        ends = np.flatnonzero(sessions.end) + 1
        last = max(int(np.searchsorted(ends, rows, side="right")) - 1, 0)
        sessions = sessions_of_samples(table.slice(0, int(ends[last])))
    return Reading(HeldOut.of_sessions(sessions, vocabulary), count_samples(sessions.rows), "", checked=False)


def _sum(accounts: list[Account]) -> Account:
    return Account(rows_in=sum(each.rows_in for each in accounts), kept=sum(each.kept for each in accounts),
                   truncated=sum(each.truncated for each in accounts),
                   not_drawn=sum(each.not_drawn for each in accounts))


def _estimates(source: LogSource, actor: FusionActor, config: EvaluateConfig) -> list[OffPolicyEstimate]:
    """NCIS and IS of all samples; what comes back of a row group is a row a user."""
    from recfuse.logs.exchange import map_samples

    def sums_of(rows: pa.Table) -> pa.Table:
        drawn = rows.filter(pc.fill_null(rows["explored"], True))
        if not drawn.num_rows:
            return pa.table({})
        log = HeldOut.of_sessions(sessions_of_samples(drawn.combine_chunks()), actor.vocabulary)
        return user_sums(policy_log_prob(actor, log), log.log_prob, log.feedback, config.cap, log.user_id)

    return estimates_of_sums(merge(map_samples(source, sums_of, "holdout")), config.options)


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
