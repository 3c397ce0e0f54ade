"""TD3+BC: the policy climbs the value of its own action, held to the logged one."""

from __future__ import annotations

from pydantic import Field

from recfuse.behaviours import Vocabulary
from recfuse.fusion.config import NetworkConfig
from recfuse.learning.action_value_settings import ESTIMATES, ActionValueConfig
from recfuse.learning.critic_settings import mixed_value
from recfuse.learning.phases import Phase
from recfuse.learning.registry import register
from recfuse.learning.settings import AlgorithmName, Networks, StoppingRule, named


@register
class Td3BcConfig(ActionValueConfig):
    """Q_k are fitted to r + γ min_k Q̄_k(s', μ̄(s') + clipped noise), and the policy by
    −α / mean|Q| · mean Q(s, μ(s)) + mean (μ(s) − a)² (Fujimoto and Gu, "A Minimalist Approach to Offline Reinforcement
    Learning", NeurIPS 2021). Its σ, one for all states, is that of the cloned log. Samples whose action was not drawn
    have no part in the policy's loss; the values learn from all."""

    algorithm: AlgorithmName = named("td3_bc")
    policy: StoppingRule = Field(
        StoppingRule(iterations=15, change_below=0.0, patience=2),
        description="Values and policy take all of these iterations, because the objective moves with the values.")
    alpha: float = Field(
        2.5, description="The value weighs this much (α) against the distance to the logged action, 0.5 to 2.5 as a "
        "rule.", gt=0)
    noise: float = Field(
        0.2, description="The target policy's action gets noise of this standard deviation, in those of the log.", ge=0)
    noise_clip: float = Field(0.5, description="That noise is cut here, in the same units.", ge=0)
    delay: int = Field(
        2, description="The policy and the target networks take a step every so many steps of the values.", ge=1)

    @property
    def fits(self) -> tuple[Phase, ...]:
        """The cloned policy, then values and policy together."""
        from recfuse.learning.fits.td3_bc import ACTOR
        from recfuse.learning.imitation import CLONING

        return (CLONING, ACTOR)

    @property
    def policy_network(self) -> NetworkConfig:
        """TD3's policy has no σ: one that no hidden layer has a part in stays as cloning left it."""
        return self.network.replace(sigma="free")

    def networks(self, vocabulary: Vocabulary, values: tuple[float, ...]) -> Networks:
        """Values of actions; they and the policy have target networks."""
        return Networks(action_values=ESTIMATES, value=mixed_value(self, vocabulary, values),
                        targets=("action_values", "policy"))
