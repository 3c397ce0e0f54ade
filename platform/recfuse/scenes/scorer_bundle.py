"""What a bundle of kind `scenes` holds: network, registry, fitted features and calibration; written and read back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recfuse.bundle import Bundle, write_bundle
from recfuse.config import from_mapping, require
from recfuse.scenes.architectures import build_model
from recfuse.scenes.config import ModelConfig
from recfuse.scenes.encoder import FeatureEncoder, FittedFeature
from recfuse.scenes.features import Feature
from recfuse.scenes.model import SceneModel
from recfuse.scenes.registry import Registry


@dataclass(frozen=True)
class ScorerParts:
    """What a scorer is made of.

    Attributes:
        positive_weight: p_t [T], float32.
        shift: log-odds [T], float32, added to every pair's calibrated prediction; None in bundles without one.
    """

    model: SceneModel
    registry: Registry
    encoder: FeatureEncoder
    positive_weight: Tensor
    shift: Tensor | None


def write_parts(parts: ScorerParts, root: str | Path, about: Mapping[str, Any]) -> Path:
    """Writes a bundle and returns its directory.

    Args:
        about: further entries of the manifest.
    """
    model = parts.model
    normalisation, columns = _encoder_to(parts.encoder)
    calibration = {"positive_weight": parts.positive_weight.cpu()}
    if parts.shift is not None:
        calibration["shift"] = parts.shift.cpu()
    tensors = {"model": {name: value.cpu() for name, value in model.state_dict().items()}, "features": columns,
               "calibration": calibration}
    manifest = {
        "registry": parts.registry.to_manifest(), "model": model.config.to_dict(),
        "shapes": {"table_rows": len(model.embedding), "fields": model.fields, "numeric": model.numeric,
                   "item_field": model.item_field},
        "normalisation": normalisation, **about}
    return write_bundle(root, kind="scenes", tensors=tensors, manifest=manifest)


def read_parts(bundle: Bundle) -> ScorerParts:
    """The parts in a bundle of kind `scenes`.

    Raises:
        InvalidFieldError: the bundle is of another kind, or its manifest and tensors do not fit.
    """
    require(bundle.kind == "scenes", "kind", bundle.kind, "scenes")
    manifest, tensors = bundle.manifest, bundle.tensors
    registry = from_mapping(Registry, manifest["registry"], "manifest registry")
    config = from_mapping(ModelConfig, manifest["model"], "manifest model")
    model = build_model(config, **manifest["shapes"], pair_scene=registry.pair_scene, pair_task=registry.pair_task)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors["model"].items()}
    require(given == expected, "model.safetensors", given, f"tensors {expected}")
    model.load_state_dict(tensors["model"])
    encoder = read_encoder(bundle)
    calibration = tensors["calibration"]
    return ScorerParts(model, registry, encoder, calibration["positive_weight"], calibration.get("shift"))


def _encoder_to(encoder: FeatureEncoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON values and tensors of the fitted features; strings go to the former, exact numbers to the latter."""
    entries: list[dict[str, Any]] = []
    columns = {"table_rows": torch.tensor([encoder.table_rows])}
    for index, fitted in enumerate(encoder.fitted):
        entry = {"feature": fitted.feature.to_dict(), "offset": fitted.offset, "mean": fitted.mean, "std": fitted.std}
        if fitted.values.dtype.kind == "O":
            entry["values"] = fitted.values.tolist()
        else:
            columns[str(index)] = torch.from_numpy(np.ascontiguousarray(fitted.values))
        entries.append(entry)
    return {"features": entries, "history_length": encoder.history_length}, columns


def read_encoder(bundle: Bundle) -> FeatureEncoder:
    """The fitted features of a bundle of kind `scenes`, of which no more than the file `features` was read."""
    normalisation, columns = bundle.manifest["normalisation"], bundle.tensors["features"]
    fitted = []
    for index, entry in enumerate(normalisation["features"]):
        values = np.array(entry["values"], dtype=object) if "values" in entry else columns[str(index)].cpu().numpy()
        fitted.append(FittedFeature(from_mapping(Feature, entry["feature"], "manifest feature"), values,
                                    entry["offset"], entry["mean"], entry["std"]))
    return FeatureEncoder(tuple(fitted), normalisation["history_length"], int(columns["table_rows"][0]))
