"""The one way to read a log: what is to be known to read it, and a log read whole, in this process.

Ingest reads the same pieces with the same functions as Ray Data tasks; samples hold what it made of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError, require
from recfuse.logs.account import Account
from recfuse.logs.candidates import without_candidates
from recfuse.logs.config import ReadingConfig
from recfuse.logs.schema import ACCOUNT_FILE, sample_schema, session_log_schema
from recfuse.logs.sessions import Sessions, cut_sessions, keep_first, without_cut_requests
from recfuse.logs.source import BROKEN, LogSource, Piece, log_end, open_log, pieces, read_piece
from recfuse.logs.validation import DUPLICATE, QUARANTINE_SCHEMA, Checked, check, quarantine_rows

# What samples of an earlier version lack.
_LATER_COLUMNS = ("request_id", "ts", "stage", "scene", "explored", "truncated", "model_version")
# Of samples, what replay alone reads.
_REPLAY_COLUMNS = ("mu", "sigma", "predictions", "open", "shown")


@dataclass(frozen=True)
class LogRows:
    """A log as it was read.

    Attributes:
        source: what was opened.
        sessions: the kept requests in their sessions, those that samples are made of. Rows are `session_log_schema`, or
            of samples `sample_schema`.
        quarantine: QUARANTINE_SCHEMA.
        account: of every row; of samples, that of the ingest which wrote them, where it lies beside them.
        account_of: whose account it is, in words.
    """

    source: LogSource
    sessions: Sessions
    quarantine: pa.Table
    account: Account
    account_of: str


def read_checked(source: LogSource, piece: Piece, config: ReadingConfig, vocabulary: Vocabulary) -> Checked:
    """The rows of a piece, checked; all of them quarantined where it cannot be read."""
    name = f"{source.table.relative(source.files[piece.file].path)}[{piece.row_group}]"
    try:
        table = read_piece(source, piece)
    except BROKEN as error:
        # The footer was fine and counts the rows, so they are accounted for although none can be shown.
        table = pa.table({"unreadable": pa.nulls(piece.kept, pa.string())})
        why = (str(error).splitlines() or [type(error).__name__])[0]
        return Checked(session_log_schema(vocabulary).empty_table(),
                       quarantine_rows(table, name, "row group", "readable Parquet", value=why))
    checked = check(table, vocabulary, name, config.density == "required", config.order_column)
    contradicted = _contradicted(table, source.files[piece.file].partition, session_log_schema(vocabulary).names)
    return replace(checked, notes=(*checked.notes, *contradicted))


def _contradicted(table: pa.Table, partition: Mapping[str, str | None], known: list[str]) -> list[str]:
    """Notes on columns of the file that have other values than the name of its directory says."""
    notes = []
    for name, value in partition.items():
        if name in known and table.column_names.count(name) == 1:
            texts = pc.unique(table[name]).to_pylist()
            if any((None if text is None else str(text)) != value for text in texts):
                notes.append(f"{name}: some files have other values than their directories {name}=…; theirs count")
    return notes


def read_log(path: str, config: ReadingConfig | None = None, name: str = "logs") -> LogRows:
    """Reads session logs, a Delta table or samples whole; candidates are checked, and then left out.

    Args:
        path: directory or URI.
        name: the config field that holds the path, for errors.

    Raises:
        InvalidFieldError: as `open_log`.
    """
    config = config or ReadingConfig()
    source = open_log(path, config.vocabulary, name)
    return _read_samples(source, name) if source.kind == "samples" else _read_session_log(source, config)


def open_samples(path: str, name: str = "samples") -> LogSource:
    """Opens samples.

    Raises:
        InvalidFieldError: as `open_log`, or the directory holds session logs.
    """
    source = open_log(path, name=name)
    require(source.kind == "samples", name, path, "a directory of samples, as `recfuse ingest` writes them; these are "
                                                  "session logs")
    return source


def sample_pieces(source: LogSource, name: str = "samples") -> list[Piece]:
    """The row groups of samples.

    Raises:
        InvalidFieldError: a file that is none: ingest wrote them whole.
    """
    listing, unreadable = pieces(source)
    for file, why in unreadable.items():
        raise InvalidFieldError(name, file, f"readable samples, as ingest wrote them; it is {why}")
    return listing


def read_sample_piece(source: LogSource, piece: Piece, name: str = "samples") -> pa.Table:
    """The rows of a piece, `sample_schema`; columns that samples of an earlier version lack are null, and those that
    replay alone reads are not read here.

    Raises:
        InvalidFieldError: it cannot be read, or a column is missing, has another type or a null.
    """
    file, schema = source.table.relative(source.files[piece.file].path), sample_schema(source.vocabulary)
    try:
        table = read_piece(source, piece, _REPLAY_COLUMNS)
    except BROKEN as error:
        raise InvalidFieldError(name, file, f"readable samples ({_first_line(error)})") from None
    columns = []
    for field in schema:
        known = field.name in table.column_names
        optional = field.name in _LATER_COLUMNS + _REPLAY_COLUMNS
        require(known or optional, f"{name} {file}", f"no column {field.name}", f"a column {field.name}")
        try:
            column = table[field.name].cast(field.type) if known else pa.nulls(table.num_rows, field.type)
        except pa.ArrowException as error:
            raise InvalidFieldError(f"{name} {file} {field.name}", str(table[field.name].type),
                                    f"{field.type} ({_first_line(error)})") from None
        require(optional or column.null_count == 0, f"{name} {file} {field.name}", f"{column.null_count} nulls",
                "values in every row")
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def read_samples(source: LogSource, name: str = "samples", rows: int | None = None) -> Iterator[pa.Table]:
    """The samples, row group by row group; as many of the first row groups as hold the rows that are asked for."""
    left = rows
    for piece in sample_pieces(source, name):
        if left is not None and left <= 0:
            return
        table = read_sample_piece(source, piece, name)
        left = None if left is None else left - table.num_rows
        yield table


def session_ends(rows: pa.Table) -> NDArray[np.bool_]:
    """bool[n], which rows of samples end their session: `done` and `truncated` ones."""
    ends: NDArray[np.bool_] = (rows["done"].to_numpy() > .5) | pc.fill_null(rows["truncated"], False).to_numpy()
    return ends


def sessions_of_samples(rows: pa.Table) -> Sessions:
    """The sessions that the rows of samples, in their order, are in."""
    truncated = pc.fill_null(rows["truncated"], False).to_numpy()
    end = session_ends(rows)
    number = np.concatenate([[0], np.cumsum(end)[:-1]]).astype(np.int64) if len(end) else np.zeros(0, np.int64)
    end[-1:] = True
    return Sessions(rows, number, end, truncated, 0)


def account_of_samples(source: LogSource) -> tuple[Account, str] | None:
    """The account beside samples and whose it is; None where there is none that can be read."""
    location = source.location.below(ACCOUNT_FILE)
    try:
        with location.filesystem.open_input_stream(location.root) as stream:
            saved = json.loads(stream.read())
        return Account(**saved["account"]), f"of the ingest of {saved.get('logs', 'another log')}"
    except (OSError, ValueError, KeyError, TypeError, AssertionError):
        return None


def reasons(quarantine: pa.Table) -> dict[str, int]:
    """Reason → quarantined rows."""
    groups = quarantine.group_by(["field", "allowed"]).aggregate([([], "count_all")]).to_pylist()
    return {f"{group['field']} (allowed: {group['allowed']})": group["count_all"] for group in groups}


def _read_session_log(source: LogSource, config: ReadingConfig) -> LogRows:
    listing, unreadable = pieces(source)
    parts = [_without_candidates(read_checked(source, piece, config, source.vocabulary)) for piece in listing]
    empty = session_log_schema(source.vocabulary).empty_table()
    rows, others = keep_first(pa.concat_tables([empty, *(part.rows for part in parts)]))
    duplicates = quarantine_rows(others, "after reading", *DUPLICATE)
    quarantine = pa.concat_tables([duplicates, *(part.quarantine for part in parts)])
    cut = cut_sessions(rows, config.rule(log_end(source, listing)))
    sessions = without_cut_requests(cut, config.cut)
    kept = sessions.rows.num_rows
    account = Account(
        rows_in=sum(part.rows.num_rows + part.quarantine.num_rows for part in parts), kept=kept,
        quarantined=reasons(quarantine), unreadable_files=unreadable, left_out=rows.num_rows - kept,
        truncated=int(cut.truncated.sum()), not_drawn=_not_drawn(sessions.rows), ties=cut.ties,
        notes=_together(part.notes for part in parts))
    return LogRows(source, sessions, quarantine, account, "of the log itself")


def _without_candidates(checked: Checked) -> Checked:
    return replace(checked, rows=without_candidates(checked.rows))


def _read_samples(source: LogSource, name: str) -> LogRows:
    """Samples are checked and cut already."""
    schema = sample_schema(source.vocabulary)
    rows = pa.concat_tables([schema.empty_table(), *read_samples(source, name)]).combine_chunks()
    sessions = sessions_of_samples(rows)
    of_ingest = account_of_samples(source)
    if of_ingest is not None and of_ingest[0].kept != rows.num_rows:
        raise InvalidFieldError(name, f"{rows.num_rows:,} samples", f"the {of_ingest[0].kept:,} of its account.json: "
                                                                    "some were added or lost")
    account, whose = of_ingest or (count_samples(rows), "of the samples, which have none of their ingest")
    return LogRows(source, sessions, QUARANTINE_SCHEMA.empty_table(), account, whose)


def count_samples(rows: pa.Table) -> Account:
    """What can be counted of samples without the account of their ingest."""
    return Account(rows_in=rows.num_rows, kept=rows.num_rows, not_drawn=_not_drawn(rows),
                   truncated=int(pc.sum(rows["truncated"]).as_py() or 0))


def _not_drawn(rows: pa.Table) -> int:
    return int(pc.sum(pc.invert(pc.fill_null(rows["explored"], True))).as_py() or 0)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _together(notes: Iterable[Iterable[str]]) -> tuple[str, ...]:
    """Every note once."""
    return tuple(sorted({note for part in notes for note in part}))
