"""TD3+BC: the policy climbs the value of its own action, held to the logged one."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np
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
from recfuse.learning.algorithms.td3_bc import Td3BcConfig
from recfuse.learning.context import Context
from recfuse.learning.critics import move_targets
from recfuse.learning.gradients import Batch
from recfuse.learning.imitation import entropy_of_policy
from recfuse.learning.metrics import Metric
from recfuse.learning.phases import Fitted, Phase, PhaseLoss, Step
from recfuse.learning.samples import EXPLORED
from recfuse.learning.settings import StoppingRule

POLICY_LOSS, DISTANCE = Metric("policy_loss"), Metric("distance")


def td3_bc_loss(
    value: Tensor, scale: Tensor, mean: Tensor, action: Tensor, alpha: float, weight: Tensor | None = None
) -> Tensor:
    """The policy's loss: −α / scale · mean Q(s, μ(s)) + mean (μ(s) − a)².

    Args:
        value: Q(s_t, μ(s_t)), [B], with gradient to μ(s_t).
        scale: scalar, mean |Q(s, μ(s))| over the minibatch; held constant.
        mean, action: μ(s_t) and the logged action, [B, M].
        alpha: α > 0.
        weight: [B], 0 for samples that have no part in it, 1 for the others; None for ones.
    """
    require(alpha > 0, "alpha", alpha, "a number > 0")
    require(tuple(mean.shape) == tuple(action.shape), "mean", tuple(mean.shape), str(tuple(action.shape)))
    distance = (mean - action).square()
    if weight is not None:
        value, distance = weight * value, weight.unsqueeze(1) * distance
    return -alpha / scale.detach().clamp(min=1e-6) * value.mean() + distance.mean()


def steps(context: Context[Td3BcConfig], batch: Batch, number: int) -> Iterator[Step]:
    """A step of the values, and every `delay` steps of the policy too, with the scale of the whole minibatch."""
    if (number + 1) % context.settings.delay:
        yield Step(batch, value_loss, ("action_values",))
    else:
        scale = context.mean_over_parts(batch, lambda part: value_of_mean(context, part)[1].abs().mean())
        yield Step(batch, partial(value_and_policy_loss, scale=scale), ACTOR.networks, move_targets)


def value_loss(context: Context[Td3BcConfig], batch: Batch) -> PhaseLoss:
    """Of the values alone, with the smoothed target."""
    of_values = _of_values(context, batch, smoothed_noise(context, batch["noise"]))
    zero = torch.zeros_like(of_values)
    return PhaseLoss(of_values, {ACTION_VALUE_LOSS: of_values.detach(), POLICY_LOSS: zero, DISTANCE: zero})


def value_and_policy_loss(context: Context[Td3BcConfig], batch: Batch, scale: Tensor) -> PhaseLoss:
    """Of the values, with the smoothed target, and of the policy.

    Args:
        scale: see `td3_bc_loss`.
    """
    of_values = _of_values(context, batch, smoothed_noise(context, batch["noise"]))
    return _with_policy(context, batch, of_values, scale)


def held_out_loss(context: Context[Td3BcConfig], batch: Batch) -> PhaseLoss:
    """The same without noise, with the scale of these samples."""
    return _with_policy(context, batch, _of_values(context, batch, None), None)


def _of_values(context: Context[Td3BcConfig], batch: Batch, noise: Tensor | None) -> Tensor:
    with torch.no_grad():
        target = value_target(context, batch, value_of_next(context, batch, noise))
    return action_value_loss(logged_values(context, batch), target[:, 0])


def _with_policy(context: Context[Td3BcConfig], batch: Batch, of_values: Tensor, scale: Tensor | None) -> PhaseLoss:
    mean, value = value_of_mean(context, batch)
    action = context.module.policy.standardise(batch["state"], batch["action"])[1]
    scale = value.abs().mean() if scale is None else scale
    drawn = batch[EXPLORED].to(mean.dtype)
    of_policy = td3_bc_loss(value, scale, mean, action, context.settings.alpha, drawn)
    distance = (drawn.unsqueeze(1) * (mean.detach() - action).square()).mean()
    return PhaseLoss(of_values + of_policy, {ACTION_VALUE_LOSS: of_values.detach(), POLICY_LOSS: of_policy.detach(),
                                             DISTANCE: distance})


def value_of_mean(context: Context[Td3BcConfig], batch: Batch) -> tuple[Tensor, Tensor]:
    """The policy's standardised mean [n, M], and what the first of the action values says of it [n]."""
    policy = context.module.policy
    mean = policy.standardised(batch["state"])[0][:, 0]
    state = policy.standardise(batch["state"], batch["action"])[0]
    return mean, context.module.action_values(state, mean, slice(0, 1), frozen=True)[:, 0]


def value_of_next(context: Context[Td3BcConfig], batch: Batch, noise: Tensor | None) -> Tensor:
    """min_k Q̄_k(s', ā), [n, 1], at the target policy's action.

    Args:
        noise: [n, M] that is added to it, in standard deviations of logged actions.
    """
    policy = context.module.target("policy")
    mean = policy.standardised(batch["next_state"])[0][:, 0]
    if noise is not None:
        reach = context.settings.network.mean_range
        mean = (mean + noise).clamp(-reach, reach)
    state = policy.standardise(batch["next_state"], batch["action"])[0]
    value: Tensor = context.module.target("action_values")(state, mean).amin(1)
    return value.unsqueeze(1)


def smoothed_noise(context: Context[Td3BcConfig], noise: Tensor) -> Tensor:
    """Standard normal noise, scaled and cut (target policy smoothing)."""
    limit = context.settings.noise_clip
    return (context.settings.noise * noise).clamp(-limit, limit)


def value_and_target(context: Context[Td3BcConfig], batch: Batch) -> tuple[Tensor, Tensor]:
    """The mean of the action values and what they are fitted to without noise, [n, 1] both."""
    following = value_of_next(context, batch, None)
    return logged_values(context, batch).mean(1, keepdim=True), value_target(context, batch, following)


def draw_noise(context: Context[Td3BcConfig], rng: np.random.Generator, rows: int) -> Batch:
    """`noise` → standard normal numbers, [rows, M]."""
    return {"noise": torch.from_numpy(rng.standard_normal((rows, context.module.policy.actions), np.float32))}


ACTOR: Phase = Phase(
    name="actor", seed=8, rule=lambda settings: StoppingRule(iterations=settings.policy.iterations),
    columns=(*COLUMNS, EXPLORED), drawn_only=False, networks=("action_values", "policy"),
    begin=lambda module: module.start_targets(), draw=draw_noise, steps=steps, judge=held_out_loss,
    fitted=Fitted(EXPLAINED_VARIANCE, value_and_target), diagnose=entropy_of_policy)
