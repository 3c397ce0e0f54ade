"""What algorithms that learn the value of actions share. Actions are in standard deviations of the logged ones, which
takes the place of the unit box of the papers."""

from __future__ import annotations

from typing import Any

from pydantic import Field
from torch import Tensor

from recfuse.config import require
from recfuse.fusion import losses
from recfuse.learning.context import Context
from recfuse.learning.gradients import Batch
from recfuse.learning.metrics import Metric, Per
from recfuse.learning.settings import LearningSettings, StoppingRule

COLUMNS = ("state", "action", "next_state", "feedback", "done")
ACTION_VALUE_LOSS = Metric("action_value_loss")
EXPLAINED_VARIANCE = Metric("explained_variance", Per.ACTION_VALUE)
# The least of two estimates counts (Fujimoto et al., ICML 2018).
ESTIMATES = 2


class ActionValueConfig(LearningSettings):
    """What algorithms with values of actions share; the reward is the long-term one, with its largest discount."""

    mixes_rewards = True

    policy: StoppingRule = Field(StoppingRule(iterations=15, change_below=0.0, patience=2),
                                 description="This rule stops the policy.")
    critic_learning_rate: float = Field(1e-3, description="Adam changes the values at this rate.", gt=0)
    target_rate: float = Field(0.005, description="Target networks follow at this Polyak rate.", gt=0, le=1)

    def learning_rates(self) -> dict[str, float]:
        """See `LearningSettings`."""
        return {**super().learning_rates(), "action_values": self.critic_learning_rate}


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
