"""What algorithms are told that have critics of states (maths 1.2)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from recfuse.behaviours import Vocabulary
from recfuse.learning.phases import Phase, names_of
from recfuse.learning.settings import LearningSettings, Networks, StoppingRule


class CriticConfig(LearningSettings):
    """What algorithms with critics of states share (maths 1.2), besides the rest."""

    critics: StoppingRule = Field(
        StoppingRule(iterations=20, change_below=1e-3, patience=3),
        description="This rule stops the critics; a critic that knows nothing has a loss of about 1.")
    critic_learning_rate: float = Field(1e-3, description="Adam changes the critics at this rate.", gt=0)
    targets: Literal["one_step", "v_trace"] = Field(
        "one_step", description="Critics learn from one step, or by V-trace (Espeholt et al., ICML 2018) from the rest "
        "of the session, corrected towards the policy as it stands.")
    trace_max: float = Field(1.0, description="V-trace cuts the ratio of densities here (ρ̄ = c̄).", gt=0)
    target_rate: float | None = Field(
        None, description="Critics bootstrap from target networks that follow at this Polyak rate; nothing has none.",
        gt=0, le=1)

    @property
    def phases(self) -> tuple[Phase, ...]:
        """With V-trace cloning comes before the critics, so that the policy as it stands is the logged one."""
        from recfuse.learning.critics import CRITICS
        from recfuse.learning.imitation import CLONING

        phases = super().phases
        if self.targets == "v_trace" and {CRITICS.name, CLONING.name} <= set(names_of(phases)):
            return (CLONING, *(phase for phase in phases if phase.name != CLONING.name))
        return phases

    def networks(self, vocabulary: Vocabulary, values: tuple[float, ...]) -> Networks:
        """A critic per behaviour, or one of the mixed reward."""
        names, starts = vocabulary.behaviour_names, values
        if self.mixes_rewards:
            names, starts = ("mixed",), (mixed_value(self, vocabulary, values),)
        return Networks(critics=names, values=starts, targets=("critics",) if self.target_rate is not None else (),
                        trace_policy=self.targets == "v_trace")

    def learning_rates(self) -> dict[str, float]:
        """See `LearningSettings`."""
        return {**super().learning_rates(), "critics": self.critic_learning_rate}


def mixed_value(settings: LearningSettings, vocabulary: Vocabulary, values: tuple[float, ...]) -> float:
    """What the value of the mixed reward is on average, given that of every behaviour."""
    weights = settings.scalarisation(vocabulary)
    return sum(weight * value for weight, value in zip(weights, values, strict=True))
