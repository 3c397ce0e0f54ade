"""Trained bundles → what serving loads: a models directory with bundles, catalogue, user states and their pointer."""

from __future__ import annotations

from dataclasses import dataclass

from recfuse.bundle.pointer import Pointer
from recfuse.console import start, table
from recfuse.simulation.simulate import load_exposures, newest_bundle
from recfuse.simulation.world import World
from serving.publish import publish, user_states


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Config of the job.

    Attributes:
        fusion, scenes: a bundle each, or a directory of bundles of which the newest is taken.
        logs: the exposures whose items are the catalogue and whose users are known: a directory, or `embedded`.
        world: a simulated world whose users' state features are exported too; empty where states come with requests.
        models: the directory that serving watches.
    """

    fusion: str = "runs/fusion"
    scenes: str = "runs/scenes/bundles"
    logs: str = "embedded"
    world: str = ""
    models: str = "runs/demo/models"


def main(config: ExportConfig) -> Pointer:
    """Publishes and returns the pointer."""
    exposures = load_exposures(config.logs)
    world = World.load(config.world) if config.world else None
    contexts, ids = (world.features, world.user_ids) if world else ({}, exposures.users["user_id"].to_numpy()[:0])
    pointer = publish(
        config.models,
        fusion=newest_bundle(config.fusion, "fusion"),
        scenes=newest_bundle(config.scenes, "scenes"),
        catalogue=exposures.items,
        users=user_states(exposures.users, exposures.history, contexts, ids),
    )
    table(f"Published in {config.models}", ["part", "name"],
          [(name, getattr(pointer, name)) for name in ("fusion", "scenes", "catalogue", "users")])
    return pointer


if __name__ == "__main__":
    main(start(ExportConfig, description=__doc__))
