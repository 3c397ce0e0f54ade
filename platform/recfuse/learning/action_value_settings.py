"""What algorithms are told that learn the value of actions."""

from __future__ import annotations

from pydantic import Field

from recfuse.learning.settings import LearningSettings, StoppingRule

# The least of two estimates counts (Fujimoto et al., ICML 2018).
ESTIMATES = 2


class ActionValueConfig(LearningSettings):
    """What algorithms with values of actions share; the reward is the long-term one, with its largest discount."""

    mixes_rewards = True

    policy: StoppingRule = Field(StoppingRule(iterations=15, change_below=0.0, patience=2),
                                 description="This rule stops the policy.")
    critic_learning_rate: float = Field(1e-3, description="Adam changes the values at this rate.", gt=0)
    target_rate: float = Field(0.005, description="Target networks follow at this Polyak rate.", gt=0, le=1)

    def learning_rates(self) -> dict[str, float]:
        """See `LearningSettings`."""
        return {**super().learning_rates(), "action_values": self.critic_learning_rate}
