"""Puts together what serving loads: a models directory with bundles, catalogue, user states and the pointer to them."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import uuid
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recfuse.bundle import copy_bundle
from recfuse.bundle.pointer import POINTER, Pointer, read_pointer, write_pointer
from recfuse.config import InvalidFieldError, require, without_secrets
from recfuse.serving.catalogue import Catalogue
from recfuse.serving.config import Supplements
from recfuse.serving.contract import Contract, paths_of
from recfuse.serving.parts import Users
from recfuse.state.redis import RedisUserStates
from recfuse.state.store import UserState, UserStateError, UserStateStore

logger = logging.getLogger("recfuse")
_USERS = "users.sqlite"
_BULK_SECONDS = 30.0  # for a command of hundreds of users


def publish(
    models: str | Path,
    *,
    fusion: str | Path | None = None,
    scenes: str | Path | None = None,
    catalogue: pa.Table | None = None,
    users: Mapping[str, UserState] | None = None,
    users_time: float | None = None,
    users_at: str = "",
    supplements: Supplements | None = None,
) -> Pointer:
    """Copies verified bundles into the models directory, writes catalogue and user states, then moves the pointer.

    What is not given stays as it is, so that a new policy is published alone.

    Args:
        models: the directory that serving watches.
        fusion, scenes: directories of bundles.
        catalogue: `item_id` and what is known of each item.
        users: user id → what is known of them before their first request; it replaces what was known, but for users of
            whom feedback told later.
        users_time: seconds since 1970 at which this was so; None is before all feedback.
        users_at: URL of a Redis that has the users; empty takes a SQLite file in the directory.
        supplements: as the server that watches the directory has them; None for none.

    Raises:
        BundleError: a bundle or the present pointer does not verify, or the parts do not fit each other; the pointer
            then stays where it was, and so do the users.
        InvalidFieldError: names what a catalogue must not hold, or a users.sqlite that holds no user states.
    """
    models = Path(models)
    require(not models.exists() or models.is_dir(), "models", str(models), "a directory")
    # A file of this name that is no pointer is somebody else's, and is refused before anything is written.
    before = read_pointer(models) if (models / POINTER).exists() else Pointer()
    models.mkdir(parents=True, exist_ok=True)
    # Another's file, or a Redis that does not answer, is refused before anything is written.
    if users is not None and users_at:
        _redis(users_at).close()
    elif users is not None and (models / _USERS).exists():
        UserStateStore(models / _USERS).close()
    changed: dict[str, Any] = {}
    if fusion is not None:
        changed["fusion"] = copy_bundle(fusion, models, "fusion").name
    if scenes is not None:
        changed["scenes"] = copy_bundle(scenes, models, "scenes").name
    if catalogue is not None:
        changed["catalogue"] = _write_catalogue(models, catalogue)
    if users is not None and not users_at:
        changed["users"] = _USERS
    pointer = replace(before, **changed)
    exported = None if users is None else Users("users", {user_id: user.features for user_id, user in users.items()})
    Contract(supplements or Supplements()).require(paths_of(pointer, models), exported)
    if users is not None:
        # One store for good: states that feedback has updated since must not be lost by the next publication.
        with contextlib.closing(_redis(users_at) if users_at else UserStateStore(models / _USERS)) as store:
            try:
                written = store.update_many(users.items(), users_time)
            except UserStateError as error:
                raise InvalidFieldError("users", without_secrets(users_at), f"a store that takes users ({error})"
                                        ) from None
        logger.info("users: %d of %d written, of the others feedback told later", written, len(users))
    write_pointer(models, pointer)
    logger.info("published in %s: %s", models, ", ".join(f"{part} {name}" for part, name in changed.items()))
    return pointer


def _redis(url: str) -> RedisUserStates:
    """A Redis that answers.

    Raises:
        InvalidFieldError: none does.
    """
    store = RedisUserStates(url, timeout_seconds=_BULK_SECONDS)
    try:
        store.get("")
    except UserStateError as error:
        store.close()
        raise InvalidFieldError("users", without_secrets(url), f"a Redis that answers ({error})") from None
    return store


def _write_catalogue(models: Path, catalogue: pa.Table) -> str:
    """Named by its content: a serving replica that still reads the old one is not disturbed."""
    Catalogue(catalogue)  # This refuses here what serving would refuse.
    temporary = models / f".catalogue-{uuid.uuid4().hex}"
    pq.write_table(catalogue, temporary)
    name = f"catalogue-{hashlib.sha256(temporary.read_bytes()).hexdigest()[:12]}.parquet"
    temporary.rename(models / name)
    return name
