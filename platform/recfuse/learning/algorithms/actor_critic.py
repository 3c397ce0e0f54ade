"""Off-policy actor-critic on one advantage: of the long-term behaviours, or of the interactions alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from recfuse.behaviours import Vocabulary
from recfuse.config import require
from recfuse.fusion import losses
from recfuse.fusion.advantages import COLUMNS
from recfuse.learning import replay_policy
from recfuse.learning.advantages import ADVANTAGE_SENTENCE, COLUMNS_SENTENCE, AdvantageKind, mixed_advantages
from recfuse.learning.context import Context
from recfuse.learning.critics import CRITIC_LOSS, CRITICS, CriticConfig, critic_loss, move_targets, trace_targets
from recfuse.learning.density import estimated_density
from recfuse.learning.gradients import Batch
from recfuse.learning.imitation import CLONING, entropy_of_policy
from recfuse.learning.metrics import ESS_SHARE, Metric, Metrics, Per
from recfuse.learning.page_effects import Objective
from recfuse.learning.phases import Phase, PhaseLoss, Prepared
from recfuse.learning.registry import register
from recfuse.learning.replay_settings import ReplayAlgorithmConfig
from recfuse.learning.settings import AlgorithmName, StoppingRule, named

CLIPPED_SHARE, GAIN = Metric("clipped_share"), Metric("gain")
SUMMED_CRITIC_LOSS = Metric("critic_loss")
CHANGE = Metric("change", Per.BEHAVIOUR)
# Sums for CHANGE, which is a quotient of means.
RATIO = Metric("ratio", is_logged=False)
WEIGHTED_REWARD = Metric("weighted_reward", Per.BEHAVIOUR, is_logged=False)
LOGGED_REWARD = Metric("logged_reward", Per.BEHAVIOUR, is_logged=False)
Weights = dict[str, Annotated[float, Field(ge=0)]]


@register
class ActorCriticConfig(CriticConfig):
    """The policy climbs the long-term behaviours' advantage alone by the off-policy gradient with clipped ratios,
    −mean(ρ A log π), ρ = min(ρ̄, π / π_b) held constant (Degris et al., "Off-Policy Actor-Critic", ICML 2012)."""

    needs_density = True
    online = ("critics", "policy")

    algorithm: AlgorithmName = named("actor_critic")
    advantage: AdvantageKind = Field("regressed", description=ADVANTAGE_SENTENCE)
    regression_columns: int = Field(COLUMNS, description=COLUMNS_SENTENCE, ge=2)
    policy: StoppingRule = Field(StoppingRule(iterations=15, change_below=0.0, patience=2),
                                 description="This rule stops the policy.")
    rho_max: float = Field(2.0, description="The gradient cuts the ratio of densities here (ρ̄).", gt=0)

    @property
    def critics_follow(self) -> bool:
        """Whether the critics go on learning while the policy climbs: V-trace values the policy as it stands."""
        return self.targets == "v_trace"

    @property
    def climb(self) -> Phase:
        """The phase of the policy."""
        return FOLLOWED_POLICY if self.critics_follow else POLICY

    @property
    def regression_budget(self) -> int | None:
        """See `LearningSettings`."""
        return self.regression_columns if self.advantage == "regressed" else None

    @property
    def fits(self) -> tuple[Phase, ...]:
        """Critics, the cloned policy, then the policy that climbs."""
        return (CRITICS, CLONING, self.climb)


@register
class InteractionOnlyConfig(ReplayAlgorithmConfig, ActorCriticConfig):
    """`actor_critic` on Σ_j w_j A_j, the weighted sum of the short-term behaviours' advantages alone. Where the log
    keeps its candidates, it climbs their relative effects along what a vector would have shown (maths 5)."""

    needs_short_term = True

    algorithm: AlgorithmName = named("interaction_only")
    weights: Weights = Field(
        {}, description="Short-term behaviours' advantages of unit variance have these weights; 1 by default.")

    @property
    def fits(self) -> tuple[Phase, ...]:
        """See `ActorCriticConfig`; on replay the vector that is best, then the policy that climbs from it."""
        if self.reads_replay:
            return (CRITICS, replay_policy.REPLAY, replay_policy.STAGE_TWO)
        return super().fits

    def replay_objective(self, vocabulary: Vocabulary) -> Objective:
        """The relative effects of the short-term behaviours, of which the weights have the sum 1; no floors."""
        weights = torch.tensor([0.0, *(self.weights.get(behaviour.name, 1.0) for behaviour in vocabulary.short_term)],
                               dtype=torch.float64)
        return Objective(weights / weights.sum(), torch.full_like(weights, float("-inf")))

    def scalarisation(self, vocabulary: Vocabulary) -> tuple[float, ...]:
        """The given weights of the short-term behaviours."""
        return tuple(self.weights.get(behaviour.name, 1.0) if behaviour.kind == "short_term" else 0.0
                     for behaviour in vocabulary.behaviours)

    def apply_to(self, vocabulary: Vocabulary) -> Vocabulary:
        """See `LearningSettings`."""
        vocabulary = super().apply_to(vocabulary)
        require_weights(self, self.weights, vocabulary)
        return vocabulary


def require_weights(settings: CriticConfig, weights: Weights, vocabulary: Vocabulary) -> None:
    """Refuses weights of behaviours that are not there, and those that leave nothing to climb."""
    names = vocabulary.behaviour_names
    for name, value in weights.items():
        require(name in names, f"weights.{name}", value, f"behaviours ({', '.join(names)})")
    require(sum(settings.scalarisation(vocabulary)) > 0, "weights", weights, "at least one number > 0")


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
