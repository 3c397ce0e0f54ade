"""What the networks of all architectures share: sizes, the embedding table, joint features, one logit a pair."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recfuse.config import require
from recfuse.scenes.config import ModelConfig
from recfuse.scenes.layers import Lookup


class SceneModel(nn.Module, ABC):
    """What every architecture shares: the embedding table, the joint features, and one logit a (scene, task) pair.

    The task id is not an input: what belongs to a pair or a task already holds whatever its one-hot could add, and the
    shared part is computed once per row instead of once per task. The scene id is one of the context features.

    Args:
        config: kind and sizes.
        table_rows: rows of the embedding table; row 0 pads.
        fields: ids a row has.
        numeric: numbers a row has.
        item_field: which of the ids is the item's own; its product with the pooled history is an input.
        pair_scene: scene index of every pair, ascending.
        pair_task: task index of every pair; absent, every pair is a task of its own.
        field_rows: (first row, rows) of every field in the embedding table; given, training may use it to be faster.
        prior_logits: [T] where the pairs start; absent, near 0. A rare task that starts at its base rate does not
            spend the first steps pushing every embedding towards "no".
    """

    def __init__(self, config: ModelConfig, *, table_rows: int, fields: int, numeric: int, item_field: int,
                 pair_scene: Sequence[int], pair_task: Sequence[int] | None = None,
                 field_rows: Sequence[tuple[int, int]] = (), prior_logits: Tensor | None = None) -> None:
        super().__init__()
        require(list(pair_scene) == sorted(pair_scene), "pair_scene", list(pair_scene), "scenes in ascending order")
        self.config = config
        self.pair_scene = tuple(pair_scene)
        self.pair_task = tuple(range(len(self.pair_scene)) if pair_task is None else pair_task)
        self.fields, self.numeric, self.item_field = fields, numeric, item_field
        self.field_rows = tuple(field_rows)
        self.spans = scene_spans(self.pair_scene)
        width = config.embedding_size
        self.embedding = nn.Parameter(torch.randn(table_rows, width) * 0.05)
        with torch.no_grad():
            self.embedding[0].zero_()
        self.input_size = fields * width + numeric + (2 * width if config.history_length else 0)
        attends = config.history_length > 0 and config.history_pooling == "attention"
        self.query = nn.Linear(width, width, bias=False) if attends else None
        self.build()
        if prior_logits is not None:
            self.start_at(prior_logits)

    @abstractmethod
    def build(self) -> None:
        """Makes the layers of the architecture."""

    @abstractmethod
    def start_at(self, prior_logits: Tensor) -> None:
        """Sets the last biases to the pairs' prior logits [T]."""

    def shared(self, x: Tensor) -> tuple[Tensor, ...]:
        """What is computed for the rows of all scenes at once, [B, …] each; by default x itself."""
        return (x,)

    @abstractmethod
    def scene_logits(self, shared: tuple[Tensor, ...], scene: int, pairs: slice) -> Tensor:
        """Logits [B_s, T_s] of one scene's rows."""

    def forward(self, ids: Tensor, numbers: Tensor, history: Tensor, scene: Tensor) -> Tensor:
        """Logits [B, T] of every pair; columns of other scenes than a row's own are zero.

        Args:
            ids: int [B, fields]; numbers: float [B, numeric]; history: int [B, L], 0 pads; scene: int64 [B].
        """
        # Rows are grouped by scene while they are still integers, which is the cheapest moment to move them.
        order = torch.argsort(scene, stable=True)
        bounds = torch.bincount(scene, minlength=len(self.spans)).cumsum(0).tolist()
        logits = self._grouped_logits(self.encoded(ids[order], numbers[order], history[order]), bounds)
        return torch.empty_like(logits).index_copy(0, order, logits)

    def encoded(self, ids: Tensor, numbers: Tensor, history: Tensor) -> tuple[Tensor, ...]:
        """`shared` of the rows' features."""
        return self.shared(self.features(ids, numbers, history))

    def features(self, ids: Tensor, numbers: Tensor, history: Tensor) -> Tensor:
        """x [B, input_size]: embeddings, numbers, the pooled history and its product with the item's embedding."""
        embedded = self.lookup(ids)
        return self.joined(embedded, embedded[:, self.item_field], numbers, history)

    def joined(self, embedded: Tensor, item: Tensor, numbers: Tensor, history: Tensor) -> Tensor:
        """Embeddings [B, F, width], numbers and what the history says of the item [B, width], side by side."""
        parts = [embedded.flatten(1), numbers.to(embedded.dtype)]
        if self.config.history_length:
            pooled = self._pooled(history, item)
            parts += [pooled, pooled * item]
        return torch.cat(parts, dim=1)

    def lookup(self, ids: Tensor) -> Tensor:
        """[..., width] embeddings of ids [...], in the precision of the matmuls that follow."""
        device = self.embedding.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else self.embedding.dtype
        return Lookup.apply(self.embedding, ids, dtype)

    def _pooled(self, history: Tensor, item: Tensor) -> Tensor:
        """The history [B, L] as one vector [B, width] for the item [B, width]; zero for an empty one."""
        if self.query is None:
            return F.embedding_bag(history, self.embedding, mode="mean", padding_idx=0)
        watched, absent = self.lookup(history), history == 0
        scores = torch.bmm(watched, self.query(item).unsqueeze(-1)).squeeze(-1).float()
        # All weights of an empty history are equal here, and zero after the mask, so there is no NaN.
        weights = scores.masked_fill(absent, -1e9).softmax(-1).masked_fill(absent, 0.0)
        return torch.bmm(weights.to(watched.dtype).unsqueeze(1), watched).squeeze(1)

    def _grouped_logits(self, shared: tuple[Tensor, ...], bounds: list[int]) -> Tensor:
        """Logits [B, T] of rows grouped by scene; scene s ends at bounds[s]."""
        sizes = [end - start for start, end in pairwise([0, *bounds])]
        # They are split, not sliced: the gradient of every slice would be a tensor of zeros as large as the whole.
        parts = zip(*(part.split(sizes) for part in shared), strict=True)
        return torch.cat([self._padded_logits(scene_part, scene, pairs)
                          for scene, (pairs, scene_part) in enumerate(zip(self.spans, parts, strict=True))])

    def _padded_logits(self, scene_part: tuple[Tensor, ...], scene: int, pairs: slice) -> Tensor:
        """Logits [B_s, T] of one scene's rows, zero for the pairs of the others."""
        rows, every = len(scene_part[0]), len(self.pair_scene)
        if not rows or pairs.start == pairs.stop:
            return scene_part[0].new_zeros(rows, every, dtype=torch.float32)
        return F.pad(self.scene_logits(scene_part, scene, pairs).float(), (pairs.start, every - pairs.stop))


def scene_spans(pair_scene: Sequence[int]) -> list[slice]:
    """The pairs of every scene, which are contiguous."""
    scenes = max(pair_scene) + 1
    starts = [sum(scene < s for scene in pair_scene) for s in range(scenes + 1)]
    return [slice(low, high) for low, high in pairwise(starts)]
