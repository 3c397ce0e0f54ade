"""The pointer of a models directory: which bundles serve now. Replaced as a whole, so that a reader never sees half."""

from __future__ import annotations

import dataclasses
import json
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from recfuse.bundle.bundle import BundleError

POINTER = "current.json"


@dataclass(frozen=True, kw_only=True)
class Pointer:
    """Names within a models directory; None where it has none.

    Attributes:
        fusion, scenes: directories of bundles.
        catalogue: the Parquet file of the items.
        users: the SQLite file of the users' states.
        fusion_canary, scenes_canary: directories of bundles that serve a share of the users.
        canary_share: that share, from 0 to 1; who is in it depends on the user's id and the canary alone.
    """

    fusion: str | None = None
    scenes: str | None = None
    catalogue: str | None = None
    users: str | None = None
    fusion_canary: str | None = None
    scenes_canary: str | None = None
    canary_share: float = 0.0

    def path(self, models: str | Path, name: str) -> Path | None:
        """Where the part `name` lies, None where the pointer has none."""
        value = getattr(self, name)
        return None if value is None else Path(models) / value


def read_pointer(models: str | Path) -> Pointer:
    """Reads `models/current.json`.

    Raises:
        BundleError: the file is missing, no JSON object, or names something outside of the directory.
    """
    path = Path(models) / POINTER
    known = [field.name for field in dataclasses.fields(Pointer)]
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}; expected a JSON object with {', '.join(known)}") from None
    except ValueError as error:
        raise BundleError(f"{path}: {error}; expected a JSON object with {', '.join(known)}") from None
    if not isinstance(values, dict) or set(values) - set(known):
        raise BundleError(f"{path}: got {values!r}; expected a JSON object with {', '.join(known)}")
    share = values.get("canary_share", 0.0)
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise BundleError(f"{path}: canary_share is {share!r}; expected a number from 0 to 1")
    for name, value in values.items():
        if name != "canary_share" and value is not None and not _is_name(value):
            raise BundleError(f"{path}: {name} is {value!r}; expected the name of something in that directory")
    return Pointer(**values)


def write_pointer(models: str | Path, pointer: Pointer) -> Path:
    """Replaces `models/current.json` in one step (temporary file, fsync, rename) and returns its path."""
    models = Path(models)
    models.mkdir(parents=True, exist_ok=True)
    temporary = models / f".{POINTER}-{uuid.uuid4().hex}"
    try:
        with open(temporary, "w") as file:
            json.dump(dataclasses.asdict(pointer), file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, models / POINTER)
    finally:
        temporary.unlink(missing_ok=True)
    return models / POINTER


def _is_name(value: object) -> bool:
    return isinstance(value, str) and bool(value) and Path(value).name == value and value not in (".", "..")
