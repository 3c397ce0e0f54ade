"""Reward constrained policy optimization: floors of the short-term behaviours, kept by multipliers from dual ascent."""

from __future__ import annotations

from pydantic import Field

from recfuse.behaviours import Vocabulary
from recfuse.learning.algorithms.actor_critic import ActorCriticConfig
from recfuse.learning.phases import Phase
from recfuse.learning.registry import register
from recfuse.learning.settings import AlgorithmName, StoppingRule, named, require_short_term


@register
class RcpoConfig(ActorCriticConfig):
    """`actor_critic` on the Lagrangian A_long + Σ_j λ_j A_j under a floor for each short-term behaviour; after each
    pass λ_j ← min(λ̄, max(0, λ_j + η (floor_j − change_j))) (Tessler et al., "Reward Constrained Policy Optimization",
    ICLR 2019). A critic per behaviour; their advantages are learned once and mixed by the multipliers."""

    needs_short_term = True

    algorithm: AlgorithmName = named("rcpo")
    policy: StoppingRule = Field(
        StoppingRule(iterations=15, change_below=0.0, patience=2),
        description="The policy takes all of these iterations, because its objective moves with the multipliers.")
    floors: dict[str, float] = Field(
        {}, description="The mean reward per request of a short-term behaviour may change relative to the log by no "
        "less than this; 0, the default, allows no loss.")
    dual_step: float = Field(
        1.0, description="A multiplier rises after each pass by this times the shortfall (η).", gt=0)
    multiplier_max: float = Field(10.0, description="Multipliers start at 0 and stay at or below this (λ̄).", gt=0)

    @property
    def climb(self) -> Phase:
        """See `ActorCriticConfig`."""
        from recfuse.learning.fits.rcpo import CONSTRAINED_POLICY, FOLLOWED_CONSTRAINED_POLICY

        return FOLLOWED_CONSTRAINED_POLICY if self.critics_follow else CONSTRAINED_POLICY

    def apply_to(self, vocabulary: Vocabulary) -> Vocabulary:
        """See `LearningSettings`."""
        vocabulary = super().apply_to(vocabulary)
        require_short_term("floors", self.floors, vocabulary)
        return vocabulary


@register
class RcpoMixedConfig(RcpoConfig):
    """`rcpo` with the paper's one critic, of the reward mixed by the multipliers, which goes on learning with them."""

    mixes_rewards = True

    algorithm: AlgorithmName = named("rcpo_mixed")

    @property
    def critics_follow(self) -> bool:
        """Always, because the mixed reward moves with the multipliers."""
        return True
