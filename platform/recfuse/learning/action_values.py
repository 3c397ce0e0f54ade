"""What algorithms that learn the value of actions share. Actions are in standard deviations of the logged ones, which
takes the place of the unit box of the papers."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from recfuse.config import require
from recfuse.fusion import losses
from recfuse.learning.context import Context
from recfuse.learning.gradients import Batch
from recfuse.learning.metrics import Metric, Per

COLUMNS = ("state", "action", "next_state", "feedback", "done")
ACTION_VALUE_LOSS = Metric("action_value_loss")
EXPLAINED_VARIANCE = Metric("explained_variance", Per.ACTION_VALUE)


def action_value_loss(action_values: Tensor, target: Tensor) -> Tensor:
    """Σ_k mean (Q_k − target)², of values [B, k] and a target [B] that is held constant."""
    shape = tuple(action_values.shape)
    require(action_values.ndim == 2, "action_values", shape, "a tensor [B, k]")
    require(tuple(target.shape) == shape[:1], "target", tuple(target.shape), f"{shape[:1]}")
    return (action_values - target.detach().unsqueeze(1)).square().mean(0).sum()


def logged_values(context: Context[Any], batch: Batch) -> Tensor:
    """Q_k(s, a) of the logged actions, [n, k]."""
    policy = context.module.policy
    values: Tensor = context.module.action_values(*policy.standardise(batch["state"], batch["action"]))
    return values


def value_target(context: Context[Any], batch: Batch, following: Tensor) -> Tensor:
    """r + γ (1 − d) V(s'), [n, 1], given the value [n, 1] of what follows."""
    reward = context.rewards.of(batch["feedback"])
    return losses.td_target(following, reward, batch["done"], context.rewards.discount, like=reward)
