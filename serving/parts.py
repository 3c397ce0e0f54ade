"""What each part of a models directory says of itself, read without what is large: no network, no rows of items."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from recfuse.behaviours import Vocabulary
from recfuse.bundle import BundleError, read_bundle
from recfuse.scenes.encoder import FittedFeature
from recfuse.scenes.registry import Registry
from recfuse.scenes.scorer_bundle import read_encoder

_USERS_READ = 500
_WAIT_SECONDS = 0.2  # The store serves requests meanwhile.


@dataclass(frozen=True)
class Policy:
    """A fusion bundle.

    Attributes:
        vocabulary: by which it reads states and ranks.
        stages: that have policies of their own in it.
    """

    name: str
    vocabulary: Vocabulary
    stages: tuple[str, ...] = ()


@dataclass(frozen=True)
class Predictor:
    """A scenes bundle.

    Attributes:
        tasks: scene → tasks.
        features: fitted to its training rows.
    """

    name: str
    tasks: Mapping[str, tuple[str, ...]]
    features: tuple[FittedFeature, ...]

    @property
    def predicted(self) -> frozenset[str]:
        """Tasks that it predicts in some scene."""
        return frozenset(task for tasks in self.tasks.values() for task in tasks)


@dataclass(frozen=True)
class Items:
    """A catalogue: its columns, and the ids of its items."""

    name: str
    schema: pa.Schema
    item_ids: pa.ChunkedArray


@dataclass(frozen=True)
class Users:
    """Some users of a store, or all of an export: user id → features."""

    name: str
    features: Mapping[str, Mapping[str, Any]]


def read_policy(path: Path) -> Policy:
    """Of a fusion bundle.

    Raises:
        BundleError, InvalidFieldError: it cannot be read.
    """
    manifest = read_bundle(path, "fusion", only=()).manifest
    return Policy(path.name, Vocabulary.from_dict(_entry(manifest, "vocabulary", path)),
                  tuple(manifest.get("stages", {})))


def read_predictor(path: Path) -> Predictor:
    """Of a scenes bundle.

    Raises:
        BundleError, InvalidFieldError: it cannot be read.
    """
    bundle = read_bundle(path, "scenes", only=("features",))
    registry = Registry(**_entry(bundle.manifest, "registry", path))
    try:
        features = read_encoder(bundle).fitted
    except (KeyError, TypeError) as error:
        raise BundleError(f"{path.name}: {error!r}; expected the features of a scorer") from None
    return Predictor(path.name, {scene: registry.tasks_of(scene) for scene in registry.scene_names}, features)


def read_items(path: Path) -> Items:
    """Of a catalogue.

    Raises:
        BundleError: it cannot be read.
    """
    try:
        schema = pq.read_schema(path)
        return Items(path.name, schema, pq.read_table(path, columns=["item_id"])["item_id"])
    except (OSError, KeyError, pa.ArrowException) as error:
        raise BundleError(f"{path.name}: {error}; expected a Parquet file with item_id") from None


def read_users(path: Path) -> Users:
    """The first users of a SQLite store; none where it does not answer, which requests bear, too."""
    features: dict[str, Mapping[str, Any]] = {}
    with contextlib.suppress(sqlite3.Error, ValueError), contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=_WAIT_SECONDS)) as store:
        for user_id, text in store.execute(f"SELECT user_id, features FROM users LIMIT {_USERS_READ}"):
            features[user_id] = orjson.loads(text)
    return Users(path.name, features)


def category_texts(fitted: FittedFeature) -> frozenset[str]:
    """The categories that a feature knows from training; none where they are hashed, or no categories."""
    if fitted.feature.kind != "categorical":
        return frozenset()
    return frozenset(np.asarray(fitted.values).astype(str).tolist())


def _entry(manifest: Mapping[str, Any], name: str, path: Path) -> Any:
    if name not in manifest:
        raise BundleError(f"{path.name}: no {name}; expected a manifest with one")
    return manifest[name]
