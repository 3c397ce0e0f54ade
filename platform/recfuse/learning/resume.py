"""Which run a checkpoint is of: what its result depends on, as JSON beside it, and what has changed since.

A checkpoint of another run is never written over. It moves aside, under a name by which the run that it is of finds it
again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recfuse.config import shorten
from recfuse.learning.settings import StoppingRule

logger = logging.getLogger("recfuse")
IDENTITY = "run.json"
# How many workers compute, and where, is no part of a result; passes may be added to a run or taken from it.
_NO_PART = ("num_learners", "device", "gpus_per_learner", "threads", "memory_mib")


@dataclass(frozen=True)
class RunIdentity:
    """All that the result of a training depends on, but for how many passes it takes.

    Attributes:
        job: that trains; values: field → plain value.
    """

    job: str
    values: Mapping[str, Any]

    @property
    def key(self) -> str:
        """Hash of the values."""
        return hashlib.sha256(json.dumps(self.values, sort_keys=True).encode()).hexdigest()[:12]

    def take_up(self, checkpoint: Path) -> bool:
        """Makes the directory the checkpoint of this run. One of another run moves aside, which is said with what
        has changed; one of this run that once moved aside comes back.

        Returns:
            Whether the directory holds what an earlier start of this run has left.
        """
        before = read_identity(checkpoint)
        if before == dict(self.values):
            return True
        aside = checkpoint.with_name(f"{checkpoint.name}-{self.key}")
        known = read_identity(aside) == dict(self.values)
        if checkpoint.is_dir() and any(checkpoint.iterdir()):
            why = "was written by an earlier version" if before is None else "is of another run"
            kept = _move_aside(checkpoint, before)
            logger.warning("%s: the checkpoint in %s %s%s; it is kept as %s, and %s", self.job, checkpoint, why,
                           "".join(f"; {line}" for line in changes(before, self.values)) if before is not None else "",
                           kept.name, f"{aside.name} is taken up again" if known else "training starts anew")
        if known:
            if checkpoint.is_dir():
                checkpoint.rmdir()
            os.rename(aside, checkpoint)
            return True
        checkpoint.mkdir(parents=True, exist_ok=True)
        write_atomically(checkpoint / IDENTITY, json.dumps(dict(self.values), indent=1, sort_keys=True))
        return False


def identity_of(job: str, settings: Mapping[str, Any], **others: Any) -> RunIdentity:
    """The identity of a training with these settings (plain values), and with what else its result depends on."""
    plain = {name: _without_passes(value) for name, value in settings.items() if name not in _NO_PART}
    return RunIdentity(job, json.loads(json.dumps({"learning": plain, **others})))


def _without_passes(value: Any) -> Any:
    if isinstance(value, Mapping) and set(value) == set(StoppingRule.model_fields):
        return {name: each for name, each in value.items() if name != "iterations"}
    return value


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """`key old → new` of every value that differs, by its path."""
    old, new = _flat(before), _flat(after)
    absent = "absent"
    return [f"{key} {_shown(old.get(key, absent))} → {_shown(new.get(key, absent))}" for key in sorted(old | new)
            if old.get(key, absent) != new.get(key, absent)]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) and len(value) < 40 else shorten(value, 60)


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    result: dict[str, Any] = {}
    for name, value in mapping.items():
        is_nested = isinstance(value, Mapping) and value
        result |= _flat(value, f"{prefix}{name}.") if is_nested else {f"{prefix}{name}": value}
    return result


def read_identity(checkpoint: Path) -> dict[str, Any] | None:
    """What a checkpoint says it is of; None where it says nothing that can be read."""
    try:
        values = json.loads((checkpoint / IDENTITY).read_text())
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _move_aside(checkpoint: Path, values: Mapping[str, Any] | None) -> Path:
    key = "earlier" if values is None else RunIdentity("", values).key
    target, number = checkpoint.with_name(f"{checkpoint.name}-{key}"), 1
    while target.exists():
        number += 1
        target = checkpoint.with_name(f"{checkpoint.name}-{key}-{number}")
    os.rename(checkpoint, target)
    return target


def write_atomically(path: Path, text: str) -> None:
    """The file appears whole, or stays what it was."""
    temporary = path.with_name(f"{path.name}.writing")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
