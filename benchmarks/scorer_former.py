"""The scorer as it was before items had rows, for comparison: every request encodes its items, computes their part."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recfuse.scenes.config import SOURCES
from recfuse.scenes.encoded_request import id_keys, last_items
from recfuse.scenes.inference import SceneScorer, Scores
from recfuse.scenes.layers import run_stack
from recfuse.scenes.loss import calibrated
from recfuse.scenes.mixture import MultiSceneModel
from recfuse.scenes.request import Inputs, SourceSizes, input_columns


class FormerScorer:
    """Scores as `SceneScorer.score` did: columns of one row for the user, all features of the items in each request.

    Args:
        scorer: whose features, calibration and tasks it takes; model: its network.
    """

    def __init__(self, scorer: SceneScorer, model: MultiSceneModel) -> None:
        self._scorer, self._encoder, self._registry, self._model = scorer, scorer.encoder, scorer.registry, model
        self._network = FormerNetwork(model, *(SourceSizes(*scorer.encoder.sizes(source)) for source in SOURCES))
        self._scale = torch.tensor([self._registry.numbers.get(pair.task, 1.0) for pair in self._registry.pairs])

    def score(self, scene: str, user: Mapping[str, Any], items: Mapping[str, np.ndarray]) -> Scores:
        """See `SceneScorer.score`."""
        encoder, index = self._encoder, self._registry.scene_names.index(scene)
        given: dict[str, Any] = {name: [value] for name, value in user.items() if name != "history"}
        if user.get("user_id") is not None:
            given["user_id"] = id_keys(given["user_id"], "user_id")
        items = {**items, "item_id": id_keys(items["item_id"], "items.item_id")}
        now = {"hour": [datetime.datetime.now(datetime.UTC).hour]}
        parts = (encoder.encode("user", given, 1), encoder.encode("item", items, len(items["item_id"])),
                 encoder.encode("context", {**now, **given, "scene": [scene]}, 1))
        history = encoder.encode_history(last_items(user.get("history"), encoder.history_length))
        pairs = self._model.spans[index]
        with torch.inference_mode():
            inputs = [(torch.from_numpy(part.ids), torch.from_numpy(part.numbers)) for part in parts]
            logits = self._network.logits(*inputs, torch.from_numpy(history), index)
            shares = calibrated(logits + self._scorer.shift[pairs], self._scorer.positive_weight[pairs])
            columns = dict(zip(self._scorer.tasks[scene], (shares * self._scale[pairs]).numpy().T, strict=True))
        return Scores(columns, {name: count for part in (parts[0], parts[2], parts[1])
                                for name, count in part.unknown.items()})


class FormerNetwork:
    """Logits of N items of one scene for one user: equal to the model's `forward`, at a fraction of its work.

    The first layer is linear in its inputs, so the part of the user and the context is computed once per request, and
    only the scene's own gates are. Its weights are copied here, by what they multiply.

    Args:
        model: its parameters must not change afterwards.
        user, item, context: the sizes of the sources; together they are the model's.
    """

    def __init__(self, model: MultiSceneModel, user: SourceSizes, item: SourceSizes, context: SourceSizes) -> None:
        self._model = model
        self._item_field = model.item_field - user.fields
        common, varying = input_columns(model, user, item, context)
        config, weight = model.config, model.first.weight.detach()
        self._experts, self._width = config.experts, config.expert_layers[0]
        shared = self._experts * self._width
        self._bias, self._common = model.first.bias.detach(), weight[:, common].contiguous()
        by_expert = weight[:shared, varying].view(self._experts, self._width, len(varying))
        self._expert_weights = by_expert.transpose(1, 2).contiguous()
        self._gate_weights = weight[shared:, varying].contiguous()

    def logits(self, user: Inputs, items: Inputs, context: Inputs, history: Tensor, scene: int) -> Tensor:
        """Logits [N, T_s] of one scene.

        Args:
            user, context: one row each; items: N rows; history: int [1, L], 0 pads.
        """
        lookup, pairs = self._model.lookup, self._model.spans[scene]
        common = torch.cat([lookup(user[0]).flatten(), lookup(context[0]).flatten(), user[1][0], context[1][0]])
        varying = self._varying(items, history)
        experts, shares = self._mixtures(common, varying), self._shares(common, varying, pairs)
        mixed = torch.bmm(shares, experts.transpose(0, 1)).transpose(0, 1)
        return run_stack(self._model.towers, mixed, pairs).squeeze(-1).transpose(0, 1)

    def _mixtures(self, common: Tensor, varying: Tensor) -> Tensor:
        """What gates mix, e [K, N, H], from the columns that items share and those [N, columns] that they do not."""
        shared = self._experts * self._width
        bias = torch.addmv(self._bias[:shared], self._common[:shared], common).view(self._experts, self._width)
        # One expert follows the other: its rows stay in the cache, and nothing is transposed.
        return torch.cat([
            run_stack(self._model.experts, torch.addmm(part, varying, weight).relu_()[None], slice(expert, expert + 1))
            for expert, (part, weight) in enumerate(zip(bias, self._expert_weights, strict=True))]).relu_()

    def _shares(self, common: Tensor, varying: Tensor, pairs: slice) -> Tensor:
        """The gates of the scene's pairs: shares [N, T_s, K]."""
        rows = slice(pairs.start * self._experts, pairs.stop * self._experts)
        shared = self._experts * self._width
        bias = torch.addmv(self._bias[shared:][rows], self._common[shared:][rows], common)
        scores = torch.addmm(bias, varying, self._gate_weights[rows].T)
        # Experts lead: a softmax over a last dimension of eight costs twenty times as much.
        by_expert = scores.view(-1, pairs.stop - pairs.start, self._experts).permute(2, 0, 1).contiguous()
        return by_expert.softmax(0).permute(1, 2, 0)

    def _varying(self, items: Inputs, history: Tensor) -> Tensor:
        """The columns of x [N, columns] that differ from item to item."""
        embedded = self._model.lookup(items[0])
        parts = [embedded.flatten(1), items[1]]
        if self._model.config.history_length:
            item = embedded[:, self._item_field]
            pooled = self._pooled(history, item)
            parts += [pooled, pooled * item]
        return torch.cat(parts, 1)

    def _pooled(self, history: Tensor, item: Tensor) -> Tensor:
        """One history [1, L] as a vector for each of the items [N, width]: its embeddings are looked up once."""
        model = self._model
        watched = model.lookup(history[0][history[0] != 0])
        if not len(watched):
            return torch.zeros_like(item)
        if model.query is None:
            return watched.mean(0).expand(len(item), -1)
        return torch.mm(torch.mm(model.query(item), watched.T).softmax(-1), watched)
