"""From what was trained to what serving loads: the newest bundles, the catalogue and the users of the logs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa
from pydantic import Field

from recfuse.bundle import newest_bundle
from recfuse.bundle.pointer import Pointer
from recfuse.config import Config
from recfuse.logs.exposures import Exposures
from recfuse.state.store import UserState
from serving.publish import publish

Part = Literal["fusion", "scenes", "catalogue", "users"]
PARTS: tuple[Part, ...] = get_args(Part)


class ExportConfig(Config):
    """Config of the job."""

    fusion: str = Field("runs/fusion", description=(
        "The policy is this fusion bundle, or the newest of this directory of bundles."))
    scenes: str = Field("runs/scenes/bundles", description=(
        "The scorer is this scenes bundle, or the newest of this directory of bundles."))
    logs: str = Field("embedded", description=(
        "The items of these exposures are the catalogue and their users are known: a directory, or `embedded`."))
    world: str = Field("", description=(
        "The users' state features of this simulated world are exported too; empty where states come with requests."))
    models: str = Field("runs/demo/models", description="Serving watches this directory.")
    parts: tuple[Part, ...] = Field(PARTS, description=(
        "These parts are published, and the others stay; `--parts fusion` moves the policy alone."))


Contexts = tuple[Mapping[str, np.ndarray], np.ndarray]


def export(config: ExportConfig, exposures: Callable[[str], Exposures], contexts: Callable[[str], Contexts]) -> Pointer:
    """Publishes the parts and returns the pointer.

    Args:
        exposures: what `config.logs` names.
        contexts: of a simulated world: state feature → column [U], and the ids [U] of its users.

    Raises:
        BundleError: a bundle is missing or does not verify.
        InvalidFieldError: the logs, the world or a catalogue cannot be read.
    """
    make: dict[Part, Callable[[], Any]] = {
        "fusion": lambda: newest_bundle(config.fusion, "fusion"),
        "scenes": lambda: newest_bundle(config.scenes, "scenes"),
        "catalogue": lambda: exposures(config.logs).items,
        "users": lambda: known_users(exposures(config.logs), contexts(config.world) if config.world else None),
    }
    return publish(config.models, **{part: make[part]() for part in config.parts})


def known_users(exposures: Exposures, contexts: Contexts | None) -> dict[str, UserState]:
    """What is known of users before their first request: by the logs, and by a simulated world where there is one."""
    columns, user_ids = contexts or ({}, exposures.users["user_id"].to_numpy()[:0])
    return user_states(exposures.users, exposures.history, columns, user_ids)


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
    columns = {name: column.tolist() for name, column in contexts.items()}
    context_of = {int(user): {name: column[row] for name, column in columns.items()}
                  for row, user in enumerate(context_user_ids.tolist())}
    states = {}
    for row in users.to_pylist():
        user = row.pop("user_id")
        features: dict[str, Any] = {name: _without_nan(value) for name, value in row.items()}
        states[str(user)] = UserState(features=features | context_of.get(user, {}),
                                      history=tuple(histories.get(user) or ()))
    return states


def _without_nan(value: Any) -> Any:
    # NaN is no JSON, and an absent value says the same.
    return None if isinstance(value, float) and value != value else value
