"""Published architectures over the same embeddings, features, loss and evaluation: what ours is measured against.

Each is reduced to its idea; depth and widths come from the same config.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recfuse.scenes.layers import StackedLinear, run_stack, stack
from recfuse.scenes.model import SceneModel


class Baseline(SceneModel):
    """A published architecture, of which every pair starts at its base rate through a bias of its own."""

    def build(self) -> None:
        self.pair_bias = nn.Parameter(torch.zeros(len(self.pair_scene)))
        self.tasks = max(self.pair_task) + 1
        self.layers()

    @abstractmethod
    def layers(self) -> None:
        """Makes the layers of the architecture, the pairs' biases apart."""

    def start_at(self, prior_logits: Tensor) -> None:
        with torch.no_grad():
            self.pair_bias.copy_(prior_logits)

    def tasks_of(self, pairs: slice) -> Tensor:
        """Task index [T_s] of the pairs."""
        return torch.tensor(self.pair_task[pairs])

    def towers_of(self, towers: nn.ModuleList, hidden: Tensor, chosen: slice | Tensor, pairs: slice) -> Tensor:
        """Logits [B_s, T_s] from hidden [T_s, B_s, in]."""
        return run_stack(towers, hidden, chosen).squeeze(-1).transpose(0, 1) + self.pair_bias[pairs]


class SingleTask(Baseline):
    """One network per pair; only the embeddings are shared."""

    def layers(self) -> None:
        widths = (self.input_size, *self.config.expert_layers, *self.config.tower_layers, 1)
        self.networks = stack(len(self.pair_scene), widths)

    def scene_logits(self, shared: tuple[Tensor, ...], scene: int, pairs: slice) -> Tensor:
        hidden = shared[0].expand(pairs.stop - pairs.start, -1, -1)
        return self.towers_of(self.networks, hidden, pairs, pairs)


class SharedBottom(Baseline):
    """One bottom, as wide in its first layer as all experts together, and one tower per pair (Caruana 1997)."""

    def layers(self) -> None:
        first, *rest = self.config.expert_layers
        self.bottom = _mlp((self.input_size, self.config.experts * first, *rest))
        self.towers = stack(len(self.pair_scene), (self.config.expert_layers[-1], *self.config.tower_layers, 1))

    def shared(self, x: Tensor) -> tuple[Tensor, ...]:
        return (self.bottom(x),)

    def scene_logits(self, shared: tuple[Tensor, ...], scene: int, pairs: slice) -> Tensor:
        hidden = shared[0].expand(pairs.stop - pairs.start, -1, -1)
        return self.towers_of(self.towers, hidden, pairs, pairs)


class TaskMixture(Baseline):
    """MMoE over tasks, the scene being a feature (Ma et al., KDD 2018)."""

    def layers(self) -> None:
        config = self.config
        self.experts = stack(config.experts, (self.input_size, *config.expert_layers))
        self.gates_of_tasks = StackedLinear(self.tasks, self.input_size, config.experts)
        self.towers = stack(self.tasks, (config.expert_layers[-1], *config.tower_layers, 1))

    def shared(self, x: Tensor) -> tuple[Tensor, ...]:
        experts = F.relu(run_stack(self.experts, x.expand(self.config.experts, -1, -1))).transpose(0, 1)
        gates = self.gates_of_tasks(x.expand(self.tasks, -1, -1)).softmax(-1).transpose(0, 1)
        return (torch.bmm(gates, experts),)

    def scene_logits(self, shared: tuple[Tensor, ...], scene: int, pairs: slice) -> Tensor:
        tasks = self.tasks_of(pairs)
        return self.towers_of(self.towers, shared[0][:, tasks].transpose(0, 1), tasks, pairs)


