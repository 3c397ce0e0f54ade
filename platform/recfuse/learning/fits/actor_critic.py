"""Off-policy actor-critic on one advantage: of the long-term behaviours, or of the interactions alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from recfuse.fusion import losses
from recfuse.learning.advantages import mixed_advantages
from recfuse.learning.algorithms.actor_critic import ActorCriticConfig
from recfuse.learning.context import Context
from recfuse.learning.critics import CRITIC_LOSS, critic_loss, move_targets, trace_targets
from recfuse.learning.density import estimated_density
from recfuse.learning.gradients import Batch
from recfuse.learning.imitation import entropy_of_policy
from recfuse.learning.metrics import ESS_SHARE, Metric, Metrics, Per
from recfuse.learning.phases import Phase, PhaseLoss, Prepared

CLIPPED_SHARE, GAIN = Metric("clipped_share"), Metric("gain")
SUMMED_CRITIC_LOSS = Metric("critic_loss")
CHANGE = Metric("change", Per.BEHAVIOUR)
# Sums for CHANGE, which is a quotient of means.
RATIO = Metric("ratio", is_logged=False)
WEIGHTED_REWARD = Metric("weighted_reward", Per.BEHAVIOUR, is_logged=False)
LOGGED_REWARD = Metric("logged_reward", Per.BEHAVIOUR, is_logged=False)


def prepare_advantages(context: Context[ActorCriticConfig]) -> Prepared:
    """`advantage` → the mixed one of every sample, [n]."""
    mixed = mixed_advantages(context, context.settings.advantage, context.settings.regression_columns)
    density = estimated_density(context)
    return Prepared({"advantage": mixed.learned, **density}, {"advantage": mixed.sampled, **density}, mixed.metrics)


def prepare_advantages_and_targets(context: Context[ActorCriticConfig]) -> Prepared:
    """The same, and what critics that go on learning are fitted to."""
    context.module.keep_trace_policy()
    prepared, targets = prepare_advantages(context), trace_targets(context)
    assert prepared.judged is not None
    return Prepared({**prepared.learned, **targets}, {**prepared.judged, **targets}, prepared.metrics)


def policy_loss(context: Context[ActorCriticConfig], batch: Batch) -> PhaseLoss:
    """The off-policy gradient with clipped ratios, which is the form of stage one (maths 1.4)."""
    log_prob = context.module.policy.log_prob(batch["state"], batch["action"]).squeeze(1)
    rho_max = context.settings.rho_max
    result = losses.auxiliary_policy_loss(log_prob, batch["action_logp"], batch["advantage"], rho_max)
    ratio = (log_prob.detach() - batch["action_logp"]).exp().clamp(max=rho_max)
    metrics = {CLIPPED_SHARE: result.clipped_share, ESS_SHARE: result.ess_share, GAIN: result.gain, RATIO: ratio.mean(),
               WEIGHTED_REWARD: (ratio.unsqueeze(1) * batch["feedback"]).mean(0),
               LOGGED_REWARD: batch["feedback"].mean(0)}
    return PhaseLoss(result.loss, metrics, judged=result.gain.sum().neg())


def policy_and_critic_loss(context: Context[ActorCriticConfig], batch: Batch) -> PhaseLoss:
    """The policy's loss and the critics', on parameters of their own."""
    of_policy, of_critics = policy_loss(context, batch), critic_loss(context, batch)
    metrics = {**of_policy.metrics, SUMMED_CRITIC_LOSS: of_critics.metrics[CRITIC_LOSS].sum()}
    return PhaseLoss(of_policy.loss + of_critics.loss, metrics, of_policy.judged)


def relative_change(context: Context[Any], means: Metrics) -> Metrics:
    """Relative change of every behaviour's mean reward per request, by weighting the log with the clipped ratios."""
    rewards, logged = means[WEIGHTED_REWARD] / means[RATIO], means[LOGGED_REWARD]
    scale = logged.abs()
    change: Tensor = (rewards - logged) / torch.where(scale > 1e-6, scale, torch.ones_like(scale))
    return {CHANGE: change}


def following(phase: Phase) -> Phase:
    """The phase of a policy whose critics go on learning."""
    return replace(phase, columns=(*phase.columns, "next_state", "done"), networks=("policy", "critics"),
                   loss=policy_and_critic_loss, follow=move_targets, prepare=prepare_advantages_and_targets)


POLICY: Phase = Phase(
    name="policy", seed=5, rule=lambda settings: settings.policy,
    columns=("state", "action", "action_logp", "feedback"), networks=("policy",), loss=policy_loss,
    prepare=prepare_advantages, finish=relative_change, diagnose=entropy_of_policy)
FOLLOWED_POLICY = following(POLICY)
