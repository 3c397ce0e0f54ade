"""Implicit Q-learning: values of the logged actions alone, then a policy weighted by their advantage."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recfuse.config import require
from recfuse.learning.action_values import (
    ACTION_VALUE_LOSS,
    COLUMNS,
    EXPLAINED_VARIANCE,
    action_value_loss,
    logged_values,
    value_target,
)
from recfuse.learning.algorithms.iql import IqlConfig
from recfuse.learning.columns import chunks, fill, to_unit_variance
from recfuse.learning.context import Context
from recfuse.learning.critics import move_targets
from recfuse.learning.gradients import Batch
from recfuse.learning.imitation import entropy_of_policy, weighted_imitation_loss
from recfuse.learning.metrics import Metric
from recfuse.learning.phases import Fitted, Phase, PhaseLoss, Prepared
from recfuse.learning.weights import weights_of

STATE_VALUE_LOSS = Metric("state_value_loss")


@dataclass(frozen=True)
class ImplicitLoss:
    """Attributes:
        loss: scalar: action values and state value, which have no parameter in common.
        action_value, state_value: scalars, no gradient.
    """

    loss: Tensor
    action_value: Tensor
    state_value: Tensor


def implicit_loss(action_values: Tensor, target: Tensor, best: Tensor, value: Tensor, expectile: float) -> ImplicitLoss:
    """The two regressions.

    Args:
        action_values: Q_k(s_t, a_t), [B, k].
        target: r_t + γ (1 − d_t) V(s_{t+1}), [B]; held constant.
        best: min_k Q̄_k(s_t, a_t) of the target networks, [B]; held constant.
        value: V(s_t), [B].
        expectile: of Q̄ over the logged actions that V is, in (0, 1); ½ is the mean.
    """
    of_actions = action_value_loss(action_values, target)
    of_states = expectile_loss(best.detach() - value, expectile)
    return ImplicitLoss(of_actions + of_states, of_actions.detach(), of_states.detach())


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """mean |τ − 1(error < 0)| error² of errors [B]; its optimum is the τ-expectile (Newey and Powell, 1987)."""
    require(0.0 < expectile < 1.0, "expectile", expectile, "a number in (0, 1)")
    weight = torch.where(error < 0, 1.0 - expectile, expectile)
    return (weight * error.square()).mean()


def value_loss(context: Context[IqlConfig], batch: Batch) -> PhaseLoss:
    """Of the values of actions and of states."""
    module = context.module
    terms = module.policy.standardise(batch["state"], batch["action"])
    with torch.no_grad():
        target = value_target(context, batch, module.critics(batch["next_state"]))
        best = module.target("action_values")(*terms).amin(1)
    result = implicit_loss(module.action_values(*terms), target[:, 0], best, module.critics(batch["state"])[:, 0],
                           context.settings.expectile)
    return PhaseLoss(result.loss, {ACTION_VALUE_LOSS: result.action_value, STATE_VALUE_LOSS: result.state_value})


def value_and_target(context: Context[IqlConfig], batch: Batch) -> tuple[Tensor, Tensor]:
    """The mean of the action values and what they are fitted to, [n, 1] both."""
    following = context.module.critics(batch["next_state"])
    return logged_values(context, batch).mean(1, keepdim=True), value_target(context, batch, following)


def sample_weights(context: Context[IqlConfig]) -> Prepared:
    """`weight` → exp(β A) of every sample, [n], tempered as in stage two (maths 1.6)."""
    def compute() -> Any:
        return weights_of(context.settings.temperature * _implicit_advantages(context), context.settings)

    weights = context.memory.once("extraction", ("action_values", "critics"), compute)
    return Prepared({"weight": weights.weight}, metrics=weights.metrics)


def _implicit_advantages(context: Context[IqlConfig]) -> Tensor:
    module = context.module

    def parts() -> Iterator[tuple[int, Tensor]]:
        for first, chunk in chunks(context.windows):
            terms = module.policy.standardise(chunk["state"], chunk["action"])
            best = module.target("action_values")(*terms).amin(1, keepdim=True)
            yield first, best - module.critics(chunk["state"])

    return to_unit_variance(fill(context.rows, 1, parts()))[:, 0]


ACTION_VALUES: Phase = Phase(
    name="action_values", seed=6, rule=lambda settings: settings.critics, columns=COLUMNS, drawn_only=False,
    networks=("action_values", "critics"), loss=value_loss, follow=move_targets,
    begin=lambda module: module.start_targets(), fitted=Fitted(EXPLAINED_VARIANCE, value_and_target))
EXTRACTION: Phase = Phase(
    name="extraction", seed=7, rule=lambda settings: settings.policy, columns=("state", "action"),
    networks=("policy",), loss=weighted_imitation_loss, prepare=sample_weights, diagnose=entropy_of_policy)