class ProgressiveExtraction(Baseline):
    """PLE: levels of shared and own experts per task, each one layer of the experts (Tang et al., RecSys 2020)."""

    def layers(self) -> None:
        self.common = max(1, self.config.experts // 2)
        widths = (self.input_size, *self.config.expert_layers)
        self.common_experts = nn.ModuleList(StackedLinear(self.common, a, b) for a, b in pairwise(widths))
        self.own_experts = nn.ModuleList(StackedLinear(self.tasks, a, b) for a, b in pairwise(widths))
        # A task's gate sees the common experts and that of the task; the shared gate sees all of them.
        self.task_gates = nn.ModuleList(StackedLinear(self.tasks, a, self.common + 1) for a, _ in pairwise(widths))
        self.common_gates = nn.ModuleList(nn.Linear(a, self.common + self.tasks) for a, _ in pairwise(widths))
        self.towers = stack(self.tasks, (widths[-1], *self.config.tower_layers, 1))

    def shared(self, x: Tensor) -> tuple[Tensor, ...]:
        specific, common = x.expand(self.tasks, -1, -1), x
        for level, (shared_experts, own_experts) in enumerate(zip(self.common_experts, self.own_experts, strict=True)):
            from_common = F.relu(shared_experts(common.expand(self.common, -1, -1)))
            from_specific = F.relu(own_experts(specific))
            # [T, C + 1, B, H]: what each task's gate mixes.
            seen = torch.cat([from_common.expand(self.tasks, -1, -1, -1), from_specific[:, None]], 1)
            weights = self.task_gates[level](specific).softmax(-1)  # [T, B, C + 1]
            every = torch.cat([from_common, from_specific])  # [C + T, B, H]
            common_weights = self.common_gates[level](common).softmax(-1)  # [B, C + T]
            specific = torch.einsum("tbe,tebh->tbh", weights, seen)
            common = torch.einsum("be,ebh->bh", common_weights, every)
        return (specific.transpose(0, 1),)

    def scene_logits(self, shared: tuple[Tensor, ...], scene: int, pairs: slice) -> Tensor:
        tasks = self.tasks_of(pairs)
        return self.towers_of(self.towers, shared[0][:, tasks].transpose(0, 1), tasks, pairs)


class Star(Baseline):
    """STAR: a scene's weights are the shared ones times its own; an auxiliary network (Sheng et al., CIKM 2021).

    Without its partitioned normalisation, whose running statistics would be state beside the parameters.
    """

    def layers(self) -> None:
        config, scenes = self.config, len(self.spans)
        widths = (self.input_size, *config.expert_layers, *config.tower_layers, self.tasks)
        self.centre = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.scene_weights = nn.ParameterList(torch.ones(scenes, b, a) for a, b in pairwise(widths))
        self.scene_biases = nn.ParameterList(torch.zeros(scenes, b) for _, b in pairwise(widths))
        self.auxiliary = nn.Sequential(nn.Linear(self.input_size, config.expert_layers[-1]), nn.ReLU(),
                                       nn.Linear(config.expert_layers[-1], self.tasks))

    def scene_logits(self, shared: tuple[Tensor, ...], scene: int, pairs: slice) -> Tensor:
        hidden = shared[0]
        for depth, centre in enumerate(self.centre):
            weight = centre.weight * self.scene_weights[depth][scene]
            bias = centre.bias + self.scene_biases[depth][scene]
            hidden = F.linear(F.relu(hidden) if depth else hidden, weight, bias)
        logits = hidden + self.auxiliary(shared[0])
        return logits[:, self.tasks_of(pairs)] + self.pair_bias[pairs]


class GatedPersonalisation(Baseline):
    """PEPNet-like: a gate on the embeddings by scene, gates on every hidden layer by item and scene (KDD 2023)."""

    def layers(self) -> None:
        config, width = self.config, self.config.embedding_size
        prior = 2 * width
        self.scene_vector = nn.Parameter(torch.randn(len(self.spans), width) * 0.05)
        self.input_gate = _gate(self.input_size + width, width, self.input_size)
        first, *rest = config.expert_layers
        widths = (self.input_size, config.experts * first, *rest)
        self.hidden_gates = nn.ModuleList(_gate(self.input_size + prior, width, b) for b in widths[1:])
        self.bottom = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.towers = stack(len(self.pair_scene), (widths[-1], *config.tower_layers, 1))

    def scene_logits(self, shared: tuple[Tensor, ...], scene: int, pairs: slice) -> Tensor:
        x, width = shared[0], self.config.embedding_size
        domain = self.scene_vector[scene].expand(len(x), -1)
        hidden = x * 2 * self.input_gate(torch.cat([domain, x.detach()], 1)).sigmoid()
        item = x[:, self.item_field * width:(self.item_field + 1) * width]
        # The gates do not teach the embeddings they look at.
        prior = torch.cat([domain, item.detach(), hidden.detach()], 1)
        for layer, gate in zip(self.bottom, self.hidden_gates, strict=True):
            hidden = F.relu(layer(hidden)) * 2 * gate(prior).sigmoid()
        return self.towers_of(self.towers, hidden.expand(pairs.stop - pairs.start, -1, -1), pairs, pairs)


class EntireSpace(Baseline):
    """ESMM: a scene's first task, and the others as its product with a rate given it (Ma et al., SIGIR 2018).

    A product of probabilities has no room for weights of positives: it is trained with p = 1.
    """

    def layers(self) -> None:
        widths = (self.input_size, *self.config.expert_layers, *self.config.tower_layers, 1)
        self.networks = stack(self.tasks, widths)

    def scene_logits(self, shared: tuple[Tensor, ...], scene: int, pairs: slice) -> Tensor:
        tasks = self.tasks_of(pairs)
        z = self.towers_of(self.networks, shared[0].expand(len(tasks), -1, -1), tasks, pairs).float()
        root, given = F.logsigmoid(z[:, :1]), F.logsigmoid(z[:, 1:])
        both = (root + given).clamp(max=-1e-6)
        return torch.cat([z[:, :1], both - torch.log(-torch.expm1(both))], 1)

    def start_at(self, prior_logits: Tensor) -> None:
        """The rate given the first task is log-odds of P(task) / P(first task)."""
        rates = prior_logits.double().sigmoid()
        first = torch.tensor([rates[self.spans[scene].start] for scene in self.pair_scene])
        given = (rates / first).clamp(1e-4, 1 - 1e-4)
        roots = torch.tensor([self.spans[scene].start == pair for pair, scene in enumerate(self.pair_scene)])
        super().start_at(torch.where(roots, rates, given).logit().float())


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    """Linear layers, each with a ReLU behind it."""
    return nn.Sequential(*(part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())))


def _gate(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs))
