"""What an evaluation needs of logs: held-out requests that judge the policy, and samples that critics are fitted to.

Both are read by `recfuse.logs`, so that rows and sessions are those that training sees.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
from numpy.typing import NDArray

from recfuse.behaviours import Vocabulary
from recfuse.config import require
from recfuse.evaluation.config import parse_time
from recfuse.evaluation.fitted_q import Transitions
from recfuse.logs.account import Account
from recfuse.logs.reading import LogRows, ReadingConfig, open_samples, read_log, read_samples
from recfuse.logs.sessions import Sessions
from recfuse.logs.stages import samples_of_stage
from recfuse.runtime.locations import locate


@dataclass(frozen=True)
class HeldOut:
    """Logged requests, those of a session in the order of time.

    Attributes:
        user_id: [n]; state: [n, S]; action: [n, M]; feedback: [n, m].
        log_prob: [n], of the logged action under the policy that logged it; NaN where nobody knows.
        session: [n], the same number or id for the requests of a session.
        request_id: [n], null where the log has none; None for none at all.
        ts: int64[n], microseconds since 1970; None where a request has no time.
        explored: bool[n], whether the action was drawn from the policy; None where all were.
        truncated: bool[n], whether the request's session goes on beyond the end of the log; None where none does.
        mu, sigma: [n, M], of the Gaussian that the action was drawn from; None where a request has none.
        stage: [n], null where nobody knows; None for none at all.
    """

    user_id: NDArray[Any]
    state: NDArray[np.float32]
    action: NDArray[np.float32]
    log_prob: NDArray[np.float64]
    feedback: NDArray[Any]
    session: NDArray[Any]
    request_id: NDArray[Any] | None = None
    ts: NDArray[np.int64] | None = None
    explored: NDArray[np.bool_] | None = None
    truncated: NDArray[np.bool_] | None = None
    mu: NDArray[np.float32] | None = None
    sigma: NDArray[np.float32] | None = None
    stage: NDArray[Any] | None = None

    def take(self, mask: NDArray[np.bool_]) -> HeldOut:
        """The requests in the mask bool[n]."""
        columns: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: column[mask] for name, column in columns.items() if column is not None})

    def of_stage(self, stage: str) -> HeldOut:
        """The requests of a stage.

        Raises:
            InvalidFieldError: there is none.
        """
        mask = np.zeros(len(self.state), bool) if self.stage is None else np.asarray(self.stage == stage, bool)
        require(bool(mask.any()), "stage", stage, "a stage with held-out requests")
        return self.take(mask)

    @property
    def drawn(self) -> NDArray[np.bool_]:
        """bool[n]: the action was drawn from the policy that logged it."""
        return np.ones(len(self.state), bool) if self.explored is None else self.explored

    @property
    def known(self) -> NDArray[np.bool_]:
        """bool[n]: the action was drawn, and its density is known; ratios of densities are of these alone."""
        return np.asarray(self.drawn & ~np.isnan(self.log_prob), bool)

    @property
    def whole(self) -> NDArray[np.bool_]:
        """bool[n]: what follows in the request's session is in the log."""
        return np.ones(len(self.state), bool) if self.truncated is None else ~self.truncated

    @classmethod
    def of_sessions(cls, sessions: Sessions, vocabulary: Vocabulary) -> HeldOut:
        """Requests as `recfuse.logs` reads them, of a log or of samples."""
        rows, count = sessions.rows, int(sessions.number[-1]) + 1 if len(sessions.number) else 0
        cut = np.bincount(sessions.number, sessions.truncated, count) > 0
        return cls(
            user_id=_array(rows["user_id"]), state=_matrix(rows["state"]), action=_matrix(rows["action"]),
            log_prob=_array(rows["action_logp"]).astype(np.float64),
            feedback=_feedback(rows["feedback"], vocabulary.behaviour_names), session=sessions.number,
            request_id=_array(rows["request_id"]), ts=microseconds(rows["ts"]),
            explored=_array(pc.fill_null(rows["explored"], True)).astype(bool), truncated=cut[sessions.number],
            mu=_optional(rows, "mu"), sigma=_optional(rows, "sigma"), stage=_array(rows["stage"]))


@dataclass(frozen=True)
class Reading:
    """Held-out requests and what became of the others.

    Attributes:
        log: the requests.
        account: of the rows that were read; account_of: whose it is, in words.
        checked: the rows were checked here, and not by an earlier ingest.
        straddling: sessions that began before the time from which requests count, and went on after it.
    """

    log: HeldOut
    account: Account
    account_of: str
    checked: bool = True
    straddling: int = 0

    @property
    def words(self) -> str:
        """The account and whose it is."""
        return f"account {self.account_of}: {self.account}"

    def require(self, limit: float) -> None:
        """Refuses rows of which more than the limit was quarantined here.

        Raises:
            InvalidFieldError: with the commonest reason.
        """
        self.account.require(limit if self.checked else 1.0, "holdout")


