"""One optimiser step on a batch."""

from __future__ import annotations

import torch
from torch import Tensor

from recfuse.scenes.loss import multi_scene_loss
from recfuse.scenes.training.problem import Problem
from recfuse.scenes.training.tensors import device_of, moved


class Stepper:
    """One optimiser step at a time: Adagrad on the embedding table, Adam on the rest.

    Args:
        model: the network, or a DDP wrapper of it.
        steps: of one epoch.
    """

    def __init__(self, model: torch.nn.Module, problem: Problem, steps: int) -> None:
        config = problem.training
        self._model = model
        self._total, self._final_rate = config.epochs * steps, config.final_rate
        self.taken = 0
        self._device = device_of(model)
        self._weights = moved((problem.positive_weight, problem.task_weight), self._device)
        self._pair_scene = torch.tensor(problem.registry.pair_scene, device=self._device)
        self._pair_task = torch.tensor(problem.registry.pair_task, device=self._device)
        table = [p for name, p in model.named_parameters() if name.endswith("embedding")]
        dense = [p for name, p in model.named_parameters() if not name.endswith("embedding")]
        # With the whole table in one fused step, rows without a gradient stay as they are: the same result as a
        # sparse update, and faster up to a few hundred thousand rows.
        self.optimizers = (torch.optim.Adagrad(table, lr=config.embedding_rate, fused=self._device.type == "cpu"),
                           torch.optim.Adam(dense, lr=config.dense_rate, fused=True))
        self._rates = config.embedding_rate, config.dense_rate
        has_bfloat16 = self._device.type != "cpu" or _has_bfloat16()
        self._bfloat16 = has_bfloat16 if config.bfloat16 is None else config.bfloat16

    def step(self, ids: Tensor, numbers: Tensor, history: Tensor, scene: Tensor, labels: Tensor) -> float:
        """One step on a batch; returns the loss per row. `labels` is [B, tasks]."""
        ids, numbers, history, scene, labels = moved((ids, numbers, history, scene, labels), self._device)
        mask = scene[:, None] == self._pair_scene
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bfloat16):
            logits = self._model(ids, numbers, history, scene)
        loss = multi_scene_loss(logits, labels[:, self._pair_task], mask, *self._weights) / len(scene)
        done = min(self.taken / max(self._total, 1), 1.0)
        self.taken += 1
        for optimizer, rate in zip(self.optimizers, self._rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * (1 - done * (1 - self._final_rate))
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()


def _has_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported())
