"""Candidates ranked by their own regressed value, under floors: the user-item level of a reward model."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from recfuse.behaviours import Vocabulary
from recfuse.learning.algorithms.replay_vector import ReplayVectorConfig
from recfuse.learning.phases import Phase
from recfuse.learning.registry import register
from recfuse.learning.settings import AlgorithmName, Networks, named


@register
class ItemValueConfig(ReplayVectorConfig):
    """The value of a candidate is what the regressed advantage gives for its predictions in this state, long-term
    effect and short-term ones by multipliers; multipliers hold the floors on other users' replay (maths 5.9; the
    user-item level of "EnhancedRL", arXiv 2409.11678, 2024)."""

    algorithm: AlgorithmName = named("item_value")
    ascent_steps: int = Field(80, description="Dual ascent on the multipliers takes so many steps.", ge=1)

    @property
    def fits(self) -> tuple[Phase, ...]:
        """Critics, effects, then the multipliers."""
        from recfuse.learning.critics import CRITICS
        from recfuse.learning.fits.item_value import VALUES
        from recfuse.learning.replay_policy import REPLAY

        return (CRITICS, REPLAY, VALUES)

    def networks(self, vocabulary: Vocabulary, values: tuple[float, ...]) -> Networks:
        """The critics; what serves are the effects."""
        return replace(super().networks(vocabulary, values), serves="item_value")
