"""Real exposures in one of their layouts, with the scenes and features that each layout is known for."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import get_args

import numpy as np

from recfuse.config import InvalidFieldError, require
from recfuse.logs import ali_ccp, aliexpress, exposure_files, kuairand
from recfuse.logs.exposures import Exposures
from recfuse.logs.orders import Orphan
from recfuse.scenes.config import Layout
from recfuse.scenes.features import Feature, declared_features
from recfuse.scenes.registry import KUAIRAND, Registry, Scene

logger = logging.getLogger("recfuse")


@dataclass(frozen=True)
class Source:
    """Exposures with the scenes and features that are declared where a config declares none."""

    exposures: Exposures
    registry: Registry
    features: tuple[Feature, ...] = ()


def read_logs(path: str, layout: Layout = "kuairand", orphan: Orphan = "quarantine",
              registry: Registry | None = None) -> Source:
    """Reads the logs beneath a path.

    Args:
        path: a directory, for `native` also a URI.
        layout: of its files.
        orphan: what to do with an order without its click.
        registry: the declared scenes and tasks; `native` needs them to know its label columns.

    Raises:
        InvalidFieldError: an unknown layout, or what the adapter refuses.
    """
    require(layout in get_args(Layout), "layout", layout, ", ".join(get_args(Layout)))
    if layout == "kuairand":
        return Source(kuairand.read_exposures(path), KUAIRAND)
    if layout == "native":
        return _native(path, orphan, registry)
    exposures = (aliexpress if layout == "aliexpress" else ali_ccp).read_exposures(path, orphan)
    logger.info("%s exposures: %s", layout, exposures.account)
    names = np.unique(exposures.rows["scene"].to_numpy(zero_copy_only=False)).tolist()
    shops = Registry(scenes=tuple(Scene(name=name, tasks=("click",), optional_tasks=("order",)) for name in names))
    return Source(exposures, shops, _row_features(exposures, layout))


def _native(path: str, orphan: Orphan, registry: Registry | None) -> Source:
    """A team's own files, which are known for nothing."""
    if registry is None:
        raise InvalidFieldError("registry", None, "scenes and their tasks, declared in the config")
    labels = [task for task in registry.task_names if task not in registry.numbers]
    tasks = {scene: registry.tasks_of(scene) for scene in registry.scene_names}
    exposures = exposure_files.read_exposures(path, labels, orphan, numbers=tuple(registry.numbers), tasks=tasks)
    logger.info("exposures of %s: %s", path, exposures.account)
    return Source(exposures, registry)


def _row_features(exposures: Exposures, layout: Layout) -> tuple[Feature, ...]:
    """The declared ones, and the columns that the layout keeps with its rows."""
    if layout == "ali_ccp":
        context = [Feature(name=f"context_{name}", source="context") for name in ali_ccp.CONTEXT_FIELDS]
        return (*declared_features(exposures), *context)
    categorical, numerical = aliexpress.feature_columns(exposures.rows)
    return (Feature(name="scene", source="context"), *(Feature(name=name, source="context") for name in categorical),
            *(Feature(name=name, source="context", kind="numeric") for name in numerical))
