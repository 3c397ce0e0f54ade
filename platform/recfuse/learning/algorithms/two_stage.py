"""Two-stage constrained actor-critic: an auxiliary policy per short-term behaviour, then the long-term policy."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from recfuse.behaviours import Vocabulary
from recfuse.fusion.config import REGRESSION_COLUMNS
from recfuse.learning.fields import COLUMNS_SENTENCE, ESS_FLOOR_SENTENCE, WEIGHT_CAP_SENTENCE
from recfuse.learning.phases import Phase
from recfuse.learning.registry import register
from recfuse.learning.replay_settings import ReplayAlgorithmConfig
from recfuse.learning.settings import AlgorithmName, Networks, StoppingRule, named, require_short_term

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
    regression_columns: int = Field(REGRESSION_COLUMNS, description=COLUMNS_SENTENCE, ge=2)
    multipliers: dict[str, Annotated[float, Field(gt=0)]] = Field(
        {}, description="Short-term behaviours have these multipliers λ, over those of the vocabulary; a larger one "
        "holds the policy closer to that behaviour's.")
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
        from recfuse.learning import closed_form, replay_policy
        from recfuse.learning.critics import CRITICS
        from recfuse.learning.fits.two_stage import SEQUENTIAL_STAGE_ONE, STAGE_ONE, STAGE_TWO
        from recfuse.learning.imitation import CLONING

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
        """The vocabulary with this run's multipliers λ; see `LearningSettings`."""
        vocabulary = super().apply_to(vocabulary)
        require_short_term("multipliers", self.multipliers, vocabulary)
        mapping = vocabulary.to_dict()
        for behaviour in mapping["behaviours"]:
            behaviour["multiplier"] = self.multipliers.get(behaviour["name"], behaviour["multiplier"])
        return Vocabulary.from_dict(mapping)
