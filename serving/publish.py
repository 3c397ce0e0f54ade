"""Puts together what serving loads: a models directory with bundles, catalogue, user states and the pointer to them."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recfuse.bundle import read_bundle
from recfuse.bundle.bundle import BundleKind
from recfuse.bundle.pointer import Pointer, write_pointer
from recfuse.state.store import UserState, UserStateStore

logger = logging.getLogger("recfuse")


def publish(
    models: str | Path,
    *,
    fusion: str | Path,
    scenes: str | Path,
    catalogue: pa.Table,
    users: Mapping[str, UserState],
) -> Pointer:
    """Copies verified bundles into the models directory, writes catalogue and user states, then moves the pointer.

    Args:
        models: the directory that serving watches.
        fusion, scenes: directories of bundles.
        catalogue: `item_id` and what is known of each item.
        users: user id → what is known of them before their first request.

    Raises:
        BundleError: a bundle does not verify; the pointer then stays where it was.
    """
    models = Path(models)
    models.mkdir(parents=True, exist_ok=True)
    pointer = Pointer(fusion=_copy(fusion, models, "fusion"), scenes=_copy(scenes, models, "scenes"),
                      catalogue=_write_catalogue(models, catalogue), users=_write_users(models, users))
    write_pointer(models, pointer)
    logger.info("published %s and %s with %d items and %d users in %s", pointer.fusion, pointer.scenes,
                catalogue.num_rows, len(users), models)
    return pointer


def _copy(bundle: str | Path, models: Path, kind: BundleKind) -> str:
    source = read_bundle(bundle, kind=kind)
    target = models / source.version
    if not target.exists():
        temporary = models / f".copying-{source.version}"
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.copytree(source.path, temporary)
        temporary.rename(target)
    read_bundle(target, kind=kind)
    return target.name


def _write_catalogue(models: Path, catalogue: pa.Table) -> str:
    """Named by its content: a serving replica that still reads the old one is not disturbed."""
    temporary = models / ".catalogue.parquet"
    pq.write_table(catalogue, temporary)
    name = f"catalogue-{hashlib.sha256(temporary.read_bytes()).hexdigest()[:12]}.parquet"
    temporary.rename(models / name)
    return name


def _write_users(models: Path, users: Mapping[str, UserState]) -> str:
    # One file for good: states that feedback has updated since must not be lost by the next publication.
    name = "users.sqlite"
    with UserStateStore(models / name) as store:
        known = set(store.get_many(list(users)))
        store.put_many((user_id, user) for user_id, user in users.items() if user_id not in known)
    return name


def user_states(
    users: pa.Table, history: pa.Table, contexts: Mapping[str, np.ndarray], context_user_ids: np.ndarray
) -> dict[str, UserState]:
    """What the user-state store starts with.

    Args:
        users: `user_id` and the features that the scorer reads.
        history: `user_id` and `items`, oldest first.
        contexts: state feature → column `[U]`, for the users in `context_user_ids[U]`.
    """
    histories = dict(zip(history["user_id"].to_pylist(), history["items"].to_pylist(), strict=True))
    plain = {name: column.tolist() for name, column in contexts.items()}
    own = {int(user): {name: column[row] for name, column in plain.items()}
           for row, user in enumerate(context_user_ids.tolist())}
    states = {}
    for row in users.to_pylist():
        user = row.pop("user_id")
        features: dict[str, Any] = {name: _plain(value) for name, value in row.items()}
        states[str(user)] = UserState(features=features | own.get(user, {}), history=tuple(histories.get(user) or ()))
    return states


def _plain(value: Any) -> Any:
    # NaN is no JSON; an absent value says the same.
    return None if isinstance(value, float) and value != value else value
