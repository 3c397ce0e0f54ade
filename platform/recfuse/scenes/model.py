"""The multi-gate mixture of experts over every (scene, task) pair (maths 3.1), in pure torch.

Laid out for speed: the first layer of all experts and all gates is one matmul, the other expert layers are batched
matmuls, and gates and towers are evaluated for a row's own scene only.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recfuse.config import require

Architecture = Literal["multi_scene", "single_task", "shared_bottom", "mmoe", "ple", "star", "pepnet", "esmm"]


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Kind and sizes of the network.

    Attributes:
        architecture: `multi_scene` is this product's; the others are its rivals (recfuse.scenes.rivals).
        embedding_size: of every categorical feature.
        history_length: last watched items that are pooled through the items' embeddings; 0 for none.
        history_pooling: `mean`, or `attention`: by softmax of the items' products with a projection of the candidate.
        experts: K.
        expert_layers: widths; the last one is that of what gates mix.
        tower_layers: widths of the hidden layers of each tower.
    """

    architecture: Architecture = "multi_scene"
    embedding_size: int = 16
    history_length: int = 50
    history_pooling: Literal["mean", "attention"] = "attention"
    experts: int = 8
    expert_layers: tuple[int, ...] = (128, 64)
    tower_layers: tuple[int, ...] = (32,)

    def __post_init__(self) -> None:
        known = get_args(Architecture)
        require(self.architecture in known, "architecture", self.architecture, ", ".join(known))
        for name in ("embedding_size", "experts"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer ≥ 1")
        require(self.history_length >= 0, "history_length", self.history_length, "an integer ≥ 0")
        require(self.history_pooling in ("mean", "attention"), "history_pooling", self.history_pooling,
                "mean, attention")
        require(bool(self.expert_layers), "expert_layers", self.expert_layers, "at least one width")
        for name in ("expert_layers", "tower_layers"):
            widths = getattr(self, name)
            require(all(width >= 1 for width in widths), name, widths, "integers ≥ 1")


# Ids int [B, fields] and numbers float [B, numeric] of one source of features.
Inputs = tuple[Tensor, Tensor]


class _Lookup(torch.autograd.Function):
    """Rows of the embedding table; the gradient is added row by row into one dense tensor.

    F.embedding's backward sorts the ids, and `index_add_` takes its fast path for 64-bit indices alone: on two cores
    80,000 rows of 16 took 41 ms, 7.9 ms with 32-bit ids, 1.0 ms with 64-bit ones.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
        flat = ids.reshape(-1)
        ctx.save_for_backward(flat)
        ctx.rows = len(table)
        # Of the two orders the one that casts fewer rows; the result is the same.
        rows = table.to(dtype).index_select(0, flat) if len(table) < len(flat) else table.index_select(0, flat)
        return rows.to(dtype).view(*ids.shape, table.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        width = gradient.shape[-1]
        total = gradient.new_zeros(ctx.rows, width, dtype=_sum_precision(gradient.dtype))
        return total.index_add_(0, ids.long(), gradient.reshape(-1, width).to(total.dtype)), None, None


def _sum_precision(dtype: torch.dtype) -> torch.dtype:
    """What gradients of this precision are summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class FoldedFields(nn.Module):
    """A linear layer on the embeddings of fields with few categories: once per category and batch, not once per row.

    A row's sum over fields of W_f e_f equals one row of zeros and ones times the stacked products E_f W_f. For a field
    of v categories and embeddings of width w a pass forward and back then costs 2 v instead of 3 w products a row and
    output, so fields with 2 v < 3 w are folded. Same function, other order of rounding.

    Args:
        rows: (first row of the embedding table, rows) of every field.
        width: of embeddings.
        unfolded: fields that stay, whatever their size.
    """

    def __init__(self, rows: Sequence[tuple[int, int]], width: int, unfolded: Sequence[int] = ()) -> None:
        super().__init__()
        self.fields = [i for i, (_, size) in enumerate(rows) if 2 * size < 3 * width and i not in unfolded]
        self.others = [i for i in range(len(rows)) if i not in self.fields]
        self.sizes = [rows[i][1] for i in self.fields]
        sizes = torch.tensor(self.sizes, dtype=torch.int64)
        firsts = torch.tensor([rows[i][0] for i in self.fields], dtype=torch.int64)
        self.shift = nn.Buffer(firsts - sizes.cumsum(0) + sizes, persistent=False)
        self.table_rows = nn.Buffer(
            torch.arange(sum(self.sizes)) + torch.repeat_interleave(self.shift, sizes), persistent=False)

    def forward(self, ids: Tensor, embedded: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What to multiply: zeros and ones [B, S], and the products of the S categories [S, out].

        Args:
            ids: [B, folded fields]; embedded: [S, width], of `table_rows`; weights: [out, width] of each folded field.
        """
        chosen = embedded.new_zeros(len(ids), len(self.table_rows)).scatter_(1, ids.long() - self.shift, 1.0)
        with torch.autocast(ids.device.type, enabled=False):  # too small to gain by bfloat16
            products = torch.cat([part @ weight.T for part, weight in zip(
                embedded.to(weights[0].dtype).split(self.sizes), weights, strict=True)])
        return chosen, products.to(embedded.dtype)


class StackedLinear(nn.Module):
    """`count` linear layers side by side: [count, B, in] → [count, B, out] in one batched matmul."""

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(count, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor, chosen: slice | Tensor = slice(None)) -> Tensor:
        return torch.baddbmm(self.bias[chosen], x, self.weight[chosen])


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
        return self._joined(embedded, embedded[:, self.item_field], numbers, history)

    def _joined(self, embedded: Tensor, item: Tensor, numbers: Tensor, history: Tensor) -> Tensor:
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
        return _Lookup.apply(self.embedding, ids, dtype)

    def _pooled(self, history: Tensor, item: Tensor) -> Tensor:
        """The history [B, L] as one vector [B, width] for the item [B, width]; zero for an empty one."""
        if self.query is None:
            return F.embedding_bag(history, self.embedding, mode="mean", padding_idx=0)
        watched, absent = self.lookup(history), history == 0
        scores = torch.bmm(watched, self.query(item).unsqueeze(-1)).squeeze(-1).float()
        # Of an empty history all weights are equal here, and zero after the mask: no NaN.
        weights = scores.masked_fill(absent, -1e9).softmax(-1).masked_fill(absent, 0.0)
        return torch.bmm(weights.to(watched.dtype).unsqueeze(1), watched).squeeze(1)

    def _pooled_once(self, history: Tensor, item: Tensor) -> Tensor:
        """`_pooled` of one history [1, L] for the items [N, width]: its embeddings are looked up once."""
        watched = self.lookup(history[0][history[0] != 0])
        if not len(watched):
            return torch.zeros_like(item)
        if self.query is None:
            return watched.mean(0).expand(len(item), -1)
        return torch.mm(torch.mm(self.query(item), watched.T).softmax(-1), watched)

    def _grouped_logits(self, shared: tuple[Tensor, ...], bounds: list[int]) -> Tensor:
        """Logits [B, T] of rows grouped by scene; scene s ends at bounds[s]."""
        sizes = [end - start for start, end in pairwise([0, *bounds])]
        # Split, not sliced: the gradient of every slice would be a tensor of zeros as large as the whole.
        parts = zip(*(part.split(sizes) for part in shared), strict=True)
        return torch.cat([self._padded_logits(own, scene, pairs)
                          for scene, (pairs, own) in enumerate(zip(self.spans, parts, strict=True))])

    def _padded_logits(self, own: tuple[Tensor, ...], scene: int, pairs: slice) -> Tensor:
        """Logits [B_s, T] of one scene's rows, zero for the pairs of the others."""
        rows, every = len(own[0]), len(self.pair_scene)
        if not rows or pairs.start == pairs.stop:
            return own[0].new_zeros(rows, every, dtype=torch.float32)
        return F.pad(self.scene_logits(own, scene, pairs).float(), (pairs.start, every - pairs.stop))


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
        if self.folded is None or not self.training:  # what serves is computed in one way only
            return super().encoded(ids, numbers, history)
        return self._behind_first(self._folded_first(self.folded, ids, numbers, history))

    def _folded_first(self, folded: FoldedFields, ids: Tensor, numbers: Tensor, history: Tensor) -> Tensor:
        """The first layer [B, outputs], small fields folded; equals `first(features(…))` up to rounding."""
        rows, width = len(ids), self.config.embedding_size
        # One lookup for both: each has a gradient as large as the table.
        large = ids[:, folded.others]
        wanted = torch.cat([large.flatten(), folded.table_rows.to(ids.dtype)])
        embedded, categories = self.lookup(wanted).split((large.numel(), len(folded.table_rows)))
        embedded = embedded.view(rows, len(folded.others), width)
        x = self._joined(embedded, embedded[:, folded.others.index(self.item_field)], numbers, history)
        # Columns of one field each, and those behind the fields; split, because slices have large gradients.
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
        # Contiguous by expert: the gradients of the batched matmuls would copy anything else.
        hidden = hidden.transpose(0, 1).contiguous()
        for layer in self.experts:
            hidden = layer(F.relu(hidden))
        hidden = F.relu(hidden)
        return (hidden.float() if hidden.dtype == torch.bfloat16 else hidden).transpose(0, 1)

    def request_logits(self, user: Inputs, items: Inputs, context: Inputs, history: Tensor, scene: int) -> Tensor:
        """Logits [N, T_s] of N items of one scene for one user: equal to `forward`, at a fraction of its work.

        The first layer is linear in its inputs, so the part of the user and the context is computed once, and only the
        scene's own gates are.

        Args:
            user, context: one row each; items: N rows; history: int [1, L].
        """
        # The columns of x in the order of `features`, and whether all items share them.
        parts = [(self.lookup(ids).flatten(1), ids is not items[0])
                 for ids in (user[0], items[0], context[0])]
        parts += [(user[1], True), (items[1], False), (context[1], True)]
        if self.config.history_length:
            item = self.lookup(items[0][:, self.item_field - user[0].shape[1]])
            pooled = self._pooled_once(history, item)
            parts += [(pooled, False), (pooled * item, False)]
        pairs, count, width = self.spans[scene], self.config.experts, self.config.expert_layers[0]
        columns = self.first.weight.split([part.shape[1] for part, _ in parts], 1)
        own = torch.cat([part for part, is_common in parts if not is_common], 1)

        def first(outputs: slice) -> tuple[Tensor, Tensor]:
            """What all items share of some outputs [1, outputs], and the items' weights [outputs, columns of own]."""
            common, weights = self.first.bias[outputs], []
            for (part, is_common), some in zip(parts, columns, strict=True):
                if is_common:
                    common = common + F.linear(part, some[outputs])
                else:
                    weights.append(some[outputs])
            return common, torch.cat(weights, 1)

        bias, weight = first(slice(0, count * width))
        # One expert after the other: its rows stay in the cache, and nothing is transposed.
        experts = torch.cat([
            run_stack(self.experts, F.relu(torch.addmm(part, own, some.T))[None], slice(expert, expert + 1))
            for expert, (part, some) in enumerate(zip(bias.split(width, 1), weight.split(width), strict=True))])
        bias, weight = first(slice(count * (width + pairs.start), count * (width + pairs.stop)))
        gates = torch.addmm(bias, own, weight.T).view(-1, pairs.stop - pairs.start, count)
        return self._mixed_logits(F.relu(experts).transpose(0, 1), gates, pairs)

    def scene_logits(self, shared: tuple[Tensor, ...], scene: int, pairs: slice) -> Tensor:
        experts, gates = shared
        return self._mixed_logits(experts, gates[:, pairs], pairs)

    def _mixed_logits(self, experts: Tensor, gates: Tensor, pairs: slice) -> Tensor:
        """Logits [B, T_s] from e [B, K, H] and the scene's gate logits [B, T_s, K]."""
        # In single precision: with bfloat16 a kernel is compiled for every new number of a scene's rows.
        with torch.autocast(experts.device.type, enabled=False):
            mixed = torch.bmm(gates.to(experts.dtype).softmax(-1), experts).transpose(0, 1)
            return run_stack(self.towers, mixed, pairs).squeeze(-1).transpose(0, 1)

    def gates(self, ids: Tensor, numbers: Tensor, history: Tensor) -> Tensor:
        """Every pair's gate, whatever the rows' scenes: shares [B, T, K] that sum to 1 over the experts."""
        return self.shared(self.features(ids, numbers, history))[1].softmax(-1)


def scene_spans(pair_scene: Sequence[int]) -> list[slice]:
    """The pairs of every scene, which are contiguous."""
    scenes = max(pair_scene) + 1
    starts = [sum(scene < s for scene in pair_scene) for s in range(scenes + 1)]
    return [slice(low, high) for low, high in pairwise(starts)]


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
    own = torch.cat([torch.arange(shared), gates])
    state = dict(model.state_dict())
    for name in ("first.weight", "first.bias"):
        state[name] = state[name][own]
    state |= {name: value[pairs] for name, value in state.items() if name.startswith("towers.")}
    result = MultiSceneModel(
        model.config, table_rows=len(model.embedding), fields=model.fields, numeric=model.numeric,
        item_field=model.item_field, pair_scene=pair_scene, pair_task=pair_task)
    result.load_state_dict(state)
    return result


def extract_scene(model: SceneModel, scene: int) -> MultiSceneModel:
    """The model of one scene: the shared part with that scene's gates and towers (property S3)."""
    require(scene in model.pair_scene, "scene", scene, f"one of {sorted(set(model.pair_scene))}")
    own = range(len(model.pair_scene))[scene_spans(model.pair_scene)[scene]]
    return with_pairs(model, own, [0] * len(own), range(len(own)))


def stack(count: int, widths: Sequence[int]) -> nn.ModuleList:
    """`count` networks side by side, of linear layers with the given widths."""
    return nn.ModuleList(StackedLinear(count, a, b) for a, b in pairwise(widths))


def run_stack(layers: nn.ModuleList, hidden: Tensor, chosen: slice | Tensor = slice(None)) -> Tensor:
    """[count, B, in] → [count, B, out] through the chosen networks of a stack, ReLU between layers."""
    for depth, layer in enumerate(layers):
        hidden = layer(F.relu(hidden) if depth else hidden, chosen)
    return hidden
