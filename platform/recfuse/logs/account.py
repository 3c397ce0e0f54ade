"""The account of a read: every row that came in is kept, quarantined with its reason, or left out by a rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from recfuse.config import InvalidFieldError

# Share of quarantined rows beyond which a job ends with an error, where its config says nothing else.
QUARANTINE_LIMIT = 0.05


@dataclass(frozen=True)
class Account:
    """Rows in, kept, quarantined by reason, left out. Construction asserts in = kept + quarantined + left out.

    Attributes:
        rows_in: rows that were read.
        kept: rows that went on.
        quarantined: reason → rows.
        unreadable_files: file → why no row of it could be read (their rows are unknown, so they stand apart).
        left_out: last requests of sessions that the end of the log cuts, where these are not to be learned from.
        truncated: sessions that the end of the log cuts.
        not_drawn: kept rows whose action was not drawn from the policy.
        ties: kept rows whose time is that of the request before them, and that nothing orders but their ids.
        notes: what was assumed or left out, in sentences.
    """

    rows_in: int
    kept: int
    quarantined: Mapping[str, int] = field(default_factory=dict)
    unreadable_files: Mapping[str, str] = field(default_factory=dict)
    left_out: int = 0
    truncated: int = 0
    not_drawn: int = 0
    ties: int = 0
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        total = self.kept + sum(self.quarantined.values()) + self.left_out
        if self.rows_in != total:
            raise AssertionError(f"rows lost: in {self.rows_in} ≠ kept {self.kept} + quarantined "
                                 f"{sum(self.quarantined.values())} + left out {self.left_out}")

    @property
    def quarantined_share(self) -> float:
        """Of the rows that came in."""
        return sum(self.quarantined.values()) / max(self.rows_in, 1)

    def require(self, limit: float, name: str) -> None:
        """Refuses a log of which nothing is kept, or of which more than the limit is quarantined.

        Args:
            limit: share of the rows in [0, 1].
            name: the config field that named the log.

        Raises:
            InvalidFieldError: with the commonest reason.
        """
        commonest = max(self.quarantined, key=lambda reason: self.quarantined[reason], default="")
        if not self.kept:
            raise InvalidFieldError(name, f"0 of {self.rows_in:,} rows kept",
                                    f"at least one good row; the commonest fault is {commonest or 'that it is empty'}")
        if self.quarantined_share > limit:
            raise InvalidFieldError(name, f"{self.quarantined_share:.1%} of the rows quarantined",
                                    f"at most {limit:.1%} (quarantine_limit); the commonest fault is {commonest}")

    def __str__(self) -> str:
        parts = [f"in {self.rows_in:,} = kept {self.kept:,} + quarantined {sum(self.quarantined.values()):,}"
                 + (f" + left out {self.left_out:,}" if self.left_out else "")]
        parts += [f"{reason}: {rows:,}" for reason, rows in sorted(self.quarantined.items())]
        if self.truncated:
            parts.append(f"{self.truncated:,} sessions cut by the end of the log")
        if self.not_drawn:
            parts.append(f"{self.not_drawn:,} actions that were not drawn")
        if self.ties:
            parts.append(f"{self.ties:,} requests at the time of the one before, in the order of their ids")
        parts += [f"unreadable file {file}: {why}" for file, why in sorted(self.unreadable_files.items())]
        return "; ".join([*parts, *self.notes])
