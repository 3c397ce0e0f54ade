"""Two-stage constrained actor-critic: an auxiliary policy per short-term behaviour, then the long-term policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from recfuse.fusion import losses
from recfuse.fusion.networks import gaussian_entropy, gaussian_kl
from recfuse.learning.advantages import advantages
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.columns import chunks, fill, to_unit_variance
from recfuse.learning.context import Context
from recfuse.learning.density import estimated_density, logged_density
from recfuse.learning.gradients import Batch
from recfuse.learning.imitation import entropy_of_policy, weighted_imitation_loss
from recfuse.learning.metrics import Metric, Metrics, Per
from recfuse.learning.phases import Phase, PhaseLoss, Prepared, Step
from recfuse.learning.weights import weights_of

LOSS = Metric("loss", Per.SHORT_TERM)
CLIPPED_SHARE = Metric("clipped_share", Per.SHORT_TERM)
ESS_SHARE = Metric("ess_share", Per.SHORT_TERM)
GAIN = Metric("gain", Per.SHORT_TERM)
ENTROPY = Metric("entropy", Per.AUXILIARY)
KL = Metric("kl", Per.AUXILIARY)


def short_term_advantages(context: Context[TwoStageConfig]) -> Prepared:
    """`advantage` → of every critic, [n, c]; the losses read the short-term ones."""
    each = advantages(context, context.settings.advantage, context.settings.regression_columns)
    density = estimated_density(context)
    return Prepared({"advantage": each.learned, **density}, {"advantage": each.sampled, **density}, each.metrics)


def auxiliary_loss(context: Context[TwoStageConfig], batch: Batch, behaviours: list[int] | None = None) -> PhaseLoss:
    """Stage one (maths 1.4).

    Args:
        behaviours: positions of those whose policies are learned; None takes all short-term ones.
    """
    advantage = batch["advantage"][:, context.rewards.short if behaviours is None else behaviours]
    log_prob = context.module.auxiliaries.log_prob(batch["state"], batch["action"]).expand_as(advantage)
    result = losses.auxiliary_policy_loss(log_prob, batch["action_logp"], advantage, context.settings.rho_max)
    metrics = {LOSS: result.per_behaviour, CLIPPED_SHARE: result.clipped_share, ESS_SHARE: result.ess_share,
               GAIN: result.gain}
    return PhaseLoss(result.loss, metrics, judged=result.gain.sum().neg())


def steps_in_turn(context: Context[TwoStageConfig], batch: Batch, number: int) -> Iterator[Step]:
    """A step of the one auxiliary policy for each short-term critic."""
    for behaviour in context.rewards.short:
        yield Step(batch, partial(auxiliary_loss, behaviours=[behaviour]), STAGE_ONE.networks)


def sample_weights(context: Context[TwoStageConfig]) -> Prepared:
    """`weight` → of every sample in stage two, [n] (maths 1.5, 1.6)."""
    each = advantages(context, context.settings.advantage, context.settings.regression_columns)
    weights = context.memory.once("stage_two", ("critics", "auxiliaries"),
                                  lambda: weights_of(_exponents(context, each.learned), context.settings))
    return Prepared({"weight": weights.weight}, metrics={**weights.metrics, **each.metrics})


def _exponents(context: Context[TwoStageConfig], advantage: Tensor) -> Tensor:
    """e of every sample, [n] (maths 1.5)."""
    vocabulary, auxiliaries, device = context.vocabulary, context.module.auxiliaries, context.device
    alpha = torch.tensor([behaviour.weight for behaviour in vocabulary.long_term], device=device)
    lambdas = torch.tensor([behaviour.multiplier for behaviour in vocabulary.short_term], device=device)
    if context.settings.auxiliary == "sequential":
        lambdas = lambdas.sum(0, keepdim=True)
    long_term = advantage[:, context.rewards.long] @ (alpha / alpha.sum()).cpu()
    long_term = to_unit_variance(long_term.unsqueeze(1))[:, 0]

    def parts() -> Iterator[tuple[int, Tensor]]:
        for first, chunk in chunks(context.windows):
            share = long_term[first : first + len(chunk["done"])].to(device)
            log_probs = auxiliaries.log_prob(chunk["state"], chunk["action"])
            exponent = losses.target_exponent(logged_density(context, chunk, first), log_probs, share, lambdas)
            yield first, exponent.unsqueeze(1)

    return fill(context.rows, 1, parts())[:, 0]


def diagnose_auxiliaries(context: Context[TwoStageConfig], state: Tensor) -> Metrics:
    """Entropy of each auxiliary policy before squashing, and its KL to the cloned policy that it started from."""
    mu, log_sigma = context.module.policy(state)
    means, spread = context.module.auxiliaries(state)
    return {ENTROPY: gaussian_entropy(spread).mean(0), KL: gaussian_kl(means, spread, mu, log_sigma).mean(0)}


def diagnose_policy(context: Context[TwoStageConfig], state: Tensor) -> Metrics:
    """Entropy of the long-term policy before squashing, and its KL to each auxiliary policy."""
    divergence = gaussian_kl(*context.module.policy(state), *context.module.auxiliaries(state)).mean(0)
    return {**entropy_of_policy(context, state), KL: divergence}


STAGE_ONE: Phase = Phase(
    name="stage_one", seed=3, rule=lambda settings: settings.stage_one, columns=("state", "action", "action_logp"),
    networks=("auxiliaries",), loss=auxiliary_loss, begin=lambda module: module.start_auxiliaries_at_policy(),
    prepare=short_term_advantages, diagnose=diagnose_auxiliaries)
SEQUENTIAL_STAGE_ONE = replace(STAGE_ONE, steps=steps_in_turn)
STAGE_TWO: Phase = Phase(
    name="stage_two", seed=4, rule=lambda settings: settings.stage_two, columns=("state", "action"),
    networks=("policy",), loss=weighted_imitation_loss, prepare=sample_weights, diagnose=diagnose_policy)
