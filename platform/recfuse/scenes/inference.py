"""Scores items from a scenes bundle: calibrated probabilities of every task of a scene, without Ray."""

from __future__ import annotations

import dataclasses
import datetime
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from recfuse.bundle import Bundle, write_bundle
from recfuse.config import from_mapping, require
from recfuse.logs.exposures import Exposures
from recfuse.scenes.dataset import EncodedRows, encode_rows
from recfuse.scenes.features import (
    NO_ITEM,
    Encoded,
    Feature,
    FeatureEncoder,
    FittedFeature,
    declared_features,
    row_histories,
)
from recfuse.scenes.loss import calibrated
from recfuse.scenes.model import ModelConfig, MultiSceneModel, SceneModel, scene_spans, with_pairs
from recfuse.scenes.registry import Pair, Registry
from recfuse.scenes.rivals import build_model

logger = logging.getLogger("recfuse")

_BATCH = 8192


@dataclass(frozen=True)
class Scores:
    """What a scorer says of N items of one scene.

    Attributes:
        probabilities: task → float32[N], calibrated (maths 3.4); of a number (watch time) its predicted mean.
        unknown: feature → how many of its values were missing or not known from training.
    """

    probabilities: dict[str, NDArray[np.float32]]
    unknown: dict[str, int]


@dataclass(frozen=True)
class ExpertHealth:
    """How one pair's gate uses the experts.

    Attributes:
        use: [K], mean share of each expert over the scene's rows.
        entropy: mean entropy of the gate by row, over log K: 1 mixes all experts alike, 0 takes one.
    """

    scene: str
    task: str
    use: tuple[float, ...]
    entropy: float


def collapsed(health: Sequence[ExpertHealth], share: float = 0.95) -> list[str]:
    """In words: each pair with an expert of at least this share, and each expert used below 1/20 of an even share."""
    problems = [f"({one.scene}, {one.task}) takes {max(one.use):.0%} from expert {int(np.argmax(one.use))}"
                for one in health if len(one.use) > 1 and max(one.use) >= share]
    most = np.max([one.use for one in health], axis=0) if health else np.zeros(0)
    return problems + [f"no pair takes more than {most[expert]:.2%} from expert {expert}"
                       for expert in np.flatnonzero(most < 0.05 / max(len(most), 1))]


