"""When training ends, and which epoch's parameters are kept."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from recfuse.scenes.loss import multi_scene_loss
from recfuse.scenes.model import SceneModel
from recfuse.scenes.training.problem import Problem
from recfuse.scenes.training.tensors import predict_logits

logger = logging.getLogger("recfuse")


class Best:
    """The parameters of the best epoch on the validation rows; without such rows, of the last one."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.loss, self.waited = float("inf"), 0
        self.parameters: dict[str, Tensor] = {}

    def update(self, model: SceneModel) -> bool:
        """Looks at the model after an epoch; True where training is to end."""
        patience = self._problem.training.patience
        loss = validation_loss(model, self._problem) if patience else -float("inf")
        self.waited = 0 if loss < self.loss or not patience else self.waited + 1
        if not self.waited:
            self.loss = loss
            self.parameters = {name: value.cpu().clone() for name, value in model.state_dict().items()}
        if patience:
            logger.info("scenes: loss %.4f on the validation day, best %.4f", loss, self.loss)
        return bool(patience and self.waited >= patience)


def validation_loss(model: SceneModel, problem: Problem) -> float:
    """The training loss per validation row."""
    rows, registry = problem.validation, problem.registry
    mask = torch.from_numpy(rows.scene)[:, None] == torch.tensor(registry.pair_scene)
    labels = torch.from_numpy(rows.labels).float()[:, torch.tensor(registry.pair_task)]
    logits = predict_logits(model, rows)
    loss = multi_scene_loss(logits, labels, mask, problem.positive_weight, problem.task_weight)
    return loss.item() / max(len(rows), 1)
