"""Behaviour cloning: the policy imitates the logged one."""

from __future__ import annotations

from recfuse.learning.phases import Phase
from recfuse.learning.registry import register
from recfuse.learning.settings import AlgorithmName, LearningSettings, named


@register
class BehaviourCloningConfig(LearningSettings):
    """Maximum likelihood of the logged actions: max_θ mean log π_θ(a|s) (Pomerleau, "Efficient Training of Artificial
    Neural Networks for Autonomous Navigation", Neural Computation 1991)."""

    algorithm: AlgorithmName = named("behaviour_cloning")

    @property
    def fits(self) -> tuple[Phase, ...]:
        """Cloning alone."""
        from recfuse.learning.imitation import CLONING

        return (CLONING,)
