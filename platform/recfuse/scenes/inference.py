"""Scores items from a scenes bundle: calibrated probabilities of every task of a scene, without Ray."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from recfuse.bundle import Bundle
from recfuse.config import require
from recfuse.logs.exposures import Exposures
from recfuse.scenes import experts
from recfuse.scenes.config import SOURCES, Precision
from recfuse.scenes.dataset import EncodedRows, encode_rows
from recfuse.scenes.encoded_request import EncodedRequest, encode_request, id_keys
from recfuse.scenes.encoder import FeatureEncoder
from recfuse.scenes.experts import ExpertHealth
from recfuse.scenes.features import declared_features
from recfuse.scenes.histories import NO_ITEM, row_histories
from recfuse.scenes.known_items import PRECISIONS, KnownItems, RowMaker, item_rows
from recfuse.scenes.loss import calibrated
from recfuse.scenes.mixture import MultiSceneModel, with_pairs
from recfuse.scenes.model import ModelConfig, SceneModel
from recfuse.scenes.registry import Pair, Registry
from recfuse.scenes.request import ItemRows, RequestNetwork, SourceSizes
from recfuse.scenes.row_files import RowFiles
from recfuse.scenes.scorer_bundle import ScorerParts, read_parts, write_parts

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


class SceneScorer:
    """A trained model with its features and its calibration.

    It computes on the device that the model is on, and takes and gives numpy arrays; it moves no model by itself.

    Args:
        model: in evaluation mode; its parameters must not change afterwards.
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
        self._device = model.embedding.device
        self._positive_weight, self._shift = positive_weight.float().to(self._device), shift.float().to(self._device)
        self.version = version
        self._scale = torch.tensor([registry.numbers.get(pair.task, 1.0) for pair in registry.pairs],
                                   device=self._device)
        self.tasks: dict[str, tuple[str, ...]] = {scene: registry.tasks_of(scene) for scene in registry.scene_names}
        # Weights are laid out for requests once, not in every request.
        self._network = RequestNetwork(model, *(
            SourceSizes(*encoder.sizes(source)) for source in SOURCES)) if isinstance(model, MultiSceneModel) else None

    @classmethod
    def from_bundle(cls, bundle: Bundle, device: str = "cpu") -> SceneScorer:
        """The scorer in a bundle of kind `scenes`, on a device of torch.

        Raises:
            InvalidFieldError: the bundle is of another kind, or its manifest and tensors do not fit.
        """
        parts = read_parts(bundle)
        return cls(parts.model.to(device), parts.registry, parts.encoder, parts.positive_weight, bundle.version,
                   parts.shift)

    @classmethod
    def untrained(cls, exposures: Exposures, registry: Registry, config: ModelConfig, *, seed: int = 0) -> SceneScorer:
        """A scorer with random weights, its features fitted to all rows: where only sizes matter, as in a load test."""
        every_row = np.ones(exposures.rows.num_rows, bool)
        encoder = FeatureEncoder.fit(declared_features(exposures), exposures, every_row, config.history_length)
        item_field = [entry.feature.name for entry in encoder.fitted if entry.offset >= 0].index("item_id")
        torch.manual_seed(seed)
        model = MultiSceneModel(config, table_rows=encoder.table_rows, fields=encoder.fields, numeric=encoder.numeric,
                                item_field=item_field, pair_scene=registry.pair_scene)
        return cls(model, registry, encoder, torch.ones(len(registry.pairs)))

    def export(self, root: str | Path, *, training: Mapping[str, Any], data_fingerprint: str,
               metrics: Mapping[str, Any], slopes: Mapping[str, Any] | None = None) -> Path:
        """Writes a bundle of kind `scenes` and returns its directory.

        Args:
            slopes: task → scene → JSON values of the slope of realised on predicted; absent where none were measured.
        """
        parts = ScorerParts(self._model, self._registry, self._encoder, self._positive_weight, self._shift)
        return write_parts(parts, root, {"training": dict(training), "data_fingerprint": data_fingerprint,
                                         "metrics": dict(metrics), "slopes": dict(slopes or {})})

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
            InvalidFieldError: a new scene names no scene of this scorer, or has a task that this one lacks; or a number
                is cut elsewhere, which would change what its predictions mean.
        """
        known = self._registry.scene_names
        copied = {scene.name: scene.like for scene in registry.scenes if scene.name not in known}
        for name, like in copied.items():
            require(like in known, f"scene {name}: like", like, ", ".join(known))
        for task, cut in self.numbers.items():
            given = registry.numbers.get(task)
            require(task not in registry.task_names or given == cut, f"numbers.{task}", given,
                    f"{cut:g}, as the scorer was trained with")
        for task in registry.numbers:
            known_as_label = any(task in tasks for tasks in self.tasks.values()) and task not in self.numbers
            require(not known_as_label, f"numbers.{task}", registry.numbers[task], "a label, as the scorer has it")
        for pair in registry.pairs:
            tasks = self.tasks[copied.get(pair.scene, pair.scene)]
            require(pair.task in tasks, f"scene {pair.scene}: task", pair.task, ", ".join(tasks))
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
    def registry(self) -> Registry:
        """Its scenes and tasks."""
        return self._registry

    @property
    def positive_weight(self) -> Tensor:
        """p_t [T]."""
        return self._positive_weight

    @property
    def shift(self) -> Tensor:
        """Log-odds [T] that are added to every pair's calibrated prediction."""
        return self._shift

    @property
    def numbers(self) -> Mapping[str, float]:
        """Tasks whose predictions are means of numbers, and where these are cut."""
        return self._registry.numbers

    def parameters(self) -> dict[str, Tensor]:
        """The network's tensors by name."""
        return dict(self._model.state_dict())

    @property
    def history_length(self) -> int:
        """How many of a user's last items are read."""
        return self._encoder.history_length

    def _of(self, registry: Registry, copied: Mapping[str, str]) -> SceneScorer:
        """The scorer of another registry; scenes in `copied` take the pairs of the scene they name."""
        before = self._registry.pairs
        chosen = [before.index(Pair(copied.get(pair.scene, pair.scene), pair.task)) for pair in registry.pairs]
        model = with_pairs(self._model, chosen, registry.pair_scene, registry.pair_task)
        return SceneScorer(model, registry, self._encoder, self._positive_weight[chosen], self.version,
                           self._shift[chosen])

    def known_items(self, keys: NDArray[np.int64], columns: Mapping[str, Any], precision: Precision = "float16",
                    apart: Sequence[str] = (), files: RowFiles | None = None,
                    before: KnownItems | None = None) -> KnownItems:
        """Items that requests are for again and again, encoded once, with their part of the network where it has one.

        Args:
            keys: [M], ascending, of the items' ids (recfuse.logs.ids).
            columns: feature → its values [M]; what is missing counts as unknown.
            precision: of the rows; `none` makes no rows.
            apart: features that change so often that each request adds their part to the rows.
            files: where the rows lie, for all processes of the machine; None keeps them in this one.
            before: of an earlier catalogue; the rows of items that have not changed are taken from it.

        Raises:
            InvalidFieldError: values that a feature does not take, or numbers that float16 does not hold.
        """
        known = KnownItems.of(self._encoder, keys, columns, apart)
        if self._network is None or precision == "none":
            return known
        return RowMaker(self._encoder, self._network, PRECISIONS[precision], files).with_rows(known, before)

    def score(self, scene: str, user: Mapping[str, Any], items: Mapping[str, np.ndarray],
              known: KnownItems | None = None, positions: NDArray[np.int64] | None = None) -> Scores:
        """Probabilities of every task of the scene for N items shown to one user.

        Args:
            user: the user's features by name, with `user_id`, `history` (item ids, oldest first) and context such as
                `hour`; what is missing counts as unknown, but for the hour, which is then the clock's in UTC.
            items: the items' features by name, with `item_id`; each [N]. Ids are integers or text. Where items are
                known, those features that go before what is known of them.
            known: of this scorer; positions: [N] among them, −1 where an item is not.

        Raises:
            InvalidFieldError: an unknown scene, no item_id, columns of different lengths or of a wrong type.
        """
        require(scene in self.tasks, "scene", scene, ", ".join(self.tasks))
        require("item_id" in items, "items.item_id", sorted(items), "a column item_id")
        items = {**items, "item_id": id_keys(items["item_id"], "items.item_id")}
        chosen = None if known is None or positions is None else known.choose(self._encoder, positions, items)
        encoded = self._encoder.encode("item", items, len(items["item_id"])) if chosen is None else chosen.encoded
        request = encode_request(self._encoder, scene, user, encoded, self._registry.scene_names.index(scene))
        rows = None if known is None or chosen is None else item_rows(known, chosen, self._tensor)
        columns = dict(zip(self.tasks[scene], self._request_probabilities(request, rows).T, strict=True))
        return Scores(columns, {**request.user.unknown, **request.context.unknown, **request.items.unknown})

    def check_user(self, features: Mapping[str, Any]) -> None:
        """Refuses features of a user by which no request of theirs could be scored.

        Raises:
            InvalidFieldError: a value of a type or size that its feature does not take.
        """
        for source in ("user", "context"):
            self._encoder.encode_one(source, features)

    def score_rows(self, rows: pa.Table, users: pa.Table, items: pa.Table,
                   histories: NDArray[np.int64] | None = None,
                   corrected: bool = True) -> dict[str, NDArray[np.float32]]:
        """Task → float32[N] of rows of many users and scenes; NaN where the row's scene lacks the task.

        Args:
            rows: `user_id`, `item_id`, `scene`, and context columns such as `hour` where they are known.
            users, items: their features, as in Exposures.
            histories: [N, L] keys of items, newest last, NO_ITEM where there is none; absent, nobody has a history.
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
        if not isinstance(self._model, MultiSceneModel):
            return []
        encoded = encode_rows(rows, users, items, histories, self._registry, self._encoder)
        return experts.expert_health(self._model, encoded, self._registry)

    def _by_task(self, rows: EncodedRows, corrected: bool) -> dict[str, NDArray[np.float32]]:
        result = {task: np.full(len(rows), np.nan, np.float32) for task in self._registry.task_names}
        for start in range(0, len(rows), _BATCH):
            index = np.arange(start, min(start + _BATCH, len(rows)))
            part = rows.take(index)
            logits = self._logits(part.ids(), part.numbers(), part.history, part.scene)
            probabilities = self._probabilities(logits, corrected=corrected)
            for column, (pair, scene) in enumerate(zip(self._registry.pairs, self._registry.pair_scene, strict=True)):
                inside = part.scene == scene
                result[pair.task][index[inside]] = probabilities[inside, column]
        return result

    def _request_probabilities(self, request: EncodedRequest, rows: ItemRows | None) -> NDArray[np.float32]:
        """Calibrated probabilities [N, T_s] of one user's items."""
        pairs = self._model.spans[request.scene]
        if self._network is None:
            logits = self._logits(*request.rows())[:, pairs]
        else:
            with torch.inference_mode():
                user, items, context = ((self._tensor(part.ids), self._tensor(part.numbers))
                                        for part in (request.user, request.items, request.context))
                history = self._tensor(request.history)
                logits = self._network.logits(user, items, context, history, request.scene, rows)
        return self._probabilities(logits, pairs)

    def _logits(self, *columns: np.ndarray) -> Tensor:
        """Logits [N, T] of rows, from their ids, numbers, histories and scenes."""
        with torch.inference_mode():
            logits: Tensor = self._model(*(self._tensor(column) for column in columns))
            return logits

    def _probabilities(self, logits: Tensor, pairs: slice = slice(None),
                       corrected: bool = True) -> NDArray[np.float32]:
        """float32[N, pairs] from the logits of these pairs."""
        with torch.inference_mode():
            shares = calibrated(logits + self._shift[pairs], self._positive_weight[pairs]) if corrected \
                else torch.sigmoid(logits)
            probabilities: NDArray[np.float32] = (shares * self._scale[pairs]).cpu().numpy()
            return probabilities

    def _tensor(self, column: np.ndarray) -> Tensor:
        tensor = torch.from_numpy(column)
        return tensor if self._device.type == "cpu" else tensor.to(self._device)
