"""The network of one served request: what its candidates share is computed once, from weights laid out for that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from recfuse.scenes.layers import StackedLinear, run_stack
from recfuse.scenes.mixture import MultiSceneModel

# Ids int [B, fields] and numbers float [B, numeric] of one source of features.
Inputs = tuple[Tensor, Tensor]
# So many items are computed at a time: their first layer then stays in a core's second cache.
_BLOCK = 256


@dataclass(frozen=True)
class SourceSizes:
    """How many ids and numbers a row has of one source of features."""

    fields: int
    numbers: int


@dataclass(frozen=True)
class ItemRows:
    """What the first layer makes of N items, precomputed, and where the items differ from what that was made of.

    Attributes:
        table: float16 or float32 [M, outputs] of `RequestNetwork.item_rows`; places: int64 [N], the items' rows.
        fields, numbers: positions of the ids and numbers that may differ.
        before: those that the rows were made of, [N, fields] and [N, numbers]; an id of −1 is in no row.
    """

    table: Tensor
    places: Tensor
    fields: Sequence[int]
    numbers: Sequence[int]
    before: Inputs


class RequestNetwork:
    """Logits of N items of one scene for one user: equal to the model's `forward`, at a fraction of its work.

    The first layer of experts and gates is linear in its inputs, so the part of the user and the context is computed
    once per request, that of an item once per catalogue, and only the scene's own gates are. The weights are copied
    here, by what they multiply.

    Args:
        model: its parameters must not change afterwards.
        user, item, context: the sizes of the sources; together they are the model's.
    """

    def __init__(self, model: MultiSceneModel, user: SourceSizes, item: SourceSizes, context: SourceSizes) -> None:
        self._model, self._item, self._item_field = model, item, model.item_field - user.fields
        self._embedding = model.embedding.detach()
        self._query = None if model.query is None else model.query.weight.detach()
        experts, self._shared = model.config.experts, model.config.experts * model.config.expert_layers[0]
        # A scene's gates have experts in front: a softmax over a last dimension of eight costs twenty times as much.
        gates = [torch.arange(pairs.start * experts, pairs.stop * experts).view(-1, experts).T.flatten()
                 for pairs in model.spans]
        outputs = torch.cat([torch.arange(self._shared), *(self._shared + each for each in gates)])
        self._gates = [slice(self._shared + pairs.start * experts, self._shared + pairs.stop * experts)
                       for pairs in model.spans]
        weight, common, varying = model.first.weight.detach()[outputs], *input_columns(model, user, item, context)
        self._bias, self._common = model.first.bias.detach()[outputs], weight[:, common].contiguous()
        self._varying = weight[:, varying].T.contiguous()
        self._item_columns = item.fields * model.config.embedding_size + item.numbers

    @property
    def outputs(self) -> int:
        """How many numbers a precomputed row has."""
        return len(self._bias)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._bias.device

    def item_rows(self, items: Inputs, fields: Sequence[int] = (), numbers: Sequence[int] = ()) -> Tensor:
        """The items' part of the first layer [B, outputs], without the part of these `fields` and `numbers`."""
        inputs = torch.cat([self._lookup(items[0]).flatten(1), items[1]], 1)
        inputs[:, self._columns_of(fields, numbers)] = 0.0
        return inputs @ self._varying[:self._item_columns]

    def item_weights(self) -> tuple[Tensor, Tensor]:
        """All weights that rows follow from: the embedding table, and the items' part of the first layer."""
        return self._embedding, self._varying[:self._item_columns]

    def _columns_of(self, fields: Sequence[int], numbers: Sequence[int]) -> Tensor:
        """int64 [c]: which of an item's inputs these ids and numbers are."""
        width = self._model.config.embedding_size
        columns = [field * width + place for field in fields for place in range(width)]
        columns += [self._item.fields * width + number for number in numbers]
        return torch.tensor(columns, dtype=torch.int64, device=self._bias.device)

    def logits(self, user: Inputs, items: Inputs, context: Inputs, history: Tensor, scene: int,
               rows: ItemRows | None = None) -> Tensor:
        """Logits [N, T_s] of one scene.

        Args:
            user, context: one row each; items: N rows; history: int [1, L], 0 pads.
            rows: of the items; without them their part is computed as well.
        """
        pairs = self._model.spans[scene]
        outputs = slice(self._shared), self._gates[scene]
        embedded = self._lookup(torch.cat([user[0], context[0]], 1))
        common = torch.cat([embedded.flatten(), user[1][0], context[1][0]])
        shared = [torch.addmv(self._bias[some], self._common[some], common) for some in outputs]
        inputs = self._inputs(items, history, rows)
        first = self._whole(inputs, shared, outputs) if rows is None else self._added(inputs, shared, outputs, rows)
        logits = [self._behind_first(hidden, scores, pairs) for hidden, scores in first]
        return torch.cat(logits) if len(logits) > 1 else logits[0]

    def _whole(self, inputs: Tensor, shared: list[Tensor], outputs: tuple[slice, ...]) -> Iterator[list[Tensor]]:
        """These outputs of the first layer of one block of items after the other; `shared` are what all have."""
        for block in inputs.split(_BLOCK):
            yield [torch.addmm(part, block, self._varying[:, some])
                   for part, some in zip(shared, outputs, strict=True)]

    def _added(self, inputs: Tensor, shared: list[Tensor], outputs: tuple[slice, ...],
               rows: ItemRows) -> Iterator[list[Tensor]]:
        """As `_whole`, on top of the items' rows."""
        own = [self._varying[self._item_columns:]]
        if rows.fields or rows.numbers:
            own.append(self._varying[self._columns_of(rows.fields, rows.numbers)])
        weights = [torch.cat([*(part[:, some] for part in own), all_have[None]])
                   for all_have, some in zip(shared, outputs, strict=True)]
        for block, places in zip(inputs.split(_BLOCK), rows.places.split(_BLOCK), strict=True):
            chosen = rows.table.index_select(0, places)
            yield [chosen[:, some].to(block.dtype).addmm_(block, weight)
                   for weight, some in zip(weights, outputs, strict=True)]

    def _behind_first(self, hidden: Tensor, scores: Tensor, pairs: slice) -> Tensor:
        """Logits [B, T_s] from the experts' first layer [B, K · width] and the scene's gates [B, K · T_s]."""
        count, (experts, width) = len(hidden), (self._model.config.experts, self._model.config.expert_layers[0])
        first = hidden.relu_().view(count, experts, width).transpose(0, 1)
        mixed = run_stack(self._model.experts, first).relu_() if len(self._model.experts) else first
        shares = scores.view(count, experts, pairs.stop - pairs.start).transpose(0, 1).softmax(0)
        top = torch.bmm(shares.permute(1, 2, 0), mixed.transpose(0, 1)).transpose(0, 1)
        last = self._model.towers[-1]
        assert isinstance(last, StackedLinear)
        for layer in self._model.towers[:-1]:
            top = layer(top, pairs).relu_()
        # A product with one column is a sum, which is faster than as a matmul.
        logits = (top * last.weight[pairs].transpose(1, 2)).sum(-1) + last.bias[pairs].squeeze(-1)
        return logits.T

    def _inputs(self, items: Inputs, history: Tensor, rows: ItemRows | None) -> Tensor:
        """What is multiplied for each item [N, columns]: a one behind it takes what all items share, with rows."""
        parts = []
        if rows is None:
            embedded = self._lookup(items[0])
            parts += [embedded.flatten(1), items[1]]
        if self._model.config.history_length:
            item = self._lookup(items[0][:, self._item_field]) if rows is not None \
                else embedded[:, self._item_field]
            pooled = self._pooled(history, item)
            parts += [pooled, pooled * item]
        if rows is not None:
            if rows.fields or rows.numbers:
                parts += self._changes(items, rows)
            parts.append(torch.ones(len(items[0]), 1, dtype=self._bias.dtype, device=self._bias.device))
        return torch.cat(parts, 1)

    def _changes(self, items: Inputs, rows: ItemRows) -> list[Tensor]:
        """By how much embeddings and numbers of the items differ from those of their rows."""
        ids, numbers = rows.before
        kept = self._lookup(ids.clamp(min=0)) * (ids >= 0).unsqueeze(-1)
        embedded = self._lookup(items[0][:, rows.fields]) - kept
        return [embedded.flatten(1), items[1][:, rows.numbers] - numbers]

    def _pooled(self, history: Tensor, item: Tensor) -> Tensor:
        """One history [1, L] as a vector for each of the items [N, width]: its embeddings are looked up once."""
        watched = self._lookup(history[0][history[0] != 0])
        if not len(watched):
            return torch.zeros_like(item)
        if self._query is None:
            return watched.mean(0).expand(len(item), -1)
        # The history is projected, not the items, of which there are more.
        return torch.mm(torch.mm(item, torch.mm(watched, self._query).T).softmax(-1), watched)

    def _lookup(self, ids: Tensor) -> Tensor:
        """Embeddings [..., width]; `SceneModel.lookup` has a gradient, which costs as much as the small ones here."""
        return F.embedding(ids, self._embedding)


def input_columns(model: MultiSceneModel, user: SourceSizes, item: SourceSizes,
                  context: SourceSizes) -> tuple[Tensor, Tensor]:
    """The columns of x that all items of a request share, and the others; each in the order that they are joined."""
    width = model.config.embedding_size
    sizes = [source.fields * width for source in (user, item, context)]
    sizes += [source.numbers for source in (user, item, context)]
    parts = torch.arange(model.input_size).split([*sizes, model.input_size - sum(sizes)])
    user_ids, item_ids, context_ids, user_numbers, item_numbers, context_numbers, history = parts
    return (torch.cat([user_ids, context_ids, user_numbers, context_numbers]),
            torch.cat([item_ids, item_numbers, history]))
