"""The values of the inspector: what may be asked, and what one decision shows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from recfuse.behaviours import StateFeature, Vocabulary
from recfuse.bundle import read_bundle
from recfuse.bundle.pointer import read_pointer
from recfuse.fusion.policies import decide
from recfuse.serving.console.vectors import hand_tuned
from recfuse.serving.endpoints import RECOMMEND, Offer
from recfuse.serving.fusion import weighed_terms

PAGE = 10  # places of a page where the vocabulary does not say
_STANDARDS = 3.0  # a slider reaches so many standard deviations to both sides
MOST_DRAWS = 64


def options(models: str, described: Mapping[str, Any]) -> dict[str, Any]:
    """What may be asked of the models that serve now.

    Args:
        models: the models directory.
        described: the answer of `GET /v1/models`.
    """
    offer = Offer.of(described)
    version = described["fusion"]["model_version"]
    path = Path(models) / version
    vocabulary = Vocabulary.from_dict(read_bundle(path, "fusion").manifest["vocabulary"]) if path.is_dir() else None
    catalogue = read_pointer(models).path(models, "catalogue")
    return {
        "version": version, "scorer": described["scenes"]["model_version"],
        "canary": described["fusion"].get("canary"), "stages": offer.stages, "stage": offer.stage,
        "scenes": offer.scenes, "scene": offer.scene, "example": RECOMMEND.example(offer), "path": RECOMMEND.path,
        "features": [_slider(feature) for feature in vocabulary.state_features] if vocabulary is not None else [],
        "context_size": described["fusion"]["context_size"],
        "page": vocabulary.candidate_features.page if vocabulary and vocabulary.candidate_features else PAGE,
        "items": 0 if catalogue is None else pq.read_metadata(catalogue).num_rows,
    }


def _slider(feature: StateFeature) -> dict[str, Any]:
    """The range of a feature: three standard deviations to both sides of its mean, in its own unit."""
    if feature.categories:
        return {"name": feature.name, "categories": feature.categories}
    low, high = (feature.mean + sign * _STANDARDS * feature.std for sign in (-1, 1))
    if feature.log:
        low, high = max(math.expm1(min(low, 700.0)), 0.0), math.expm1(min(high, 700.0))
    return {"name": feature.name, "low": low, "high": high, "default": feature.default, "log": feature.log}


def draw_candidates(models: str, count: int, seed: int) -> list[int | str]:
    """Ids of the catalogue, drawn without repetition; none where there is no catalogue."""
    catalogue = read_pointer(models).path(models, "catalogue")
    if catalogue is None:
        return []
    item_ids = pq.read_table(catalogue, columns=["item_id"])["item_id"].to_numpy()
    chosen = np.random.default_rng(seed).choice(item_ids, min(count, len(item_ids)), replace=False)
    return list(chosen.tolist())


def shown(models: str, answer: Mapping[str, Any], draws: int, seed: int) -> dict[str, Any]:
    """What the page shows of a decision: its vectors, vectors drawn from the policy, and what each of them weighs.

    Args:
        models: the models directory.
        answer: of `FusionPreview.decide`, with predictions and a vocabulary.
        draws: so many vectors are drawn, with seeds from `seed` on.
    """
    vocabulary = Vocabulary.from_dict(answer["vocabulary"])
    names = vocabulary.fusion_parameters
    mu, sigma = (np.array([[answer[key][name] for name in names]], np.float32) for key in ("mu", "sigma"))

    def at(explore: bool, number: int = 0) -> list[float]:
        rng = np.random.default_rng(number)
        return [float(value) for value in decide(mu, sigma, explore, rng, vocabulary.action_range).action[0]]

    vectors = hand_tuned(models, answer["model_version"])
    return {
        "version": answer["model_version"], "scorer": answer.get("scenes_version"), "parameters": names,
        "formula": vocabulary.formula, "range": vocabulary.action_range, "mu": mu[0].tolist(),
        "sigma": sigma[0].tolist(), "mean": at(False), "draws": [at(True, seed + each) for each in range(draws)],
        "source": answer["state_source"], "unknown": answer.get("unknown", {}),
        "hand_tuned": [{"source": vector.source, "values": [vector.values[name] for name in names]}
                       for vector in vectors],
        "items": _items(answer["items"], vocabulary),
    }


def _items(items: Sequence[Mapping[str, Any]], vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """Each candidate with its predictions and the terms that a vector weighs."""
    columns = np.array([[item["predictions"][name] for item in items] for name in vocabulary.fusion_parameters])
    terms = weighed_terms(columns.astype(np.float64), vocabulary)
    return [{"id": item["item_id"], "label": _label(item.get("catalogue")), "predictions": own, "terms": weighed}
            for item, own, weighed in zip(items, columns.T.tolist(), terms.T.tolist(), strict=True)]


def _label(entry: Mapping[str, Any] | None) -> str:
    """A few words on an item: its words in the catalogue, and its price."""
    if entry is None:
        return ""
    words = [value for value in entry["parameters"].values() if isinstance(value, str)][:2]
    price = entry.get("price")
    return ", ".join([*words, *([f"{price:,.2f}"] if price is not None else [])])
