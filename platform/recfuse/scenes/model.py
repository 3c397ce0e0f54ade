"""The multi-gate mixture of experts over every (scene, task) pair (FORMULAS 3.1), in pure torch.

Laid out for speed: the first layer of all experts and all gates is one matmul, the other expert layers are batched
matmuls, and gates and towers are evaluated for a row's own scene only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recfuse.errors import require


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes of the network.

    Attributes:
        embedding_size: of every categorical feature.
        history_length: last watched items that are mean-pooled through the items' embeddings; 0 for none.
        experts: K.
        expert_layers: widths; the last one is that of what gates mix.
        tower_layers: widths of the hidden layers of each tower.
    """

    embedding_size: int = 16
    history_length: int = 20
    experts: int = 8
    expert_layers: tuple[int, ...] = (128, 64)
    tower_layers: tuple[int, ...] = (32,)

    def __post_init__(self) -> None:
        for name in ("embedding_size", "experts"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer ≥ 1")
        require(self.history_length >= 0, "history_length", self.history_length, "an integer ≥ 0")
        require(bool(self.expert_layers), "expert_layers", self.expert_layers, "at least one width")
        for name in ("expert_layers", "tower_layers"):
            widths = getattr(self, name)
            require(all(width >= 1 for width in widths), name, widths, "integers ≥ 1")


class StackedLinear(nn.Module):
    """`count` linear layers side by side: [count, B, in] → [count, B, out] in one batched matmul."""

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(count, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor, chosen: slice = slice(None)) -> Tensor:
        return torch.baddbmm(self.bias[chosen], x, self.weight[chosen])


class MultiSceneModel(nn.Module):
    """Experts shared by every scene, one gate and one tower per (scene, task) pair.

    The task id is not an input: a gate and a tower per pair already hold whatever its one-hot could add to them, and
    the experts are computed once per row instead of once per task.

    Args:
        config: sizes.
        table_rows: rows of the embedding table; row 0 pads.
        fields: ids a row has.
        numeric: numbers a row has.
        item_field: which of the ids is the item's own; its product with the pooled history is an input.
        pair_scene: scene index of every pair, ascending.
        prior_logits: [T] where the towers start; absent, near 0. A rare task that starts at its base rate does not
            spend the first steps pushing every embedding towards "no".
    """

    def __init__(self, config: ModelConfig, *, table_rows: int, fields: int, numeric: int, item_field: int,
                 pair_scene: Sequence[int], prior_logits: Tensor | None = None) -> None:
        super().__init__()
        require(list(pair_scene) == sorted(pair_scene), "pair_scene", list(pair_scene), "scenes in ascending order")
        self.config = config
        self.pair_scene = tuple(pair_scene)
        self.fields, self.numeric, self.item_field = fields, numeric, item_field
        self._spans = scene_spans(self.pair_scene)
        width, pairs, experts = config.embedding_size, len(self.pair_scene), config.experts
        self.embedding = nn.Parameter(torch.randn(table_rows, width) * 0.05)
        with torch.no_grad():
            self.embedding[0].zero_()
        self.input_size = fields * width + numeric + (2 * width if config.history_length else 0)
        self.first = nn.Linear(self.input_size, experts * config.expert_layers[0] + pairs * experts)
        self.experts = _stack(experts, config.expert_layers)
        self.towers = _stack(pairs, (config.expert_layers[-1], *config.tower_layers, 1))
        if prior_logits is not None:
            with torch.no_grad():
                self.get_parameter(f"towers.{len(self.towers) - 1}.bias").copy_(prior_logits.view(-1, 1, 1))

    def forward(self, ids: Tensor, numbers: Tensor, history: Tensor, scene: Tensor) -> Tensor:
        """Logits [B, T] of every pair; columns of other scenes than a row's own are zero.

        Args:
            ids: int [B, fields]; numbers: float [B, numeric]; history: int [B, L], 0 pads; scene: int64 [B].
        """
        # Rows are grouped by scene while they are still integers, which is the cheapest moment to move them.
        order = torch.argsort(scene, stable=True)
        bounds = torch.bincount(scene, minlength=len(self._spans)).cumsum(0).tolist()
        x = self.features(ids[order], numbers[order], history[order])
        logits = self._grouped_logits(x, bounds)
        return torch.empty_like(logits).index_copy(0, order, logits)

    def features(self, ids: Tensor, numbers: Tensor, history: Tensor) -> Tensor:
        """x [B, input_size]: embeddings, numbers, the pooled history and its product with the item's embedding."""
        embedded = F.embedding(ids, self.embedding)
        parts = [embedded.flatten(1), numbers]
        if self.config.history_length:
            pooled = F.embedding_bag(history, self.embedding, mode="mean", padding_idx=0)
            parts += [pooled, pooled * embedded[:, self.item_field]]
        return torch.cat(parts, dim=1)

    def _grouped_logits(self, x: Tensor, bounds: list[int]) -> Tensor:
        """Logits [B, T] of rows grouped by scene; scene s ends at bounds[s]."""
        experts, gates = self._experts_and_gates(x)
        logits = x.new_zeros(len(x), len(self.pair_scene))
        start = 0
        for pairs, end in zip(self._spans, bounds, strict=True):
            if start < end and pairs.start < pairs.stop:
                logits[start:end, pairs] = self._scene_logits(experts[start:end], gates[start:end, pairs], pairs)
            start = end
        return logits

    def _experts_and_gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Experts e [B, K, H] and gate logits [B, T, K], from one matmul."""
        count, width = self.config.experts, self.config.expert_layers[0]
        both = self.first(x)
        hidden = both[:, : count * width].view(-1, count, width).transpose(0, 1)
        for layer in self.experts:
            hidden = layer(F.relu(hidden))
        gates = both[:, count * width:].view(-1, len(self.pair_scene), count)
        return F.relu(hidden).transpose(0, 1), gates

    def _scene_logits(self, experts: Tensor, gates: Tensor, pairs: slice) -> Tensor:
        """Logits [B_s, T_s] of one scene's rows from e [B_s, K, H] and gate logits [B_s, T_s, K]."""
        mixed = torch.bmm(gates.softmax(-1), experts).transpose(0, 1)
        for depth, layer in enumerate(self.towers):
            mixed = layer(F.relu(mixed) if depth else mixed, pairs)
        return mixed.squeeze(-1).transpose(0, 1).float()


def scene_spans(pair_scene: Sequence[int]) -> list[slice]:
    """The pairs of every scene, which are contiguous."""
    scenes = max(pair_scene) + 1
    starts = [sum(scene < s for scene in pair_scene) for s in range(scenes + 1)]
    return [slice(low, high) for low, high in pairwise(starts)]


def extract_scene(model: MultiSceneModel, scene: int) -> MultiSceneModel:
    """The model of one scene: the shared part with that scene's gates and towers (property S3)."""
    count = sum(s == scene for s in model.pair_scene)
    require(count > 0, "scene", scene, f"one of {sorted(set(model.pair_scene))}")
    pairs, experts = scene_spans(model.pair_scene)[scene], model.config.experts
    shared = experts * model.config.expert_layers[0]
    own = torch.cat([torch.arange(shared), shared + torch.arange(pairs.start * experts, pairs.stop * experts)])
    state = dict(model.state_dict())
    for name in ("first.weight", "first.bias"):
        state[name] = state[name][own]
    state |= {name: value[pairs] for name, value in state.items() if name.startswith("towers.")}
    extracted = MultiSceneModel(
        model.config, table_rows=len(model.embedding), fields=model.fields, numeric=model.numeric,
        item_field=model.item_field, pair_scene=[0] * count)
    extracted.load_state_dict(state)
    return extracted


def _stack(count: int, widths: Sequence[int]) -> nn.ModuleList:
    return nn.ModuleList(StackedLinear(count, a, b) for a, b in pairwise(widths))
