"""One vector over learned monotone curves of the predictions."""

from __future__ import annotations

from dataclasses import replace

from pydantic import Field

from recfuse.behaviours import Vocabulary
from recfuse.learning.algorithms.replay_vector import ReplayVectorConfig
from recfuse.learning.phases import Phase
from recfuse.learning.registry import register
from recfuse.learning.settings import AlgorithmName, Networks, named


@register
class MonotoneConfig(ReplayVectorConfig):
    """Predictions pass through curves that only rise, learned from what pages showed of them; one vector weighs the
    curves, the best by replay under the floors (maths 5.10; after "xMTF", arXiv 2504.05669, 2025)."""

    algorithm: AlgorithmName = named("monotone")
    knots: int = Field(8, description="A curve has so many knots, at quantiles of its prediction.", ge=2, le=64)

    @property
    def fits(self) -> tuple[Phase, ...]:
        """Critics, effects, then curves and vector."""
        from recfuse.learning.critics import CRITICS
        from recfuse.learning.fits.monotone import CURVES
        from recfuse.learning.replay_policy import REPLAY

        return (CRITICS, REPLAY, CURVES)

    def networks(self, vocabulary: Vocabulary, values: tuple[float, ...]) -> Networks:
        """The critics; what serves are curves and vector."""
        return replace(super().networks(vocabulary, values), serves="monotone", knots=self.knots)