def read_held_out(path: str, vocabulary: Vocabulary, reading: ReadingConfig | None = None, after: str = "") -> Reading:
    """Reads session logs, a Delta table or samples.

    Args:
        vocabulary: of the policy.
        after: ISO time; sessions that began before it are left out whole.

    Raises:
        InvalidFieldError: as `read_log`; no row is left; or the log has another vocabulary.
    """
    rows = read_log(str(path), reading, "holdout")
    check_vocabulary(rows.source.vocabulary, vocabulary, "holdout")
    rows.account.require(1.0, "holdout")
    held_out = of_log(rows, vocabulary)
    return _from_time_on(held_out, rows.sessions, after) if after else held_out


def of_log(rows: LogRows, vocabulary: Vocabulary) -> Reading:
    """Held-out requests of a log that was read."""
    return Reading(HeldOut.of_sessions(rows.sessions, vocabulary), rows.account, rows.account_of,
                   checked=rows.source.kind == "session_log")


def has_samples(path: str) -> bool:
    """Whether there is anything at the path of samples, which may be empty."""
    return bool(path) and locate(path, "samples").kind() != pafs.FileType.NotFound


def read_transitions(path: str, vocabulary: Vocabulary, rows: int, stage: str = "") -> Transitions:
    """The first samples, or the first of a stage.

    Raises:
        InvalidFieldError: as `open_samples`; there is none; or they have another vocabulary.
    """
    source = open_samples(str(path))
    check_vocabulary(source.vocabulary, vocabulary, "samples")
    parts = list(_first(samples_of_stage(read_samples(source), stage), rows) if stage
                 else read_samples(source, rows=rows))
    require(sum(part.num_rows for part in parts) > 0, "samples", str(path),
            f"at least one sample of the stage {stage}" if stage else "at least one sample")
    table = pa.concat_tables(parts).slice(0, rows).combine_chunks()
    return Transitions(**{name: _matrix(table[name]) for name in ("state", "action", "feedback", "next_state")},
                       done=_array(table["done"]), user=_array(table["user_id"]))


def _first(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """As many of the tables as hold the rows."""
    while rows > 0 and (table := next(tables, None)) is not None:
        rows -= table.num_rows
        yield table


def check_vocabulary(logged: Vocabulary, vocabulary: Vocabulary, field: str) -> None:
    """Raises InvalidFieldError: behaviours, parameters, the formula or the state are others than the policy's, so that
    the policy has no density of the logged actions."""
    require(logged.formula == vocabulary.formula, f"{field} formula", logged.formula,
            f"{vocabulary.formula}, as in the policy's vocabulary: a policy of another formula has no density of this "
            "log's actions, and an A/B test judges it")
    require(logged.curves == vocabulary.curves, f"{field} curves", _curves(logged),
            f"{_curves(vocabulary)}, as in the policy's vocabulary: a policy of other curves has no density of this "
            "log's actions, and an A/B test judges it")
    for name in ("behaviour_names", "fusion_parameters", "state_size"):
        require(getattr(logged, name) == getattr(vocabulary, name), f"{field} {name}", getattr(logged, name),
                f"{getattr(vocabulary, name)}, as in the policy's vocabulary")


def _curves(vocabulary: Vocabulary) -> str:
    return "none" if vocabulary.curves is None else "curves of its own"


def _from_time_on(reading: Reading, sessions: Sessions, after: str) -> Reading:
    """Sessions are kept whole or left out whole."""
    ts = sessions.rows["ts"]
    require(ts.null_count == 0, "after", after, "a log with times; these samples have none, so ingest them anew")
    start = parse_time(after)
    late = _array(pc.greater_equal(ts, pa.scalar(start, pa.timestamp("us", "UTC")))).astype(bool)
    count = int(sessions.number[-1]) + 1
    late_rows, rows = np.bincount(sessions.number, late, count), np.bincount(sessions.number, minlength=count)
    begun = late_rows == rows
    straddling = int(((late_rows > 0) & ~begun).sum())
    require(bool(begun.any()), "after", after, "a time at which at least one session has yet to begin; "
                                               f"{straddling:,} began before it and went on, and are left out whole")
    return replace(reading, log=reading.log.take(begun[sessions.number]), straddling=straddling)


def microseconds(ts: pa.ChunkedArray) -> NDArray[np.int64] | None:
    """int64[n] since 1970; None where one is null."""
    return None if ts.null_count else _array(ts.cast(pa.int64()))


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    values: NDArray[Any] = column.to_numpy()
    return values


def _matrix(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """[n, width] of a column of lists of one width without nulls."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat.reshape(len(column), column.type.list_size), np.float32)


def _optional(rows: pa.Table, name: str) -> NDArray[np.float32] | None:
    """The same; None where the column is not there, or null somewhere."""
    return None if name not in rows.column_names or rows[name].null_count else _matrix(rows[name])


def _feedback(column: pa.ChunkedArray, names: tuple[str, ...]) -> NDArray[Any]:
    if not pa.types.is_struct(column.type):
        return _matrix(column)
    values = column.combine_chunks()
    return np.stack([pc.struct_field(values, name).to_numpy(zero_copy_only=False) for name in names], 1)
