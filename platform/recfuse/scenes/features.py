"""Features as a config declares them, or as the columns of users and items suggest them."""

from __future__ import annotations

from typing import Literal

import pyarrow as pa
from pydantic import Field, model_validator

from recfuse.config import Config, require
from recfuse.logs.exposures import Exposures

Source = Literal["user", "item", "context"]
SOURCES: tuple[Source, ...] = ("user", "item", "context")


class Feature(Config):
    """One declared feature: a column of the users, the items or the rows, and how the network reads it."""

    name: str = Field(min_length=1, pattern=r"\S", description="The feature's column has this name.")
    source: Source = Field(description="The column is in the users, the items, or the rows (`context`).")
    kind: Literal["categorical", "numeric", "bucketed"] = Field("categorical", description=(
        "Categories are integers (exact in 64 bits) or strings, numbers are normalised to mean 0 and deviation 1, "
        "and `bucketed` numbers become categories by their quantiles."))
    minimum_count: int = Field(2, ge=1, description=(
        "A category seen in fewer training rows shares the unknown bucket, which so is trained too."))
    log: bool = Field(False, description="A number passes through log(1 + max(x, 0)) before it is normalised.")
    buckets: int = Field(20, ge=2, description="A bucketed number has so many quantiles.")
    hash_buckets: int = Field(0, ge=0, description=(
        "Categories share so many buckets by a hash, so that only what is missing is unknown; "
        "0 learns a vocabulary instead."))

    @model_validator(mode="after")
    def _hashes_categories(self) -> Feature:
        fine = self.hash_buckets == 0 or (self.hash_buckets >= 2 and self.kind == "categorical")
        require(fine, "hash_buckets", self.hash_buckets, "0, or an integer ≥ 2 for a categorical feature")
        return self


def declared_features(exposures: Exposures) -> tuple[Feature, ...]:
    """Every column of users and items, with scene and hour as context; numbers are given both ways."""
    features: list[Feature] = []
    tables: tuple[tuple[Source, pa.Table], ...] = (("user", exposures.users), ("item", exposures.items))
    for source, table in tables:
        for column in table.schema:
            if pa.types.is_floating(column.type):
                features += [Feature(name=column.name, source=source, kind="bucketed"),
                             Feature(name=column.name, source=source, kind="numeric", log=True)]
            else:
                features.append(Feature(name=column.name, source=source))
    return (*features, Feature(name="scene", source="context"), Feature(name="hour", source="context"))
