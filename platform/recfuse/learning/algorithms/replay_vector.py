"""One vector for everybody that is best by the log's replay: what one has without a simulator."""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from recfuse.behaviours import Vocabulary
from recfuse.config import require
from recfuse.learning.phases import Phase
from recfuse.learning.registry import register
from recfuse.learning.replay_settings import ReplayAlgorithmConfig
from recfuse.learning.settings import AlgorithmName, Networks, named


@register
class ReplayVectorConfig(ReplayAlgorithmConfig):
    """The vector of the largest long-term effect under a floor for every short-term behaviour, by the cross-entropy
    method on the pages that vectors would have shown (maths 5.7)."""

    algorithm: AlgorithmName = named("replay_vector")

    def resolved(self, has_density: bool, has_candidates: bool = False) -> Self:
        """See `LearningSettings`.

        Raises:
            InvalidFieldError: the samples lack candidates.
        """
        require(has_candidates, "algorithm", self.algorithm, "another one, because samples lack candidates")
        return super().resolved(has_density, has_candidates)

    @property
    def fits(self) -> tuple[Phase, ...]:
        """Critics, then the search."""
        from recfuse.learning.critics import CRITICS
        from recfuse.learning.replay_policy import REPLAY

        return (CRITICS, REPLAY)

    def networks(self, vocabulary: Vocabulary, values: tuple[float, ...]) -> Networks:
        """The critics, and the vector."""
        return replace(super().networks(vocabulary, values), serves="vector")
