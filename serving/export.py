"""From what was trained to what serving loads: bundles, and the catalogue and the users of exposures; what is named is
published, and all else stays as it is."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recfuse.bundle import newest_bundle
from recfuse.bundle.pointer import Pointer
from recfuse.logs.exposure_files import read_known
from recfuse.logs.exposures import Exposures, Known
from recfuse.logs.ids import read_keys
from recfuse.serving.config import ExportConfig, Part
from recfuse.serving.publish import publish
from recfuse.state.store import UserState

Contexts = tuple[Mapping[str, np.ndarray], np.ndarray]


def export(config: ExportConfig, known: Callable[[ExportConfig], Known | Exposures],
           contexts: Callable[[str], Contexts]) -> Pointer:
    """Publishes the parts and returns the pointer.

    Args:
        known: items and users of what `config.exposures` names; of the layout `native` they are read here.
        contexts: of a simulated world: state feature → column [U], and the ids [U] of its users.

    Raises:
        BundleError: a bundle is missing or does not verify.
        InvalidFieldError: the logs, the world or a catalogue cannot be read.
    """
    tables = functools.cache(lambda: read_known(config.exposures) if config.layout == "native" else known(config))
    make: dict[Part, Callable[[], Any]] = {
        "fusion": lambda: newest_bundle(config.fusion, "fusion"),
        "scenes": lambda: newest_bundle(config.scenes, "scenes"),
        "catalogue": lambda: tables().items,
        "users": lambda: known_users(tables(), contexts(config.world) if config.world else None),
    }
    return publish(config.models, **{part: make[part]() for part in config.published}, supplements=config.supplements,
                   users_time=_time_of_users(config), users_at=config.users)


def _time_of_users(config: ExportConfig) -> float | None:
    """When the users were written; None where they are of no file of their own, so that feedback is newer."""
    files = sorted(Path(config.exposures).glob("users*")) if config.exposures and config.layout == "native" else []
    return max((file.stat().st_mtime for file in files), default=None)


def known_users(exposures: Known | Exposures, contexts: Contexts | None) -> dict[str, UserState]:
    """What is known of users before their first request: by the logs, and by a simulated world where there is one."""
    columns, user_ids = contexts or ({}, np.zeros(0, np.int64))
    return user_states(exposures.users, exposures.history, columns, user_ids)


def user_states(
    users: pa.Table, history: pa.Table, contexts: Mapping[str, np.ndarray], context_user_ids: np.ndarray
) -> dict[str, UserState]:
    """What the user-state store starts with.

    Args:
        users: `user_id` and the features that the scorer reads.
        history: `user_id` and `items`, oldest first.
        contexts: state feature → column `[U]`, for the users whose keys are `context_user_ids[U]`.
    """
    histories = dict(zip(_keys(history), history["items"].to_pylist(), strict=True))
    columns = {name: column.tolist() for name, column in contexts.items()}
    context_of = {int(user): {name: column[row] for name, column in columns.items()}
                  for row, user in enumerate(context_user_ids.tolist())}
    states = {}
    for key, row in zip(_keys(users), users.to_pylist(), strict=True):
        user = row.pop("user_id")
        features: dict[str, Any] = {name: _plain(value) for name, value in row.items()}
        states[str(user)] = UserState(features=features | context_of.get(key, {}),
                                      history=tuple(histories.get(key) or ()))
    return states


def _keys(table: pa.Table) -> list[int]:
    """The users by which tables are joined, whichever way each of them writes ids."""
    keys: list[int] = read_keys(table["user_id"], "user_id")[0].tolist()
    return keys


def _plain(value: Any) -> Any:
    """NaN is no JSON, and an absent value says the same; neither are decimals."""
    if isinstance(value, Decimal):
        return float(value)
    return None if isinstance(value, float) and value != value else value
