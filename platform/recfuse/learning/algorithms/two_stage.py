"""Two-stage constrained actor-critic: an auxiliary policy per short-term behaviour, then the long-term policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from recfuse.behaviours import Vocabulary
from recfuse.fusion import losses
from recfuse.fusion.advantages import COLUMNS
from recfuse.fusion.networks import gaussian_entropy, gaussian_kl
from recfuse.learning import closed_form, replay_policy
from recfuse.learning.advantages import COLUMNS_SENTENCE, advantages
from recfuse.learning.columns import chunks, fill, to_unit_variance
from recfuse.learning.context import Context
from recfuse.learning.critics import CRITICS
from recfuse.learning.density import estimated_density, logged_density
from recfuse.learning.gradients import Batch
from recfuse.learning.imitation import CLONING, entropy_of_policy, weighted_imitation_loss
from recfuse.learning.metrics import Metric, Metrics, Per
from recfuse.learning.phases import Phase, PhaseLoss, Prepared, Step
from recfuse.learning.registry import register
from recfuse.learning.replay_settings import ReplayAlgorithmConfig
from recfuse.learning.settings import AlgorithmName, Networks, StoppingRule, named, require_short_term
from recfuse.learning.weights import ESS_FLOOR_SENTENCE, WEIGHT_CAP_SENTENCE, weights_of

LOSS = Metric("loss", Per.SHORT_TERM)
CLIPPED_SHARE = Metric("clipped_share", Per.SHORT_TERM)
ESS_SHARE = Metric("ess_share", Per.SHORT_TERM)
GAIN = Metric("gain", Per.SHORT_TERM)
ENTROPY = Metric("entropy", Per.AUXILIARY)
KL = Metric("kl", Per.AUXILIARY)
# The one auxiliary policy that all short-term critics update in turn (maths 1.4).
INTERMEDIATE = "intermediate"


@register
class TwoStageConfig(ReplayAlgorithmConfig):
    """Stage one fits a policy per short-term behaviour j by −mean(ρ A_j log π_j), ρ = min(ρ̄, π_j / π_b); stage two the
    long-term policy by −mean(w exp(A / Λ) log π), w = Π_j (π_j / π_b)^(λ_j / Λ), Λ = Σ λ_j: the optimum of the
    long-term advantage A under one constraint per short-term policy (maths 1; Cai et al., "Two-Stage Constrained
    Actor-Critic for Short Video Recommendation", WWW 2023).

    Where the log keeps its candidates, both stages climb what a vector would have shown (maths 5): stage one each
    behaviour's own effect, stage two the long-term effect under a floor per behaviour; the policy is served where
    replay on other users finds it better than one vector for everybody."""

    needs_density = True
    needs_short_term = True

    algorithm: AlgorithmName = named("two_stage")
    auxiliary: Literal["per_behaviour", "sequential"] = Field(
        "per_behaviour", description="Each short-term behaviour has a policy, or every short-term critic updates one "
        "policy in turn on each minibatch, in the vocabulary's order.")
    extraction: Literal["floors", "closed_form"] = Field(
        "floors", description="On replay, stage two climbs under floors, or imitates vectors weighted by the closed "
        "form of its constraints.")
    regression_columns: int = Field(COLUMNS, description=COLUMNS_SENTENCE, ge=2)
    multipliers: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Short-term behaviours have these λ, over those of the vocabulary; a larger one holds the "
        "policy closer to that behaviour's.")
    stage_one: StoppingRule = Field(StoppingRule(iterations=10, change_below=0.0),
                                    description="This rule stops the auxiliary policies; it looks at −mean(ρ A).")
    stage_two: StoppingRule = Field(StoppingRule(iterations=15, change_below=0.0),
                                    description="This rule stops the long-term policy.")
    auxiliary_learning_rate: float = Field(3e-4, description="Adam changes the auxiliary policies at this rate.", gt=0)
    rho_max: float = Field(2.0, description="Stage one cuts the ratio of densities here (ρ̄).", gt=0)
    ess_floor: float = Field(0.02, description=ESS_FLOOR_SENTENCE, ge=0, le=1)
    weight_cap: float | None = Field(None, description=WEIGHT_CAP_SENTENCE, ge=1)

    @property
    def regression_budget(self) -> int | None:
        """See `LearningSettings`."""
        return self.regression_columns if self.advantage == "regressed" else None

    @property
    def fits(self) -> tuple[Phase, ...]:
        """Critics, the cloned policy, then the two stages."""
        if self.reads_replay:
            first = (CRITICS, CLONING, replay_policy.REPLAY, replay_policy.STAGE_ONE)
            if self.extraction == "closed_form":
                return (*first, closed_form.CHOOSE_TOTAL, closed_form.CLOSED_FORM)
            return (*first, *replay_policy.TRIALS, replay_policy.GATE, replay_policy.STAGE_TWO)
        return (CRITICS, CLONING, SEQUENTIAL_STAGE_ONE if self.auxiliary == "sequential" else STAGE_ONE, STAGE_TWO)

    def networks(self, vocabulary: Vocabulary, values: tuple[float, ...]) -> Networks:
        """The critics, and the auxiliary policies."""
        critics = super().networks(vocabulary, values)
        auxiliaries = tuple(behaviour.name for behaviour in vocabulary.short_term)
        if self.auxiliary == "sequential":
            auxiliaries = (INTERMEDIATE,)
        return replace(critics, auxiliaries=auxiliaries)

    def learning_rates(self) -> dict[str, float]:
        """See `LearningSettings`."""
        return {**super().learning_rates(), "auxiliaries": self.auxiliary_learning_rate}

    def apply_to(self, vocabulary: Vocabulary) -> Vocabulary:
        """The vocabulary with this run's λ; see `LearningSettings`."""
        vocabulary = super().apply_to(vocabulary)
        require_short_term("multipliers", self.multipliers, vocabulary)
        mapping = vocabulary.to_dict()
        for behaviour in mapping["behaviours"]:
            behaviour["multiplier"] = self.multipliers.get(behaviour["name"], behaviour["multiplier"])
        return Vocabulary.from_dict(mapping)


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
