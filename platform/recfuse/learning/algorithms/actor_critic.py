"""Off-policy actor-critic on one advantage: of the long-term behaviours, or of the interactions alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from recfuse.behaviours import Vocabulary
from recfuse.config import require
from recfuse.fusion.config import REGRESSION_COLUMNS
from recfuse.learning.critic_settings import CriticConfig
from recfuse.learning.fields import ADVANTAGE_SENTENCE, COLUMNS_SENTENCE, AdvantageKind
from recfuse.learning.phases import Phase
from recfuse.learning.registry import register
from recfuse.learning.replay_settings import ReplayAlgorithmConfig
from recfuse.learning.settings import AlgorithmName, StoppingRule, named

if TYPE_CHECKING:
    from recfuse.learning.page_effects import Objective

Weights = dict[str, Annotated[float, Field(ge=0)]]


@register
class ActorCriticConfig(CriticConfig):
    """The policy climbs the long-term behaviours' advantage alone by the off-policy gradient with clipped ratios,
    −mean(ρ A log π), ρ = min(ρ̄, π / π_b) held constant (Degris et al., "Off-Policy Actor-Critic", ICML 2012)."""

    needs_density = True
    online = ("critics", "policy")

    algorithm: AlgorithmName = named("actor_critic")
    advantage: AdvantageKind = Field("regressed", description=ADVANTAGE_SENTENCE)
    regression_columns: int = Field(REGRESSION_COLUMNS, description=COLUMNS_SENTENCE, ge=2)
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
        from recfuse.learning.fits.actor_critic import FOLLOWED_POLICY, POLICY

        return FOLLOWED_POLICY if self.critics_follow else POLICY

    @property
    def regression_budget(self) -> int | None:
        """See `LearningSettings`."""
        return self.regression_columns if self.advantage == "regressed" else None

    @property
    def fits(self) -> tuple[Phase, ...]:
        """Critics, the cloned policy, then the policy that climbs."""
        from recfuse.learning.critics import CRITICS
        from recfuse.learning.imitation import CLONING

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
        from recfuse.learning.critics import CRITICS
        from recfuse.learning.replay_policy import REPLAY, STAGE_TWO

        if self.reads_replay:
            return (CRITICS, REPLAY, STAGE_TWO)
        return super().fits

    def replay_objective(self, vocabulary: Vocabulary) -> Objective:
        """The relative effects of the short-term behaviours, of which the weights have the sum 1; no floors."""

        import torch

        from recfuse.learning.page_effects import Objective

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
