"""Where a rollout stands, beside the pointer, and the audit of its steps.

A step is written four times: the state with its audit row, the row in the audit, the pointer, and the state as settled.
Each of them is whole or absent, and can be done again; so whoever comes after a death finishes the step.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from recfuse.bundle.pointer import Pointer, read_pointer, write_pointer
from recfuse.config import InvalidFieldError, from_mapping, require
from recfuse.evaluation.files import read_json, write_whole
from recfuse.rollout.config import Plan

STATE, AUDIT = "rollout.json", "rollout_audit.jsonl"
_LOCK = ".rollout.lock"
State = Literal["gate", "refused", "canary", "promoted", "rolled back", "ended"]
UNDER_WAY: tuple[State, ...] = ("gate", "canary")


@dataclass(frozen=True)
class Row:
    """One step, as the audit has it.

    Attributes:
        number: from 1 on, of all steps of a models directory.
        at: seconds since 1970. who: a person, `gate` or `verdict`.
        candidate: version; step: from which state to which; why: a sentence; figures: plain values.
    """

    number: int
    at: float
    who: str
    candidate: str
    step: str
    why: str
    figures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Rollout:
    """Attributes:
        candidate, base: versions; part: which of the pointer's they are.
        state: see State; stage: which of the plan's shares the canary has.
        began, stage_began: seconds since 1970, of the first share and of the present one.
        plan: as it was at the start.
        row: of the step that led here.
        pending: the step is not finished.
        verdict: the last look, plain values; None before the first.
    """

    candidate: str
    base: str
    part: Literal["fusion", "scenes"]
    state: State
    stage: int
    began: float
    stage_began: float
    plan: Plan
    row: Row
    pending: bool = True
    verdict: dict[str, Any] | None = None

    @property
    def share(self) -> float:
        """Of the users that the candidate serves."""
        return {"canary": self.plan.shares[self.stage], "promoted": 1.0}.get(self.state, 0.0)

    @property
    def words(self) -> str:
        """The state in a few words."""
        return f"canary at {self.share:.4g}" if self.state == "canary" else self.state

    def moved(self, pointer: Pointer) -> str:
        """What of a canary's pointer is not as the rollout left it, in words; "" where all of it is."""
        wanted = {self.part: self.base, f"{self.part}_canary": self.candidate, "canary_share": self.share}
        return ", ".join(f"{name} is {getattr(pointer, name)}" for name, value in wanted.items()
                         if getattr(pointer, name) != value)

    def points(self, pointer: Pointer) -> Pointer:
        """The pointer as this state wants it."""
        if self.state in ("gate", "refused", "ended"):
            return pointer
        canary, changes = f"{self.part}_canary", dict[str, Any]()
        if self.state == "canary":
            changes = {canary: self.candidate, "canary_share": self.share}
        elif getattr(pointer, canary) == self.candidate:
            changes = {canary: None, "canary_share": 0.0}
        if self.state == "promoted":
            changes[self.part] = self.candidate
        elif self.state == "rolled back" and getattr(pointer, self.part) == self.candidate:
            changes[self.part] = self.base
        return replace(pointer, **changes)


class Store:
    """The state and the audit of a models directory.

    Args:
        models: directory with a pointer.

    Raises:
        InvalidFieldError: there is no such directory.
    """

    def __init__(self, models: str | Path) -> None:
        self.models = Path(models)
        require(self.models.is_dir(), "models", str(models), "a directory with current.json")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Inside, nobody else takes a step; a step that somebody's death has cut off is finished first."""
        with open(self.models / _LOCK, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            rollout = self.read()
            if rollout is not None and rollout.pending:
                self._finish(rollout)
            yield

    def read(self) -> Rollout | None:
        """Where the rollout stands; None where there was none yet.

        Raises:
            InvalidFieldError: the file is none of ours.
        """
        plain = read_json(self.models / STATE)
        try:
            return None if plain is None else Rollout(
                **{**plain, "row": Row(**plain["row"]), "plan": from_mapping(Plan, plain["plan"])})
        except (KeyError, TypeError) as error:
            raise InvalidFieldError("models", str(self.models / STATE),
                                    f"the state of a rollout, as it was written ({error})") from None

    def audit(self) -> list[Row]:
        """Every step so far, the oldest first."""
        path = self.models / AUDIT
        lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        return [Row(**json.loads(line)) for line in lines]

    def step(self, rollout: Rollout) -> Rollout:
        """Takes a step, inside `locked`; returns the settled state."""
        pending = replace(rollout, pending=True)
        self._write(pending)
        return self._finish(pending)

    def note(self, rollout: Rollout, verdict: dict[str, Any]) -> Rollout:
        """Keeps the last look of a state that stays, inside `locked`."""
        noted = replace(rollout, verdict=verdict)
        self._write(noted)
        return noted

    def row(self, who: str, at: float, candidate: str, step: str, why: str, figures: dict[str, Any]) -> Row:
        """The next row of the audit."""
        rows = self.audit()
        return Row(rows[-1].number + 1 if rows else 1, at, who, candidate, step, why, figures)

    def _finish(self, rollout: Rollout) -> Rollout:
        self._append(rollout.row)
        self._point(rollout)
        settled = replace(rollout, pending=False)
        self._write(settled)
        return settled

    def _append(self, row: Row) -> None:
        """Adds a row that the audit lacks; a line that a death has cut off goes."""
        with open(self.models / AUDIT, "a+b") as file:
            file.seek(0)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                file.truncate(whole)
            last = content[:whole].rstrip(b"\n").rsplit(b"\n", 1)[-1]
            if not last or json.loads(last)["number"] < row.number:
                file.write(json.dumps(asdict(row)).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())

    def _point(self, rollout: Rollout) -> None:
        pointer = read_pointer(self.models)
        if (wanted := rollout.points(pointer)) != pointer:
            write_pointer(self.models, wanted)

    def _write(self, rollout: Rollout) -> None:
        write_whole(self.models / STATE, json.dumps({**asdict(rollout), "plan": rollout.plan.to_dict()}, indent=1))
