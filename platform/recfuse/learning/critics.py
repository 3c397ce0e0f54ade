"""Critics of states as a phase: one value per behaviour, or of their mixture (maths 1.2)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from recfuse.fusion import losses
from recfuse.fusion.traces import v_trace
from recfuse.learning.columns import CHUNK, chunks, fill, to_unit_variance
from recfuse.learning.context import Context
from recfuse.learning.critic_settings import CriticConfig
from recfuse.learning.density import logged_density
from recfuse.learning.gradients import Batch
from recfuse.learning.metrics import Metric, Per
from recfuse.learning.phases import Fitted, Phase, PhaseLoss, Prepared

CRITIC_LOSS = Metric("loss", Per.CRITIC)


def one_step_loss(context: Context[Any], batch: Batch) -> PhaseLoss:
    """Squared temporal-difference errors, by behaviour."""
    value = context.module.critics(batch["state"])
    reward = context.rewards.of(batch["feedback"])
    with torch.no_grad():
        following = context.rewards.next_values(batch["next_state"], value)
    result = losses.critic_loss(value, following, reward, batch["done"], context.rewards.discount)
    return PhaseLoss(result.loss, {CRITIC_LOSS: result.per_behaviour})


def trace_loss(context: Context[Any], batch: Batch) -> PhaseLoss:
    """Squared errors to the column `target`."""
    value = context.module.critics(batch["state"])
    zeros = torch.zeros_like(value)
    result = losses.critic_loss(value, zeros, batch["target"], batch["done"], torch.zeros(()))
    return PhaseLoss(result.loss, {CRITIC_LOSS: result.per_behaviour})


def critic_loss(context: Context[CriticConfig], batch: Batch) -> PhaseLoss:
    """The loss for the kind of targets that the settings name."""
    return (trace_loss if context.settings.targets == "v_trace" else one_step_loss)(context, batch)


def value_and_target(context: Context[CriticConfig], batch: Batch) -> tuple[Tensor, Tensor]:
    """Values and what they are fitted to, [n, c] both."""
    value = context.module.critics(batch["state"])
    if context.settings.targets == "v_trace":
        return value, batch["target"]
    following = context.rewards.next_values(batch["next_state"], value)
    reward = context.rewards.of(batch["feedback"])
    return value, losses.td_target(following, reward, batch["done"], context.rewards.discount, like=value)


def sampled_advantages(context: Context[CriticConfig]) -> Tensor:
    """A of every sample and critic, [n, c], with unit variance over the samples (maths 1.3 and 1.6)."""
    if context.settings.targets == "v_trace":
        return context.memory.once("trace", ("critics",), lambda: _trace(context))[0]

    def one_step() -> Tensor:
        return to_unit_variance(fill(context.rows, len(context.rewards.discount), _one_step(context)))

    return context.memory.once("advantages", ("critics",), one_step)


def trace_targets(context: Context[CriticConfig]) -> dict[str, Tensor]:
    """`target` → V-trace's [n, c], what the critics are fitted to; empty where that is one step ahead."""
    if context.settings.targets != "v_trace":
        return {}
    return {"target": context.memory.once("trace", ("critics",), lambda: _trace(context))[1]}


def one_step_advantages(context: Context[Any], chunk: Batch) -> Tensor:
    """A of every critic, [n, c], in the units of its rewards (maths 1.3)."""
    rewards = context.rewards
    value = context.module.critics(chunk["state"])
    following = rewards.next_values(chunk["next_state"], value)
    return losses.advantage(value, following, rewards.of(chunk["feedback"]), chunk["done"], rewards.discount)


def _one_step(context: Context[CriticConfig]) -> Iterator[tuple[int, Tensor]]:
    for position, chunk in chunks(context.windows):
        yield position, one_step_advantages(context, chunk)


def _trace(context: Context[CriticConfig]) -> tuple[Tensor, Tensor]:
    """Advantages with unit variance, and targets, [n, c] both."""
    width = len(context.rewards.discount)
    target = torch.empty(context.rows, width)

    def advantages() -> Iterator[tuple[int, Tensor]]:
        for position, window in context.windows:
            result = _trace_of_window(context, window, position)
            target[position : position + len(result.target)] = result.target
            yield position, result.advantage

    return to_unit_variance(fill(context.rows, width, advantages())), target


def _trace_of_window(context: Context[CriticConfig], window: Batch, position: int) -> Any:
    module, rewards = context.module, context.rewards
    policy = module.policy if module.trace_policy is None else module.trace_policy
    starts = range(0, len(window["done"]), CHUNK)
    cuts = [{name: column[start : start + CHUNK] for name, column in window.items()} for start in starts]
    values = [module.critics(cut["state"]) for cut in cuts]
    following = torch.cat([rewards.next_values(cut["next_state"], like)
                           for cut, like in zip(cuts, values, strict=True)])
    value = torch.cat(values)
    log_prob = torch.cat([policy.log_prob(cut["state"], cut["action"])[:, 0] for cut in cuts])
    continues = torch.zeros(len(value), dtype=torch.bool, device=value.device)
    # Whoever shuffled the samples gets one step; a session is followed only where it goes on in the next row.
    continues[:-1] = (window["done"][:-1] == 0) & (window["next_state"][:-1] == window["state"][1:]).all(1)
    # The ratio of an action that was not drawn means nothing; it counts as one of the policy's own.
    ratio = torch.where(window["explored"], log_prob - logged_density(context, window, position), 0.0)
    return v_trace(value, following, rewards.of(window["feedback"]), window["done"], rewards.discount, ratio,
                   continues, context.settings.trace_max)


def prepare_targets(context: Context[CriticConfig]) -> Prepared:
    """V-trace's targets under the critics and the policy as they stand. Phases in which the critics rest go on with
    that policy, which a checkpoint holds, while their own moves."""
    context.module.keep_trace_policy()
    return Prepared(trace_targets(context))


def move_targets(context: Context[Any]) -> None:
    """Moves all target networks at the rate of the settings, where there is one."""
    rate = context.settings.target_rate
    if rate is not None:
        context.module.move_targets(rate)


CRITICS: Phase = Phase(
    name="critics", seed=1, rule=lambda settings: settings.critics,
    columns=("state", "next_state", "feedback", "done"), drawn_only=False, networks=("critics",), loss=critic_loss,
    follow=move_targets, begin=lambda module: module.start_targets(), prepare=prepare_targets,
    fitted=Fitted(Metric("explained_variance", Per.CRITIC), value_and_target))
