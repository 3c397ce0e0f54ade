"""Reward constrained policy optimization: floors of the short-term behaviours, kept by multipliers from dual ascent."""

from __future__ import annotations

from dataclasses import replace

import torch

from recfuse.learning.algorithms.rcpo import RcpoConfig
from recfuse.learning.context import Context
from recfuse.learning.fits.actor_critic import CHANGE, POLICY, following, relative_change
from recfuse.learning.metrics import Metric, Metrics, Per
from recfuse.learning.settings import StoppingRule

MULTIPLIER = Metric("multiplier", Per.SHORT_TERM)


def ascend(context: Context[RcpoConfig], means: Metrics) -> Metrics:
    """The relative changes and the multipliers of the pass; then each multiplier moves by its behaviour's shortfall."""
    changes, settings = relative_change(context, means), context.settings
    floors = torch.tensor([settings.floors.get(behaviour.name, 0.0) for behaviour in context.vocabulary.short_term],
                          device=context.device)
    multipliers = context.module.multipliers
    used = multipliers.clone()
    multipliers += settings.dual_step * (floors - changes[CHANGE][context.rewards.short])
    multipliers.clamp_(0.0, settings.multiplier_max)
    context.memory.forget(("multipliers",))
    return {**changes, MULTIPLIER: used}


CONSTRAINED_POLICY = replace(
    POLICY, rule=lambda settings: StoppingRule(iterations=settings.policy.iterations), finish=ascend)
FOLLOWED_CONSTRAINED_POLICY = following(CONSTRAINED_POLICY)