class SceneScorer:
    """A trained model with its features and its calibration.

    Args:
        model: in evaluation mode.
        registry: its scenes and tasks, in the order of its pairs.
        encoder: fitted features.
        positive_weight: p_t of every pair.
        version: the bundle's name.
        shift: log-odds added to every pair's calibrated prediction (`recent_shift`); absent, none.
    """

    def __init__(self, model: SceneModel, registry: Registry, encoder: FeatureEncoder, positive_weight: Tensor,
                 version: str = "unsaved", shift: Tensor | None = None) -> None:
        shift = torch.zeros(len(registry.pairs)) if shift is None else shift
        for name, values in (("positive_weight", positive_weight), ("shift", shift)):
            require(len(values) == len(registry.pairs), name, len(values), f"{len(registry.pairs)} values, one a pair")
        self._model, self._registry, self._encoder = model.eval(), registry, encoder
        self._positive_weight, self._shift = positive_weight.float(), shift.float()
        self.version = version
        self._scale = torch.tensor([registry.numbers.get(pair.task, 1.0) for pair in registry.pairs])
        self.tasks: dict[str, tuple[str, ...]] = {scene: registry.tasks_of(scene) for scene in registry.scene_names}

    @classmethod
    def from_bundle(cls, bundle: Bundle) -> SceneScorer:
        """The scorer in a bundle of kind `scenes`.

        Raises:
            InvalidFieldError: the bundle is of another kind, or its manifest and tensors do not fit.
        """
        require(bundle.kind == "scenes", "kind", bundle.kind, "scenes")
        manifest, tensors = bundle.manifest, bundle.tensors
        registry = from_mapping(Registry, manifest["registry"], "manifest registry")
        config = from_mapping(ModelConfig, manifest["model"], "manifest model")
        model = build_model(config, **manifest["shapes"], pair_scene=registry.pair_scene,
                            pair_task=registry.pair_task)
        expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        found = {name: tuple(tensor.shape) for name, tensor in tensors["model"].items()}
        require(found == expected, "model.safetensors", found, f"tensors {expected}")
        model.load_state_dict(tensors["model"])
        encoder = _encoder_from(manifest["normalisation"], tensors["features"])
        calibration = tensors["calibration"]
        return cls(model, registry, encoder, calibration["positive_weight"], bundle.version,
                   shift=calibration.get("shift"))

    @classmethod
    def untrained(cls, exposures: Exposures, registry: Registry, config: ModelConfig, *, seed: int = 0) -> SceneScorer:
        """A scorer with random weights, its features fitted to all rows: where only sizes matter, as in a load test."""
        everything = np.ones(exposures.rows.num_rows, bool)
        encoder = FeatureEncoder.fit(declared_features(exposures), exposures, everything, config.history_length)
        item_field = [one.feature.name for one in encoder.fitted if one.offset >= 0].index("item_id")
        torch.manual_seed(seed)
        model = MultiSceneModel(config, table_rows=encoder.table_rows, fields=encoder.fields, numeric=encoder.numeric,
                                item_field=item_field, pair_scene=registry.pair_scene)
        return cls(model, registry, encoder, torch.ones(len(registry.pairs)))

    def export(self, root: str | Path, *, training: Mapping[str, Any], data_fingerprint: str,
               metrics: Mapping[str, Any]) -> Path:
        """Writes a bundle of kind `scenes` and returns its directory."""
        model = self._model
        normalisation, columns = _encoder_to(self._encoder)
        return write_bundle(root, kind="scenes", tensors={
            "model": model.state_dict(), "features": columns,
            "calibration": {"positive_weight": self._positive_weight, "shift": self._shift},
        }, manifest={
            "registry": self._registry.to_dict(), "model": dataclasses.asdict(model.config),
            "shapes": {"table_rows": len(model.embedding), "fields": model.fields, "numeric": model.numeric,
                       "item_field": model.item_field},
            "normalisation": normalisation, "training": dict(training), "data_fingerprint": data_fingerprint,
            "metrics": dict(metrics),
        })

    def only(self, scene: str) -> SceneScorer:
        """The scorer of one scene: shared experts, that scene's gates and towers (property S3)."""
        return self._of(self._registry.only(scene), {})

    def without_scene(self, scene: str) -> SceneScorer:
        """The scorer with a scene retired; the others' predictions stay as they are.

        Raises:
            InvalidFieldError: the scene is unknown, or the only one.
        """
        return self._of(self._registry.without(scene), {})

    def with_scene(self, scene: str, like: str) -> SceneScorer:
        """The scorer with a new scene, whose gates, towers and calibration start as copies of those of `like`.

        Raises:
            InvalidFieldError: the new scene exists already, or `like` does not.
        """
        return self._of(self._registry.with_copy(scene, like), {scene: like})

    def for_registry(self, registry: Registry) -> SceneScorer:
        """The scorer of the registry's scenes: new ones start as their `like`, those that it lacks are retired.

        Raises:
            InvalidFieldError: a new scene names no scene of this scorer, or has a task that this one lacks.
        """
        known = self._registry.scene_names
        copied = {scene.name: scene.like for scene in registry.scenes if scene.name not in known}
        for name, like in copied.items():
            require(like in known, f"scene {name}: like", like, ", ".join(known))
        for pair in registry.pairs:
            has = self.tasks[copied.get(pair.scene, pair.scene)]
            require(pair.task in has, f"scene {pair.scene}: task", pair.task, ", ".join(has))
        return self._of(registry, copied)

    @property
    def encoder(self) -> FeatureEncoder:
        """The fitted features."""
        return self._encoder

    @property
    def model_config(self) -> ModelConfig:
        """Kind and sizes of the network."""
        return self._model.config

    @property
    def numbers(self) -> Mapping[str, float]:
        """Tasks whose predictions are means of numbers, and where these are cut."""
        return self._registry.numbers

    def parameters(self) -> dict[str, Tensor]:
        """The network's tensors by name."""
        return dict(self._model.state_dict())

    def _of(self, registry: Registry, copied: Mapping[str, str]) -> SceneScorer:
        """The scorer of another registry; scenes in `copied` take the pairs of the scene they name."""
        before = self._registry.pairs
        chosen = [before.index(Pair(copied.get(pair.scene, pair.scene), pair.task)) for pair in registry.pairs]
        model = with_pairs(self._model, chosen, registry.pair_scene, registry.pair_task)
        return SceneScorer(model, registry, self._encoder, self._positive_weight[chosen], self.version,
                           self._shift[chosen])

    def score(self, scene: str, user: Mapping[str, Any], items: Mapping[str, np.ndarray]) -> Scores:
        """Probabilities of every task of the scene for N items shown to one user.

        Args:
            user: the user's features by name, with `user_id`, `history` (item ids, oldest first) and context such as
                `hour`; what is missing counts as unknown.
            items: the items' features by name, with `item_id`; each [N].

        Raises:
            InvalidFieldError: an unknown scene, no item_id, columns of different lengths or of a wrong type.
        """
        require(scene in self.tasks, "scene", scene, ", ".join(self.tasks))
        require("item_id" in items, "items.item_id", sorted(items), "a column item_id")
        count = len(items["item_id"])
        index = self._registry.scene_names.index(scene)
        given = {name: [value] for name, value in user.items() if name != "history"}
        now = {"hour": [datetime.datetime.now().hour]}
        users = self._encoder.encode("user", given, 1)
        context = self._encoder.encode("context", {**now, **given, "scene": [scene]}, 1)
        encoded = self._encoder.encode("item", items, count)
        history = self._encoder.encode_history(_last_items(user.get("history"), self._encoder.history_length))
        own = scene_spans(self._registry.pair_scene)[index]
        if isinstance(self._model, MultiSceneModel):
            probabilities = self._request(self._model, users, encoded, context, history, index)
        else:
            ids = np.concatenate([_repeat(users.ids, count), encoded.ids, _repeat(context.ids, count)], axis=1)
            numbers = np.concatenate(
                [_repeat(users.numbers, count), encoded.numbers, _repeat(context.numbers, count)], axis=1)
            probabilities = self._probabilities(ids, numbers, _repeat(history, count), np.full(count, index))[:, own]
        columns = dict(zip(self.tasks[scene], probabilities.T, strict=True))
        return Scores(columns, {**users.unknown, **context.unknown, **encoded.unknown})

    @property
    def history_length(self) -> int:
        """How many of a user's last items are read."""
        return self._encoder.history_length

    def score_rows(self, rows: pa.Table, users: pa.Table, items: pa.Table,
                   histories: NDArray[np.int64] | None = None,
                   corrected: bool = True) -> dict[str, NDArray[np.float32]]:
        """Task → float32[N] of rows of many users and scenes; NaN where the row's scene lacks the task.

        Args:
            rows: `user_id`, `item_id`, `scene`, and context columns such as `hour` where they are known.
            users, items: their features, as in Exposures.
            histories: [N, L] item ids, newest last, −1 where there is none; absent, nobody has a history.
            corrected: False gives `σ(z)`, what training with weights predicts (maths 3.4): for evaluation only.
        """
        if histories is None:
            histories = np.full((rows.num_rows, self._encoder.history_length), NO_ITEM, np.int64)
        return self._by_task(encode_rows(rows, users, items, histories, self._registry, self._encoder), corrected)

    def score_exposures(self, exposures: Exposures) -> dict[str, NDArray[np.float32]]:
        """`score_rows` of exposures, each row with the history that its user had then."""
        histories = row_histories(exposures, self._encoder.history_length)
        return self.score_rows(exposures.rows, exposures.users, exposures.items, histories)

    def expert_health(self, rows: pa.Table, users: pa.Table, items: pa.Table,
                      histories: NDArray[np.int64]) -> list[ExpertHealth]:
        """How each pair's gate uses the experts on its scene's rows; empty for architectures without such gates.

        Logs a warning where experts have collapsed: a pair that lives on one expert, or an expert that no pair uses.
        """
        health = [ExpertHealth(pair.scene, pair.task, tuple(shares.mean(0).tolist()), _entropy(shares))
                  for pair, shares in self._gates(rows, users, items, histories).items() if len(shares)]
        for problem in collapsed(health):
            logger.warning("experts have collapsed: %s", problem)
        return health

    def _gates(self, rows: pa.Table, users: pa.Table, items: pa.Table,
               histories: NDArray[np.int64]) -> dict[Pair, NDArray[np.float64]]:
        if not isinstance(self._model, MultiSceneModel):
            return {}
        encoded = encode_rows(rows, users, items, histories, self._registry, self._encoder)
        with torch.inference_mode():
            parts = []
            for start in range(0, len(encoded), _BATCH):
                part = encoded.take(np.arange(start, min(start + _BATCH, len(encoded))))
                parts.append(self._model.gates(*(torch.from_numpy(x) for x in (part.ids(), part.numbers(),
                                                                               part.history))))
        shares = torch.cat(parts).double().numpy()
        return {pair: shares[encoded.scene == scene, index] for index, (pair, scene) in enumerate(
            zip(self._registry.pairs, self._registry.pair_scene, strict=True))}

    def _by_task(self, rows: EncodedRows, corrected: bool) -> dict[str, NDArray[np.float32]]:
        result = {task: np.full(len(rows), np.nan, np.float32) for task in self._registry.task_names}
        for start in range(0, len(rows), _BATCH):
            index = np.arange(start, min(start + _BATCH, len(rows)))
            part = rows.take(index)
            probabilities = self._probabilities(part.ids(), part.numbers(), part.history, part.scene, corrected)
            for column, (pair, scene) in enumerate(zip(self._registry.pairs, self._registry.pair_scene, strict=True)):
                own = part.scene == scene
                result[pair.task][index[own]] = probabilities[own, column]
        return result

    def _request(self, model: MultiSceneModel, users: Encoded, items: Encoded, context: Encoded, history: np.ndarray,
                 scene: int) -> NDArray[np.float32]:
        """Calibrated probabilities [N, T_s] of one user's items."""
        own = scene_spans(self._registry.pair_scene)[scene]
        with torch.inference_mode():
            user, item, around = ((torch.from_numpy(part.ids), torch.from_numpy(part.numbers))
                                  for part in (users, items, context))
            logits = model.request_logits(user, item, around, torch.from_numpy(history), scene)
            return (calibrated(logits + self._shift[own], self._positive_weight[own]) * self._scale[own]).numpy()

    def _probabilities(self, ids: np.ndarray, numbers: np.ndarray, history: np.ndarray,
                       scene: np.ndarray, corrected: bool = True) -> NDArray[np.float32]:
        with torch.inference_mode():
            logits = self._model(torch.from_numpy(ids), torch.from_numpy(numbers), torch.from_numpy(history),
                                 torch.from_numpy(scene))
            if not corrected:
                return (torch.sigmoid(logits) * self._scale).numpy()
            return (calibrated(logits + self._shift, self._positive_weight) * self._scale).numpy()


