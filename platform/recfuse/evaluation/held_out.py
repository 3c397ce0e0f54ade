"""Reading what an evaluation needs: held-out logs that judge the policy, and samples that critics are fitted to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError, require
from recfuse.evaluation.config import parse_time
from recfuse.evaluation.fitted_q import Transitions
from recfuse.logs.schema import VOCABULARY_FILE

_LOG_COLUMNS = ("user_id", "state", "action", "action_logp", "feedback")
_SESSION_COLUMNS = ("session_id", "ts", "done")
_SAMPLE_COLUMNS = ("user_id", "state", "action", "feedback", "next_state", "done")


@dataclass(frozen=True)
class HeldOut:
    """Logged requests, those of a session in the order of time: state [n, S], action [n, M], log_prob [n] under the
    behaviour policy, feedback [n, m], session [n]."""

    user_id: np.ndarray
    state: np.ndarray
    action: np.ndarray
    log_prob: np.ndarray
    feedback: np.ndarray
    session: np.ndarray

    def take(self, mask: np.ndarray) -> HeldOut:
        """The requests in the mask bool[n]."""
        return HeldOut(**{name: column[mask] for name, column in self.__dict__.items()})

    @classmethod
    def of_table(cls, table: pa.Table, vocabulary: Vocabulary) -> HeldOut:
        """Requests from a table with the columns of session logs or of samples."""
        return cls(
            user_id=table["user_id"].to_numpy(), state=matrix(table["state"], vocabulary.state_size),
            action=matrix(table["action"], vocabulary.action_size),
            log_prob=table["action_logp"].to_numpy().astype(np.float64),
            feedback=_feedback(table["feedback"], vocabulary.behaviour_names), session=_session(table))


def read_held_out(directory: str | Path, vocabulary: Vocabulary, rows: int | None = None,
                  after: str = "") -> HeldOut:
    """Reads native session logs (`feedback` is a struct) or samples (`feedback` is a list, a row with `done` ends a
    session); the first rows, where a number of them is given; those from a time on, where one is given.

    Raises:
        InvalidFieldError: no such directory, no rows, a column is missing, or the vocabularies do not fit.
    """
    directory = Path(directory)
    require(directory.is_dir(), "holdout", str(directory), "a directory of session logs or samples")
    _check_vocabulary(directory, vocabulary, "holdout")
    files = parquet_files(directory)
    require(bool(files), "holdout", str(directory), "a directory with *.parquet")
    source = ds.dataset(files)
    for name in _LOG_COLUMNS:
        require(name in source.schema.names, f"holdout column {name}", source.schema.names, f"a column {name}")
    columns = [*_LOG_COLUMNS, *(name for name in _SESSION_COLUMNS if name in source.schema.names)]
    require(not after or "ts" in columns, "after", after, "session logs with a column ts")
    late = ds.field("ts") >= pa.scalar(parse_time(after), pa.timestamp("us", "UTC")) if after else None
    try:
        table = (source.to_table(columns=columns, filter=late) if rows is None else
                 source.head(rows, columns=columns, filter=late))
    except (pa.ArrowInvalid, OSError) as error:
        raise InvalidFieldError("holdout", str(directory), f"readable Parquet ({error})") from None
    require(table.num_rows > 0, "holdout", table.num_rows, "at least one request")
    if "ts" in columns:
        table = table.sort_by("ts")
    return HeldOut.of_table(table.combine_chunks(), vocabulary)


def read_transitions(directory: str | Path, vocabulary: Vocabulary, rows: int) -> Transitions | None:
    """The first samples of a directory; None where it holds none."""
    directory = Path(directory)
    files = parquet_files(directory)
    if not files:
        return None
    _check_vocabulary(directory, vocabulary, "samples")
    table = ds.dataset(files).head(rows, columns=list(_SAMPLE_COLUMNS))
    widths = {"state": vocabulary.state_size, "action": vocabulary.action_size, "next_state": vocabulary.state_size,
              "feedback": len(vocabulary.behaviour_names)}
    return Transitions(**{name: matrix(table[name], width) for name, width in widths.items()},
                       done=table["done"].to_numpy(), user=table["user_id"].to_numpy())


def parquet_files(directory: str | Path) -> list[str]:
    """Paths of a directory's Parquet files, in the order of their names."""
    return sorted(str(file) for file in Path(directory).glob("*.parquet"))


def matrix(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """[n, width] of a column of lists.

    Raises:
        InvalidFieldError: a list is longer or shorter.
    """
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    require(len(flat) == len(column) * width, column.type, len(flat), f"lists of {width} numbers in every row")
    return flat.reshape(len(column), width)


def _check_vocabulary(directory: Path, vocabulary: Vocabulary, field: str) -> None:
    logged = Vocabulary.load(directory / VOCABULARY_FILE)
    for name in ("behaviour_names", "fusion_parameters", "state_size"):
        require(getattr(logged, name) == getattr(vocabulary, name), f"{field} {name}", getattr(logged, name),
                f"{getattr(vocabulary, name)}, as in the policy's vocabulary")


def _session(table: pa.Table) -> np.ndarray:
    """A session id a row; without any, every request is a session of its own."""
    if "session_id" in table.column_names and table["session_id"].null_count == 0:
        return table["session_id"].to_numpy()
    if "done" in table.column_names:
        done = table["done"].to_numpy() > .5
        return np.concatenate([[0], np.cumsum(done)[:-1]])
    return np.arange(table.num_rows)


def _feedback(column: pa.ChunkedArray, names: tuple[str, ...]) -> np.ndarray:
    if not pa.types.is_struct(column.type):
        return matrix(column, len(names))
    fields = column.combine_chunks()
    # A behaviour that a row does not report did not happen in it.
    return np.stack([np.nan_to_num(fields.field(name).to_numpy(zero_copy_only=False)) for name in names], 1)
