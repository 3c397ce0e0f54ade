"""Trained bundles → what serving loads: a models directory with bundles, catalogue, user states and their pointer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from recfuse.bundle import newest_bundle
from recfuse.bundle.pointer import Pointer
from recfuse.runtime.console import start, table
from recfuse.simulation.sources import read_source
from recfuse.simulation.world import World
from recfuse.state.store import UserState
from serving.publish import publish, user_states

Part = Literal["fusion", "scenes", "catalogue", "users"]


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Config of the job.

    Attributes:
        fusion, scenes: a bundle each, or a directory of bundles of which the newest is taken.
        logs: the exposures whose items are the catalogue and whose users are known: a directory, or `embedded`.
        world: a simulated world whose users' state features are exported too; empty where states come with requests.
        models: the directory that serving watches.
        parts: what to publish; `--parts fusion` moves the policy alone.
    """

    fusion: str = "runs/fusion"
    scenes: str = "runs/scenes/bundles"
    logs: str = "embedded"
    world: str = ""
    models: str = "runs/demo/models"
    parts: tuple[Part, ...] = get_args(Part)


def main(config: ExportConfig) -> Pointer:
    """Publishes and returns the pointer."""
    make: dict[Part, Callable[[], Any]] = {
        "fusion": lambda: newest_bundle(config.fusion, "fusion"),
        "scenes": lambda: newest_bundle(config.scenes, "scenes"),
        "catalogue": lambda: read_source(config.logs).exposures.items,
        "users": lambda: known_users(config),
    }
    pointer = publish(config.models, **{part: make[part]() for part in config.parts})
    table(f"Published in {config.models}", ["part", "name"],
          [(name, getattr(pointer, name)) for name in get_args(Part)])
    return pointer


def known_users(config: ExportConfig) -> dict[str, UserState]:
    """What is known of users before their first request."""
    exposures = read_source(config.logs).exposures
    world = World.load(config.world) if config.world else None
    contexts, ids = (world.features, world.user_ids) if world else ({}, exposures.users["user_id"].to_numpy()[:0])
    return user_states(exposures.users, exposures.history, contexts, ids)


if __name__ == "__main__":
    main(start(ExportConfig, description=__doc__))