def _entropy(shares: NDArray[np.float64]) -> float:
    """Mean over rows [N, K] of the entropy, over log K."""
    if shares.shape[1] == 1:
        return 1.0
    entropy = -(shares * np.log(np.maximum(shares, 1e-30))).sum(1).mean()
    return float(entropy / np.log(shares.shape[1]))


def _repeat(row: np.ndarray, count: int) -> np.ndarray:
    return np.repeat(row, count, axis=0)


def _last_items(history: Sequence[int] | None, length: int) -> NDArray[np.int64]:
    """int64[1, length], padded in front."""
    try:
        items = np.asarray([] if history is None else history, dtype=np.int64).reshape(-1)
    except (TypeError, ValueError, OverflowError):
        require(False, "history", history, "a list of item ids, 64-bit integers")
    items = items[len(items) - min(length, len(items)):]
    return np.concatenate([np.full(length - len(items), NO_ITEM, np.int64), items])[None, :]


def _encoder_to(encoder: FeatureEncoder) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """JSON values and tensors of the fitted features; strings go to the former, exact numbers to the latter."""
    entries: list[dict[str, Any]] = []
    columns = {"table_rows": torch.tensor([encoder.table_rows])}
    for index, one in enumerate(encoder.fitted):
        entry = {"feature": dataclasses.asdict(one.feature), "offset": one.offset, "mean": one.mean, "std": one.std}
        if one.values.dtype.kind == "U":
            entry["values"] = one.values.tolist()
        else:
            columns[str(index)] = torch.from_numpy(np.ascontiguousarray(one.values))
        entries.append(entry)
    return {"features": entries, "history_length": encoder.history_length}, columns


def _encoder_from(normalisation: Mapping[str, Any], columns: Mapping[str, Tensor]) -> FeatureEncoder:
    fitted = []
    for index, entry in enumerate(normalisation["features"]):
        values = np.array(entry["values"], dtype=str) if "values" in entry else columns[str(index)].numpy()
        fitted.append(FittedFeature(from_mapping(Feature, entry["feature"], "manifest feature"), values,
                                    entry["offset"], entry["mean"], entry["std"]))
    return FeatureEncoder(tuple(fitted), normalisation["history_length"], int(columns["table_rows"][0]))
