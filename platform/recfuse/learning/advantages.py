"""What policies learn from: advantages of every sample, sampled or regressed on state and action, and their mixture."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from recfuse.fusion.advantages import Chunk, RegressedAdvantage, regress_advantage
from recfuse.fusion.config import REGRESSION_COLUMNS
from recfuse.learning.columns import chunks, fill, mean, to_unit_variance
from recfuse.learning.context import Context
from recfuse.learning.critic_settings import CriticConfig
from recfuse.learning.critics import sampled_advantages
from recfuse.learning.fields import AdvantageChoice
from recfuse.learning.metrics import ADVANTAGE_EXPLAINED, Metrics

logger = logging.getLogger("recfuse")


@dataclass(frozen=True)
class Advantages:
    """Attributes:
        learned: what policies learn from, [n, …] with unit variance over the samples.
        sampled: what those held out judge by: what was sampled, never the model that a policy was fitted to.
        metrics: of the regression, where there was one.
    """

    learned: Tensor
    sampled: Tensor
    metrics: Metrics


def advantages(context: Context[CriticConfig], kind: AdvantageChoice, columns: int = REGRESSION_COLUMNS) -> Advantages:
    """Advantages of every sample and critic, [n, c] (maths 1.3).

    Args:
        columns: the budget of the regression.
    """
    assert kind != "replay", "phases of replay have advantages of their own"
    sampled = sampled_advantages(context)
    if kind == "sampled":
        return Advantages(sampled, sampled, {})
    model, regressed = context.memory.once("regressed", ("critics",), lambda: _regress(context, sampled, columns))
    return Advantages(regressed, sampled, {ADVANTAGE_EXPLAINED: model.explained_variance})


def mixed_advantages(
    context: Context[CriticConfig], kind: AdvantageChoice, columns: int = REGRESSION_COLUMNS
) -> Advantages:
    """One advantage of every sample, [n]: of the mixed reward's critic, or the mixture of all critics' by the weights
    and multipliers as they stand. Mean 0, variance 1: the mean matters, because clipped ratios do not cancel it."""
    return context.memory.once("mixture", ("critics", "multipliers"),
                               lambda: _mix(context, advantages(context, kind, columns)))


def _mix(context: Context[CriticConfig], each: Advantages) -> Advantages:
    weights = None if context.settings.mixes_rewards else context.rewards.weights.cpu()
    learned = _standardised_sum(each.learned, weights)
    if not bool(learned.any()):
        logger.warning("%s: the regressed advantage does not depend on the action, so the policy stays where the "
                       "logged one is; more samples, or `advantage: sampled`", context.settings.algorithm)
    sampled = learned if each.learned is each.sampled else _standardised_sum(each.sampled, weights)
    return Advantages(learned, sampled, each.metrics)


def _standardised_sum(advantage: Tensor, weights: Tensor | None) -> Tensor:
    if weights is not None:
        advantage = (advantage @ weights).unsqueeze(1)
    return to_unit_variance(advantage - mean(advantage).to(advantage.dtype))[:, 0]


def _regress(context: Context[CriticConfig], sampled: Tensor, columns: int) -> tuple[RegressedAdvantage, Tensor]:
    model = regress_advantage(_Chunks(context, sampled), columns=columns)
    parts = ((first, model(*terms)) for first, terms in _standardised(context))
    return model, to_unit_variance(fill(context.rows, sampled.shape[1], parts))


@dataclass(frozen=True)
class _Chunks:
    """What the advantage is regressed on, as often as it is asked for."""

    context: Context[CriticConfig]
    sampled: Tensor

    def __iter__(self) -> Iterator[Chunk]:
        for first, (state, action) in _standardised(self.context):
            yield first, state, action, self.sampled[first : first + len(state)].to(state.device)


def _standardised(context: Context[CriticConfig]) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
    """States and actions in standard deviations, chunk by chunk."""
    for position, chunk in chunks(context.windows):
        yield position, context.module.policy.standardise(chunk["state"], chunk["action"])
