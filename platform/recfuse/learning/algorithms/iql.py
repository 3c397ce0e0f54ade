"""Implicit Q-learning: values of the logged actions alone, then a policy weighted by their advantage."""

from __future__ import annotations

from pydantic import Field

from recfuse.behaviours import Vocabulary
from recfuse.learning.action_value_settings import ESTIMATES, ActionValueConfig
from recfuse.learning.critic_settings import mixed_value
from recfuse.learning.fields import ESS_FLOOR_SENTENCE, WEIGHT_CAP_SENTENCE
from recfuse.learning.phases import Phase
from recfuse.learning.registry import register
from recfuse.learning.settings import AlgorithmName, Networks, StoppingRule, named


@register
class IqlConfig(ActionValueConfig):
    """Q is fitted to r + γ V(s'), V to the τ-expectile of min_k Q̄_k over the logged actions, and the policy by
    −mean(exp(β A) log π), A = min_k Q̄_k(s, a) − V(s) in its standard deviations (Kostrikov et al., "Offline
    Reinforcement Learning with Implicit Q-Learning", ICLR 2022)."""

    algorithm: AlgorithmName = named("iql")
    critics: StoppingRule = Field(StoppingRule(iterations=20, change_below=1e-3, patience=3),
                                  description="This rule stops the values of states and actions.")
    expectile: float = Field(
        0.7, description="The state's value is this expectile τ of the action values; ½ is their mean, 1 the maximum.",
        gt=0, lt=1)
    temperature: float = Field(
        3.0, description="The policy weighs a sample by exp(β A), and this is β, an inverse temperature.", gt=0)
    ess_floor: float = Field(0.02, description=ESS_FLOOR_SENTENCE, ge=0, le=1)
    weight_cap: float | None = Field(None, description=WEIGHT_CAP_SENTENCE, ge=1)

    @property
    def fits(self) -> tuple[Phase, ...]:
        """Values, the cloned policy, then the policy that is extracted from the values."""
        from recfuse.learning.fits.iql import ACTION_VALUES, EXTRACTION
        from recfuse.learning.imitation import CLONING

        return (ACTION_VALUES, CLONING, EXTRACTION)

    def networks(self, vocabulary: Vocabulary, values: tuple[float, ...]) -> Networks:
        """Values of actions with a target network, and of states."""
        value = mixed_value(self, vocabulary, values)
        return Networks(critics=("mixed",), values=(value,), action_values=ESTIMATES, value=value,
                        targets=("action_values",))

    def learning_rates(self) -> dict[str, float]:
        """See `LearningSettings`."""
        return {**super().learning_rates(), "critics": self.critic_learning_rate}
