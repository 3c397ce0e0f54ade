"""An algorithm that the package does not know: what a user writes in a file of their own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field
from torch import Tensor

from recfuse.fusion.losses import weighted_likelihood_loss
from recfuse.learning.columns import chunks, fill, to_unit_variance
from recfuse.learning.context import Context
from recfuse.learning.gradients import Batch
from recfuse.learning.imitation import CLONING, entropy_of_policy
from recfuse.learning.metrics import Metric
from recfuse.learning.phases import Phase, PhaseLoss, Prepared
from recfuse.learning.registry import register
from recfuse.learning.settings import AlgorithmName, LearningSettings, StoppingRule, named

LARGEST = Metric("largest_weight")


@register
class RewardWeightedConfig(LearningSettings):
    """Reward-weighted regression: −mean(exp(β r) log π), r the long-term reward of the request alone (Peters and
    Schaal, "Reinforcement Learning by Reward-Weighted Regression for Operational Space Control", ICML 2007)."""

    mixes_rewards = True

    algorithm: AlgorithmName = named("reward_weighted")
    regression: StoppingRule = Field(StoppingRule(iterations=10), description="This rule stops the regression.")
    sharpness: float = Field(2.0, description="A sample weighs exp(β r), r of unit variance, and this is β.", gt=0)

    @property
    def fits(self) -> tuple[Phase, ...]:
        """The cloned policy, then the regression."""
        return (CLONING, REGRESSION)


def weights(context: Context[RewardWeightedConfig]) -> Prepared:
    """`reward_weight` → of every sample, [n], mean 1."""
    def parts() -> Iterator[tuple[int, Tensor]]:
        for position, chunk in chunks(context.windows):
            yield position, context.rewards.of(chunk["feedback"])

    def compute() -> Tensor:
        reward = to_unit_variance(fill(context.rows, 1, parts()))[:, 0]
        return (context.settings.sharpness * reward).softmax(0) * context.rows

    return Prepared({"reward_weight": context.memory.once("reward_weight", (), compute)})


def regression_loss(context: Context[Any], batch: Batch) -> PhaseLoss:
    """The weighted likelihood of the logged actions."""
    log_prob = context.module.policy.log_prob(batch["state"], batch["action"]).squeeze(1)
    weight = batch["reward_weight"]
    return PhaseLoss(weighted_likelihood_loss(log_prob, weight), {LARGEST: weight.max()})


REGRESSION = Phase(name="regression", seed=101, rule=lambda settings: settings.regression, columns=("state", "action"),
                   networks=("policy",), loss=regression_loss, prepare=weights, diagnose=entropy_of_policy)
