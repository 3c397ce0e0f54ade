"""The last correction of a trained model: its predictions sum to the positives of the last training days."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recfuse.scenes.model import SceneModel
from recfuse.scenes.training.problem import Problem
from recfuse.scenes.training.tensors import predict_logits


def recent_shift(model: SceneModel, problem: Problem, deviation: float = 0.1) -> Tensor:
    """Log-odds [T] to add to a pair's predictions, so that they sum to the positives of the last training days.

    The last steps of a training leave a bias of their own, and rates drift from day to day. The maximum of the
    likelihood with a normal prior of this deviation on the shift: pairs with few rows stay where they are, and those
    without any where the scorer has them that training went on from.
    """
    shift = torch.zeros(len(problem.registry.pairs), dtype=torch.float64)
    if problem.start:
        unseen = ~np.isin(problem.registry.pair_scene, problem.rows.scene)
        shift[unseen] = problem.start.shift.cpu().double()[unseen]
    if not len(problem.recent):
        return shift
    rows = problem.rows.take(problem.recent)
    logits = predict_logits(model, rows).double() - problem.positive_weight.log().double()
    for index, (scene, task) in enumerate(zip(problem.registry.pair_scene, problem.registry.pair_task, strict=True)):
        inside = rows.scene == scene
        if not inside.any():
            continue
        z, positives = logits[torch.from_numpy(inside), index], float(rows.labels[inside, task].sum())
        for _ in range(20):  # This is Newton's method on a concave function.
            p = torch.sigmoid(z + shift[index])
            slope = positives - p.sum() - shift[index] / deviation**2
            shift[index] += slope / ((p * (1 - p)).sum() + 1 / deviation**2)
    return shift
