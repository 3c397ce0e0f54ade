"""Features as a config declares them, or as the columns of users and items suggest them."""

from __future__ import annotations

import pyarrow as pa

from recfuse.logs.exposures import Exposures
from recfuse.scenes.config import Feature, Source


def declared_features(exposures: Exposures) -> tuple[Feature, ...]:
    """Every column of users and items, with scene and hour as context; numbers are given both ways."""
    features: list[Feature] = []
    tables: tuple[tuple[Source, pa.Table], ...] = (("user", exposures.users), ("item", exposures.items))
    for source, table in tables:
        for column in table.schema:
            if pa.types.is_floating(column.type) or pa.types.is_decimal(column.type):
                features += [Feature(name=column.name, source=source, kind="bucketed"),
                             Feature(name=column.name, source=source, kind="numeric", log=True)]
            else:
                features.append(Feature(name=column.name, source=source))
    return (*features, Feature(name="scene", source="context"), Feature(name="hour", source="context"))
