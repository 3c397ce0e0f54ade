"""Behaviour cloning as a phase: the policy is fitted to the logged one, from which other policies then start."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recfuse.fusion.losses import weighted_likelihood_loss
from recfuse.fusion.networks import gaussian_entropy
from recfuse.learning.context import Context
from recfuse.learning.gradients import Batch
from recfuse.learning.metrics import ENTROPY, Metrics
from recfuse.learning.phases import Phase, PhaseLoss


def imitation_loss(context: Context[Any], batch: Batch) -> PhaseLoss:
    """−mean log π(a|s)."""
    log_prob = context.module.policy.log_prob(batch["state"], batch["action"]).squeeze(1)
    return PhaseLoss(weighted_likelihood_loss(log_prob, torch.ones_like(log_prob)))


def weighted_imitation_loss(context: Context[Any], batch: Batch) -> PhaseLoss:
    """−mean(w log π(a|s)) with the column `weight`."""
    log_prob = context.module.policy.log_prob(batch["state"], batch["action"]).squeeze(1)
    return PhaseLoss(weighted_likelihood_loss(log_prob, batch["weight"]))


def entropy_of_policy(context: Context[Any], state: Tensor) -> Metrics:
    """Mean entropy of the policy, before squashing."""
    _, log_sigma = context.module.policy(state)
    return {ENTROPY: gaussian_entropy(log_sigma).mean()}


def keep_behaviour(context: Context[Any]) -> None:
    """What imitates the logged policy becomes the estimate of its density, where the log has none."""
    context.module.keep_behaviour()
    context.memory.forget(("behaviour",))


CLONING: Phase = Phase(
    name="cloning", seed=2, rule=lambda settings: settings.cloning, columns=("state", "action"), networks=("policy",),
    loss=imitation_loss, leave=keep_behaviour, diagnose=entropy_of_policy)
