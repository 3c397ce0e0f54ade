"""The cross-entropy method on a log: one vector of fusion weights for all requests, as tuning by hand arrives at."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from pydantic import Field, model_validator

from recfuse.behaviours import Vocabulary
from recfuse.config import require
from recfuse.learning.critic_settings import CriticConfig
from recfuse.learning.fields import ESS_FLOOR_SENTENCE
from recfuse.learning.phases import Phase
from recfuse.learning.registry import register
from recfuse.learning.settings import AlgorithmName, Networks, StoppingRule, named


@register
class CemConfig(CriticConfig):
    """Vectors w are drawn from N(m, diag s²), and m and s fitted to the best of them; on a log a vector is judged by
    the self-normalised, clipped importance-weighted mean of the long-term advantage A less its standard errors,
    Σ ρ A / Σ ρ, ρ = min(ρ̄, π_w / π_b) (maths 4.1; Rubinstein, "The Cross-Entropy Method for Combinatorial and
    Continuous Optimization", 1999)."""

    needs_density = True

    algorithm: AlgorithmName = named("cem")
    search: StoppingRule = Field(StoppingRule(iterations=30),
                                 description="This rule stops the search, whose iterations are populations.")
    population: int = Field(64, description="An iteration draws so many vectors.", ge=2)
    elite_share: float = Field(
        0.25, description="The next distribution is fitted to this share of the vectors.", gt=0, lt=1)
    spread: float = Field(
        0.5, description="The first standard deviation is this, in those of the logged actions.", gt=0)
    std_floor: float = Field(
        0.05, description="The standard deviation keeps this share of the first one.", ge=0, lt=1)
    smoothing: float = Field(0.5, description="The new standard deviation keeps this share of the old one.", ge=0, lt=1)
    pessimism: float = Field(
        1.0, description="A vector's score is its estimate less so many of its standard errors.", ge=0)
    cap: float = Field(
        100.0, description="Importance weights are cut here (ρ̄); a low cap lets the search go too far, because it "
        "pulls distant vectors' estimates to the log's.", gt=0)
    ess_floor: float = Field(0.02, description=ESS_FLOOR_SENTENCE, ge=0, le=1)

    @model_validator(mode="after")
    def _not_squashed(self) -> Self:
        require(self.network.action_range is None, "network.action_range", self.network.action_range,
                "nothing, for the algorithm cem, whose vector is not squashed")
        return self

    @property
    def fits(self) -> tuple[Phase, ...]:
        """Critics, then the search."""
        from recfuse.learning.critics import CRITICS
        from recfuse.learning.fits.cem import SEARCH

        return (CRITICS, SEARCH)

    def networks(self, vocabulary: Vocabulary, values: tuple[float, ...]) -> Networks:
        """The critics, and the vector."""
        return replace(super().networks(vocabulary, values), serves="vector")
