"""The hand-tuned vector that a learned policy is compared with: what is known of it, and from where."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from recfuse.bundle import BundleError, read_bundle
from recfuse.bundle.bundle import MANIFEST


@dataclass(frozen=True)
class Vector:
    """Fusion parameters that somebody chose by hand.

    Attributes:
        values: name → weight.
        source: from where it is known, a sentence.
    """

    values: Mapping[str, float]
    source: str


def hand_tuned(models: str | Path, version: str) -> tuple[Vector, ...]:
    """Vectors to compare a served policy with, the surest first; none where nothing tells of one.

    The weights that `recfuse explore` published are in a bundle of the models directory. A network knows the mean of
    the actions of its samples, which is that of the policy that served before.
    """
    manifests = sorted(Path(models).glob(f"*/{MANIFEST}"), key=lambda path: -path.stat().st_mtime)
    explored = [_explored(path.parent, version, Path(models)) for path in manifests]
    return tuple(vector for vector in (*explored, _logged_mean(Path(models) / version)) if vector is not None)


def _explored(bundle: Path, version: str, models: Path) -> Vector | None:
    """The weights of `recfuse explore`, for the same parameters."""
    manifest, served = _manifest(bundle), _manifest(models / version)
    if "explore" not in manifest.get("training", {}):
        return None
    names = manifest["vocabulary"]["fusion_parameters"]
    if names != served.get("vocabulary", {}).get("fusion_parameters"):
        return None
    values = _tensor(bundle, "mu")
    return None if values is None else Vector(
        dict(zip(names, values, strict=True)), f"weights that `recfuse explore` published as {bundle.name}")


def _logged_mean(bundle: Path) -> Vector | None:
    """The mean of logged actions, which a network was normalised by."""
    names = _manifest(bundle).get("vocabulary", {}).get("fusion_parameters", ())
    values = _tensor(bundle, "action_mean")
    if values is None or not np.any(values):  # zeros: nobody has measured it
        return None
    return Vector(dict(zip(names, values, strict=True)),
                  f"mean of the logged policy's vectors in the samples of {bundle.name}")


@lru_cache(64)
def _manifest(bundle: Path) -> dict[str, Any]:
    """A bundle's manifest, empty where there is none; its content cannot change under its name."""
    try:
        manifest = json.loads((bundle / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    return manifest if isinstance(manifest, dict) and manifest.get("kind") == "fusion" else {}


@lru_cache(64)
def _tensor(bundle: Path, name: str) -> tuple[float, ...] | None:
    try:
        tensor = read_bundle(bundle, "fusion").tensors["policy"][name]
    except (BundleError, KeyError):
        return None
    return tuple(tensor.double().cpu().numpy().ravel().tolist())
