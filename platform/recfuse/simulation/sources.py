"""Where a job's exposures come from: a generator of this room by its name, or real logs."""

from __future__ import annotations

from collections.abc import Callable

from recfuse.logs.orders import Orphan
from recfuse.scenes.registry import KUAIRAND, Registry
from recfuse.scenes.sources import Layout, Source, read_logs
from recfuse.simulation import exposures, shop

GENERATORS: dict[str, Callable[[], Source]] = {
    "embedded": lambda: Source(exposures.generate(), KUAIRAND),
    "shop": lambda: Source(shop.generate(pages=shop.HOME_AND_CART)[0], shop.registry(shop.HOME_AND_CART)),
    "shop_pages": lambda: Source(shop.generate()[0], shop.registry(shop.PAGES)),
}
# What users of a generator answer with, where it is not a feed's.
RESPONSES = {"shop": shop.RESPONSES, "shop_pages": shop.RESPONSES}
# A shop's predictions nearly agree on what to show first, so that what tells them apart is small beside a large noise.
EXPLORATION = {"shop": 0.2, "shop_pages": 0.2}


def read_source(logs: str, layout: Layout = "kuairand", orphan: Orphan = "quarantine",
                registry: Registry | None = None) -> Source:
    """The generator of this name, or else the logs beneath this path; arguments as of `read_logs`."""
    generate = GENERATORS.get(logs)
    return generate() if generate is not None else read_logs(logs, layout, orphan, registry)
