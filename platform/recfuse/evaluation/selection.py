"""Which held-out rows count, for samples that are read a piece at a time: sessions that began late enough, new users.

A session is kept whole or left out whole, also where it goes on from one piece to the next.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recfuse.config import require
from recfuse.evaluation.config import parse_time
from recfuse.evaluation.held_out import microseconds
from recfuse.evaluation.separation import Keys, hash_ids
from recfuse.logs.reading import read_sample_piece, sample_pieces, session_ends
from recfuse.logs.source import LogSource, Piece

Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Selection:
    """The rows of samples that count.

    Attributes:
        start: microseconds since 1970, from which sessions must have begun; None for all.
        entering: piece → whether the session that it begins within counts, of sessions that began in a piece before.
        leaving: the same of the session that goes on in a later piece.
        users: hashes of those who do not count; None for nobody.
        straddling: sessions that began before the start and went on after it.
        stage: whose requests count; empty for all.
    """

    start: int | None = None
    entering: dict[int, bool] = field(default_factory=dict)
    leaving: dict[int, bool] = field(default_factory=dict)
    users: Keys | None = None
    straddling: int = 0
    stage: str = ""

    @classmethod
    def from_time_on(cls, source: LogSource, after: str) -> Selection:
        """Reads all samples for where their sessions begin.

        Args:
            after: ISO time; empty for all.

        Raises:
            InvalidFieldError: samples without times, or no session that begins at the time or later.
        """
        if not after:
            return cls()
        moment = parse_time(after)
        assert moment is not None
        start, sessions = int(moment.timestamp() * 1e6), _Straddling()
        for piece in sample_pieces(source, "holdout"):
            table = read_sample_piece(source, piece, "holdout")
            require(table["ts"].null_count == 0, "after", after,
                    "a log with times; these samples have none, so ingest them anew")
            if table.num_rows:
                sessions.add(piece.number, session_ends(table), _late(table, start))
        sessions.close()
        require(sessions.begun > 0, "after", after, "a time at which at least one session has yet to begin; "
                f"{sessions.straddling:,} began before it and went on, and are left out whole")
        return cls(start, sessions.entering, sessions.leaving, straddling=sessions.straddling)

    def without(self, users: Keys) -> Selection:
        """The same but for these users."""
        return replace(self, users=users)

    def take(self, piece: Piece, table: pa.Table) -> pa.Table:
        """The rows of a piece that count."""
        kept = np.ones(table.num_rows, bool)
        if self.start is not None and table.num_rows:
            number, all_late, _ = _by_session(session_ends(table), _late(table, self.start))
            all_late[0] &= self.entering.get(piece.number, True)
            all_late[-1] &= self.leaving.get(piece.number, True)
            kept &= all_late[number]
        if self.users is not None:
            kept &= ~np.isin(hash_ids(table["user_id"].to_numpy()), self.users)
        if self.stage:
            kept &= pc.fill_null(pc.equal(table["stage"], self.stage), False).to_numpy()
        return table if kept.all() else table.filter(pa.array(kept))

    def read(self, source: LogSource) -> Iterator[pa.Table]:
        """The rows that count, piece by piece."""
        for piece in sample_pieces(source, "holdout"):
            yield self.take(piece, read_sample_piece(source, piece, "holdout"))


class _Straddling:
    """Follows sessions from piece to piece."""

    def __init__(self) -> None:
        self.begun, self.straddling = 0, 0
        self.entering: dict[int, bool] = {}
        self.leaving: dict[int, bool] = {}
        self._pieces: list[int] = []  # that the session which goes on has rows of
        self._all, self._some = True, False

    def add(self, piece: int, ends: Bools, late: Bools) -> None:
        """The rows of the next piece."""
        _, all_late, some_late = _by_session(ends, late)
        last = len(all_late) - 1
        for position in sorted({0, last}):
            self._pieces.append(piece)
            self._all, self._some = self._all and bool(all_late[position]), self._some or bool(some_late[position])
            if position < last or ends[-1]:
                self.close()
        self.begun += int(all_late[1:last].sum())
        self.straddling += int((some_late & ~all_late)[1:last].sum())

    def close(self) -> None:
        """The session ends."""
        if not self._pieces:
            return
        for piece in self._pieces[1:]:
            self.entering[piece] = self._all
        for piece in self._pieces[:-1]:
            self.leaving[piece] = self._all
        self.begun += self._all
        self.straddling += self._some and not self._all
        self._pieces, self._all, self._some = [], True, False


def _late(table: pa.Table, start: int) -> Bools:
    ts = microseconds(table["ts"])
    assert ts is not None
    return np.asarray(ts >= start, bool)


def _by_session(ends: Bools, late: Bools) -> tuple[NDArray[np.int64], Bools, Bools]:
    """[n] number of each row's session within the piece, and of each session whether all and some rows are late."""
    number = np.concatenate([[0], np.cumsum(ends)[:-1]]).astype(np.int64)
    rows, late_rows = np.bincount(number), np.bincount(number, late)
    return number, late_rows == rows, late_rows > 0
