"""Logs that do not fit in memory: NCIS and IS from sums per user of every row group, wherever these are computed.

Session logs become samples first, by the pipeline of ingest, so that rows and sessions are the same as in memory. What
needs the requests themselves is estimated from the first of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import ArrayLike

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError, require
from recfuse.evaluation.answers import DEFAULTS, EstimateOptions, Evidence, OffPolicyEstimate, conclude, paired
from recfuse.evaluation.case import PRODUCT_CAP, not_drawn, policy_log_prob, without_density
from recfuse.evaluation.config import EvaluateConfig
from recfuse.evaluation.held_out import HeldOut, Reading, check_vocabulary, has_samples, microseconds
from recfuse.evaluation.selection import Selection
from recfuse.evaluation.separation import Identities, Separation, require_apart, require_new_users
from recfuse.evaluation.support import Ratios, Vector, events, feedback_array, refusal
from recfuse.fusion.inference import FusionActor
from recfuse.logs.account import Account
from recfuse.logs.reading import (
    account_of_samples,
    count_samples,
    open_samples,
    read_samples,
    sessions_of_samples,
)
from recfuse.logs.source import LogSource, Piece, open_log
from recfuse.logs.stages import samples_of_stage
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
        separation: of all held-out rows that count and the samples that the policy was trained on; None where there are
            none.
        streamed: NCIS and IS of all rows that have a ratio.
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
    selection, separation, counted = _select(config, source)
    require(counted.rows > 0, "stage", config.stage, "a stage with held-out requests")
    whole = replace(selection, stage="").read(source)
    first = _first_sessions(samples_of_stage(whole, config.stage) if config.stage else whole, config.critic_rows,
                            actor.vocabulary)
    account = account or _sum(count_samples(rows) for rows in read_samples(source, "holdout"))
    reading = replace(first, account=account, account_of=whose, checked=checked, straddling=selection.straddling)
    # Where no action has a ratio, the first requests have the reason why there is no answer.
    streamed = _estimates(source, selection, actor, config) if counted.known else []
    return Stream(source, reading, separation, tuple(streamed), counted.left_out())


def _select(config: EvaluateConfig, source: LogSource) -> tuple[Selection, Separation | None, _Counts]:
    """The rows that count, how they are apart from the samples, and how many they are."""
    selection = replace(Selection.from_time_on(source, config.after), stage=config.stage)
    separation, counted = _separate(config.samples, selection, source)
    if separation:
        require_apart(separation, config.samples)
    if config.new_users:
        selection = selection.without(require_new_users(separation, config.samples).shared)
        separation, counted = _separate(config.samples, selection, source)
    return selection, separation, counted


def _separate(samples: str, selection: Selection, source: LogSource) -> tuple[Separation | None, _Counts]:
    """One pass over the rows that count."""
    identities, counted = Identities(), _Counts()
    for rows in selection.read(source):
        identities.add(rows["request_id"].to_numpy(), rows["user_id"].to_numpy(), microseconds(rows["ts"]))
        counted.add(rows)
    if not has_samples(samples):
        return None, counted
    return identities.separate(read_samples(open_samples(samples))), counted


@dataclass
class _Counts:
    """Of the rows that count: how many there are, whose action was drawn, and whose density is known too."""

    rows: int = 0
    drawn: int = 0
    known: int = 0

    def add(self, rows: pa.Table) -> None:
        drawn = pc.fill_null(rows["explored"], True).to_numpy()
        has_density = ~np.isnan(rows["action_logp"].to_numpy())
        self.rows += rows.num_rows
        self.drawn += int(drawn.sum())
        self.known += int((drawn & has_density).sum())

    def left_out(self) -> tuple[str, ...]:
        """What has no ratio, in sentences."""
        undrawn, unknown = self.rows - self.drawn, self.drawn - self.known
        return (*((not_drawn(undrawn, self.rows),) if undrawn else ()),
                *((without_density(unknown, self.rows),) if unknown else ()))


def _as_samples(config: EvaluateConfig) -> tuple[LogSource, Account | None, str, bool]:
    """The held-out samples, their account and whose it is, and whether their rows were checked here."""
    if open_log(config.holdout, config.reading.vocabulary, "holdout").kind == "samples":
        source = open_samples(config.holdout, "holdout")
        account, whose = account_of_samples(source) or (None, "of the samples, which have none of their ingest")
        return source, account, whose, False
    from recfuse.logs.config import IngestConfig
    from recfuse.logs.ingest import ingest

    directory = locate(config.output, "output").below(HELD_OUT_SAMPLES).uri
    try:
        # How many rows may be quarantined is looked at once all is written.
        result = ingest(IngestConfig(**{**config.reading.to_dict(), "quarantine_limit": 1.0}, logs=config.holdout,
                                     output=directory))
    except InvalidFieldError as error:
        names = {"logs": "holdout"}
        raise InvalidFieldError(names.get(error.field, error.field), error.value, error.allowed) from None
    return open_samples(directory, "holdout"), result.account, "of the log itself", True


def _first_sessions(samples: Iterator[pa.Table], rows: int, vocabulary: Vocabulary) -> Reading:
    """As many of the first sessions as hold the rows, at least one."""
    parts: list[pa.Table] = []
    while sum(part.num_rows for part in parts) <= rows and (part := next(samples, None)) is not None:
        parts.append(part)
    require(sum(part.num_rows for part in parts) > 0, "holdout", 0, "at least one sample")
    table = pa.concat_tables(parts).combine_chunks()
    sessions = sessions_of_samples(table)
    if table.num_rows > rows:
        ends = np.flatnonzero(sessions.end) + 1
        last = max(int(np.searchsorted(ends, rows, side="right")) - 1, 0)
        sessions = sessions_of_samples(table.slice(0, int(ends[last])))
    return Reading(HeldOut.of_sessions(sessions, vocabulary), count_samples(sessions.rows), "", checked=False)


def _sum(parts: Iterable[Account]) -> Account:
    accounts = list(parts)
    return Account(rows_in=sum(each.rows_in for each in accounts), kept=sum(each.kept for each in accounts),
                   truncated=sum(each.truncated for each in accounts),
                   not_drawn=sum(each.not_drawn for each in accounts))


def _estimates(source: LogSource, selection: Selection, actor: FusionActor,
               config: EvaluateConfig) -> list[OffPolicyEstimate]:
    """NCIS and IS of all samples that count; what comes back of a row group is a row a user."""
    from recfuse.logs.exchange import map_samples

    cap = PRODUCT_CAP if config.cap is None else config.cap

    def sums_of(piece: Piece, table: pa.Table) -> pa.Table:
        rows = selection.take(piece, table)
        if not rows.num_rows:
            return pa.table({})
        log = HeldOut.of_sessions(sessions_of_samples(rows.combine_chunks()), actor.vocabulary)
        log = log.take(log.known)
        if not len(log.state):
            return pa.table({})
        return user_sums(policy_log_prob(actor, log), log.log_prob, log.feedback, cap, log.user_id)

    return estimates_of_sums(merge(map_samples(source, sums_of, "holdout")), config.options, cap)


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


def estimates_of_sums(sums: pa.Table, options: EstimateOptions = DEFAULTS,
                      cap: float = math.inf) -> list[OffPolicyEstimate]:
    """[NCIS, IS] of merged sums under the cap; the same as in memory, but that what is missing of the weights is judged
    by the mean ratio alone, and that the draws are none that other estimators' compare with."""
    behaviours = sum(name.startswith("plain_") for name in sums.column_names)
    weight, squared, rows, capped = (sums[name].to_numpy() for name in _COUNTS)
    weighted, plain = (np.stack([sums[f"{kind}_{index}"].to_numpy() for index in range(behaviours)], 1)
                       for kind in ("weighted", "plain"))
    count, size = int(rows.sum()), float(weight.sum()) ** 2 / max(float(squared.sum()), 1e-300)
    mean_ratio = float(weight.sum()) / count

    def value(s: Vector) -> Vector:
        return s[:, :behaviours] / s[:, behaviours:behaviours + 1]

    change = paired(value, lambda s: s[:, behaviours + 1:-1] / s[:, -1:])
    answers = []
    for name, bottom, normalise in (("NCIS", weight, True), ("IS", rows, False)):
        evidence = Evidence(estimator=name, logged=plain.sum(0) / count, size=size, requests=count, users=len(weight),
                            capped_share=float(capped.sum()) / count, mean_ratio=mean_ratio, cap=cap,
                            events=events(plain, size / count),
                            refused=refusal(size, options, count, len(weight), mean_ratio, normalise=normalise))
        answers.append(replace(conclude(evidence, np.column_stack([weighted, bottom, plain, rows]), value, options,
                                        change), drawn=None))
    return answers


def _grouped(table: pa.Table) -> pa.Table:
    names = [name for name in table.column_names if name != "user_id"]
    grouped = table.group_by("user_id").aggregate([(name, "sum") for name in names])
    return grouped.select(["user_id", *(f"{name}_sum" for name in names)]).rename_columns(["user_id", *names])
