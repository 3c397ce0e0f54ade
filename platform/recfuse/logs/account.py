"""The account of a read: every row that came in is kept or quarantined with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Account:
    """Rows in, kept, and quarantined by reason. Construction asserts in = kept + quarantined.

    Attributes:
        rows_in: rows that were read.
        kept: rows that went on.
        quarantined: reason → rows.
        unreadable_files: file → why no row of it could be read (their rows are unknown, so they stand apart).
    """

    rows_in: int
    kept: int
    quarantined: Mapping[str, int] = field(default_factory=dict)
    unreadable_files: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        total = self.kept + sum(self.quarantined.values())
        if self.rows_in != total:
            raise AssertionError(f"rows lost: in {self.rows_in} ≠ kept {self.kept} + quarantined {total - self.kept}")

    def __str__(self) -> str:
        parts = [f"in {self.rows_in:,} = kept {self.kept:,} + quarantined {sum(self.quarantined.values()):,}"]
        parts += [f"{reason}: {rows:,}" for reason, rows in sorted(self.quarantined.items())]
        parts += [f"unreadable file {file}: {why}" for file, why in sorted(self.unreadable_files.items())]
        return "; ".join(parts)
