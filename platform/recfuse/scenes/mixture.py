"""The multi-gate mixture of experts over every (scene, task) pair (maths 3.1), in pure torch.

Laid out for speed: the first layer of all experts and all gates is one matmul, the other expert layers are batched
matmuls, and gates and towers are evaluated for a row's own scene only.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recfuse.config import require
from recfuse.scenes.layers import FoldedFields, run_stack, stack
from recfuse.scenes.model import SceneModel, scene_spans


class MultiSceneModel(SceneModel):
    """Experts shared by every scene, one gate and one tower per (scene, task) pair (maths 3.1)."""

    def build(self) -> None:
        config, pairs = self.config, len(self.pair_scene)
        shared = config.experts * config.expert_layers[0]
        self.first = nn.Linear(self.input_size, shared + pairs * config.experts)
        self.experts = stack(config.experts, config.expert_layers)
        self.towers = stack(pairs, (config.expert_layers[-1], *config.tower_layers, 1))
        # The item's own field stays: its embedding is multiplied with the history.
        folded = FoldedFields(self.field_rows, config.embedding_size, (self.item_field,)) if self.field_rows else None
        self.folded = folded if folded and folded.fields else None

    def start_at(self, prior_logits: Tensor) -> None:
        with torch.no_grad():
            self.get_parameter(f"towers.{len(self.towers) - 1}.bias").copy_(prior_logits.view(-1, 1, 1))

    def shared(self, x: Tensor) -> tuple[Tensor, ...]:
        """Experts e [B, K, H] and gate logits [B, T, K], from one matmul."""
        return self._behind_first(self.first(x))

    def encoded(self, ids: Tensor, numbers: Tensor, history: Tensor) -> tuple[Tensor, ...]:
        if self.folded is None or not self.training:  # What serves is computed in one way only.
            return super().encoded(ids, numbers, history)
        return self._behind_first(self._folded_first(self.folded, ids, numbers, history))

    def _folded_first(self, folded: FoldedFields, ids: Tensor, numbers: Tensor, history: Tensor) -> Tensor:
        """The first layer [B, outputs], small fields folded; equals `first(features(…))` up to rounding."""
        rows, width = len(ids), self.config.embedding_size
        # One lookup serves both: each has a gradient as large as the table.
        large = ids[:, folded.others]
        wanted = torch.cat([large.flatten(), folded.table_rows.to(ids.dtype)])
        embedded, categories = self.lookup(wanted).split((large.numel(), len(folded.table_rows)))
        embedded = embedded.view(rows, len(folded.others), width)
        x = self.joined(embedded, embedded[:, folded.others.index(self.item_field)], numbers, history)
        # The columns of each field and those behind the fields are split, because slices have large gradients.
        *fields, rest = self.first.weight.split([width] * self.fields + [self.input_size - self.fields * width], 1)
        chosen, products = folded(ids[:, folded.fields], categories, [fields[i] for i in folded.fields])
        weight = torch.cat([*(fields[i] for i in folded.others), rest], 1)
        return torch.addmm(F.linear(x, weight, self.first.bias), chosen, products)

    def _behind_first(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """Experts e [B, K, H] and gate logits [B, T, K] from the first layer [B, outputs]."""
        count, width = self.config.experts, self.config.expert_layers[0]
        pairs = len(self.pair_scene)
        hidden, gates = outputs.split((count * width, pairs * count), 1)
        return self._deeper(hidden.view(-1, count, width)), gates.view(-1, pairs, count)

    def _deeper(self, hidden: Tensor) -> Tensor:
        """Experts e [B, K, H] from their first layer [B, K, width]."""
        # They are contiguous by expert: the gradients of the batched matmuls would copy anything else.
        hidden = hidden.transpose(0, 1).contiguous()
        for layer in self.experts:
            hidden = layer(F.relu(hidden))
        hidden = F.relu(hidden)
        return (hidden.float() if hidden.dtype == torch.bfloat16 else hidden).transpose(0, 1)

    def scene_logits(self, shared: tuple[Tensor, ...], scene: int, pairs: slice) -> Tensor:
        """Logits [B_s, T_s] from e [B_s, K, H] and all gate logits [B_s, T, K]."""
        experts, gates = shared[0], shared[1][:, pairs]
        # This is in single precision: with bfloat16 a kernel is compiled for every new number of a scene's rows.
        with torch.autocast(experts.device.type, enabled=False):
            mixed = torch.bmm(gates.to(experts.dtype).softmax(-1), experts).transpose(0, 1)
            return run_stack(self.towers, mixed, pairs).squeeze(-1).transpose(0, 1)

    def gates(self, ids: Tensor, numbers: Tensor, history: Tensor) -> Tensor:
        """Every pair's gate, whatever the rows' scenes: shares [B, T, K] that sum to 1 over the experts."""
        return self.shared(self.features(ids, numbers, history))[1].softmax(-1)


def with_pairs(model: SceneModel, chosen: Sequence[int], pair_scene: Sequence[int],
               pair_task: Sequence[int]) -> MultiSceneModel:
    """A model with the same shared part whose pair k has the gate and tower of the old pair `chosen[k]`.

    Args:
        pair_scene, pair_task: of the new pairs.

    Raises:
        InvalidFieldError: the architecture has no gates and towers of its own per pair.
    """
    require(isinstance(model, MultiSceneModel), "architecture", model.config.architecture, "multi_scene")
    pairs, experts = torch.tensor(list(chosen)), model.config.experts
    shared = experts * model.config.expert_layers[0]
    gates = shared + (pairs[:, None] * experts + torch.arange(experts)).flatten()
    outputs = torch.cat([torch.arange(shared), gates])
    state = {name: value.cpu() for name, value in model.state_dict().items()}
    for name in ("first.weight", "first.bias"):
        state[name] = state[name][outputs]
    state |= {name: value[pairs] for name, value in state.items() if name.startswith("towers.")}
    result = MultiSceneModel(
        model.config, table_rows=len(model.embedding), fields=model.fields, numeric=model.numeric,
        item_field=model.item_field, pair_scene=pair_scene, pair_task=pair_task)
    result.load_state_dict(state)
    return result.to(model.embedding.device)


def extract_scene(model: SceneModel, scene: int) -> MultiSceneModel:
    """The model of one scene: the shared part with that scene's gates and towers (property S3)."""
    require(scene in model.pair_scene, "scene", scene, f"one of {sorted(set(model.pair_scene))}")
    pairs = range(len(model.pair_scene))[scene_spans(model.pair_scene)[scene]]
    return with_pairs(model, pairs, [0] * len(pairs), range(len(pairs)))
