"""What algorithms are told that learn from replay where the log keeps its candidates (maths 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Self

from pydantic import Field

from recfuse.behaviours import Vocabulary
from recfuse.config import Config, require
from recfuse.learning.critic_settings import CriticConfig
from recfuse.learning.fields import ADVANTAGE_CHOICE_SENTENCE, AdvantageChoice
from recfuse.learning.settings import require_short_term
from recfuse.stats.slopes import Slope, shrink

if TYPE_CHECKING:
    from torch import Tensor

    from recfuse.learning.page_effects import Objective


class ReplaySettings(Config):
    """How policies learn from replay (maths 5)."""

    draws: int = Field(16, description="The expectation under the logged policy is the mean over so many draws, an "
                       "even number.", ge=2, multiple_of=2)
    requests: int = Field(5_000, description="Vectors and multipliers are judged on so many requests, spread evenly "
                          "over the log.", ge=100)
    floor: float = Field(0.0, description="A short-term behaviour changes by no less than this, relative to the "
                         "logged policy without its exploration; 0 allows no loss.", ge=-1)
    floors: dict[str, float] = Field({}, description="Short-term behaviours have these floors in place of `floor`.")
    least_gain: float = Field(
        0.002, description="The policy is served where replay on other users finds it better than the vector by this "
        "share of what a request brings; else the vector is.", ge=0)
    confidence: float = Field(
        0.95, description="The policy is served where it is better than the vector with this one-sided confidence.",
        gt=0.5, lt=1)
    slopes: dict[str, tuple[float, Annotated[float, Field(gt=0)]]] = Field(
        {}, description="Behaviours have these slopes of realised on predicted, with their errors, on exposures that "
        "the scorer never saw; the log adds what it says.")
    temperature: float = Field(0.15, description="Places of the relaxed page are softmaxes at this temperature, in "
                               "standard deviations of a request's scores.", gt=0)
    kl_weight: float = Field(0.001, description="A nat of divergence from the logged policy costs so much of what a "
                             "request brings.", ge=0)
    noise: float = Field(0.25, description="Stage two climbs along actions with this share of their exploration, since "
                         "policies and vectors are compared by their means.", ge=0, le=1)
    length_weight: float = Field(1.0, description="A vector whose length is not that of the logged one costs this "
                                 "times the square of the relative difference, so that exploration turns both alike.",
                                 ge=0)
    passes: int = Field(4, description="Stage one and stage two take so many passes each.", ge=1)
    steps: int = Field(40, description="A pass takes about so many steps, spread evenly over the samples.", ge=1)
    dual_step: float = Field(0.5, description="What a multiplier has summed up rises by this times what its behaviour "
                             "lacks to its floor, every few steps.", gt=0)
    dual_gain: float = Field(5.0, description="A multiplier is this times what its behaviour lacks, beside what it has "
                             "summed up.", ge=0)
    multiplier_max: float = Field(10.0, description="Multipliers stay at or below this.", gt=0)


class ReplayAlgorithmConfig(CriticConfig):
    """What algorithms share that learn from replay where the log keeps its candidates."""

    advantage: AdvantageChoice = Field("auto", description=ADVANTAGE_CHOICE_SENTENCE)
    replay: ReplaySettings = Field(ReplaySettings(), description="How policies learn from replay.")

    @property
    def reads_replay(self) -> bool:
        """See `LearningSettings`."""
        return self.advantage == "replay"

    def resolved(self, has_density: bool, has_candidates: bool = False) -> Self:
        """See `LearningSettings`; `auto` becomes `replay` where every sample has candidates, else `regressed`.

        Raises:
            InvalidFieldError: `advantage` is `replay` and the samples lack candidates, or actions are squashed.
        """
        settings = super().resolved(has_density, has_candidates)
        is_plain = self.network.action_range is None and self.targets == "one_step"
        if self.advantage == "replay":
            require(has_candidates, "advantage", self.advantage,
                    "auto, regressed or sampled, because samples lack candidates")
            require(self.network.action_range is None, "advantage", self.advantage,
                    "regressed or sampled with network.action_range, because replay knows no squashed actions")
        if self.advantage == "auto":
            return settings.replace(advantage="replay" if has_candidates and is_plain else "regressed")
        return settings

    def apply_to(self, vocabulary: Vocabulary) -> Vocabulary:
        """See `LearningSettings`."""
        vocabulary = super().apply_to(vocabulary)
        require_short_term("replay.floors", self.replay.floors, vocabulary)
        return vocabulary

    def replay_objective(self, vocabulary: Vocabulary) -> Objective:
        """What policies climb: the long-term behaviours, under a floor for every short-term one."""
        import torch

        from recfuse.learning.page_effects import Objective

        weights = torch.zeros(1 + len(vocabulary.short_term), dtype=torch.float64)
        weights[0] = 1.0
        return Objective(weights, floors_of(self.replay, vocabulary))


def slope_priors(settings: ReplaySettings, vocabulary: Vocabulary) -> list[tuple[float, float]]:
    """Per short-term behaviour mean and deviation of its slope before the log is heard: N(½, ½²), and what exposures
    say where they were asked."""
    known = [settings.slopes.get(behaviour.name, (float("nan"), float("nan"))) for behaviour in vocabulary.short_term]
    posteriors = [shrink(Slope(slope, error, 0)) for slope, error in known]
    return [(posterior.slope, posterior.error) for posterior in posteriors]


def floors_of(settings: ReplaySettings, vocabulary: Vocabulary) -> Tensor:
    """float64[1 + |S|]: none for the long-term objective."""
    import torch

    names = [behaviour.name for behaviour in vocabulary.short_term]
    return torch.tensor([float("-inf"), *(settings.floors.get(name, settings.floor) for name in names)],
                        dtype=torch.float64)
