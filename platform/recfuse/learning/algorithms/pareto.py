"""Linear scalarisation: one weighted sum of all behaviours' advantages."""

from __future__ import annotations

from pydantic import Field

from recfuse.behaviours import Vocabulary
from recfuse.learning.algorithms.actor_critic import ActorCriticConfig, Weights, require_weights
from recfuse.learning.registry import register
from recfuse.learning.settings import AlgorithmName, named


@register
class ParetoConfig(ActorCriticConfig):
    """`actor_critic` on Σ_j w_j A_j over all behaviours (Lin et al., "A Pareto-Efficient Algorithm for Multiple
    Objective Optimization in E-Commerce Recommendation", RecSys 2019, with the weights fixed)."""

    algorithm: AlgorithmName = named("pareto")
    weights: Weights = Field(
        {}, description="All behaviours' advantages of unit variance have these weights; 1 by default.")

    def scalarisation(self, vocabulary: Vocabulary) -> tuple[float, ...]:
        """The given weights, of all behaviours."""
        return tuple(self.weights.get(behaviour.name, 1.0) for behaviour in vocabulary.behaviours)

    def apply_to(self, vocabulary: Vocabulary) -> Vocabulary:
        """See `LearningSettings`."""
        vocabulary = super().apply_to(vocabulary)
        require_weights(self, self.weights, vocabulary)
        return vocabulary
