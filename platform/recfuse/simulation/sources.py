"""Where a job's exposures come from: a generator of this room by its name, or real logs."""

from __future__ import annotations

from collections.abc import Callable

from recfuse.logs.orders import Orphan
from recfuse.scenes.registry import KUAIRAND, Registry
from recfuse.scenes.sources import Layout, Source, read_logs
from recfuse.simulation import exposures, shop

GENERATORS: dict[str, Callable[[], Source]] = {
    "embedded": lambda: Source(exposures.generate(), KUAIRAND),
    "shop": lambda: Source(shop.generate()[0], shop.REGISTRY),
}


def read_source(logs: str, layout: Layout = "kuairand", orphan: Orphan = "quarantine",
                registry: Registry | None = None) -> Source:
    """The generator of this name, or else the logs beneath this path; arguments as of `read_logs`."""
    generate = GENERATORS.get(logs)
    return generate() if generate is not None else read_logs(logs, layout, orphan, registry)
