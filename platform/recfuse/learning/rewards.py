"""What critics predict: the reward of every behaviour, or one mixture of them, and the values that follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from recfuse.behaviours import Vocabulary

if TYPE_CHECKING:
    from recfuse.learning.module import FusionPolicyModule


class Rewards:
    """Rewards of the behaviours, in standard deviations, as an algorithm reads them.

    Attributes:
        short, long: positions of the behaviours of each kind.
        discount: [c], of the critics.
        units: [m], the transformed feedback that a reward of 1 stands for.

    Args:
        mixture: weight of each behaviour in a mixed reward or advantage.
        is_mixed: critics predict the mixture, and not every behaviour.
        std: of every behaviour's transformed and scaled feedback; 1 where it is not given.
    """

    def __init__(
        self, mixture: Sequence[float], is_mixed: bool, vocabulary: Vocabulary, module: FusionPolicyModule,
        device: torch.device, std: Sequence[float] = (),
    ) -> None:
        behaviours = vocabulary.behaviours
        self.short = [index for index, behaviour in enumerate(behaviours) if behaviour.kind == "short_term"]
        self.long = [index for index, behaviour in enumerate(behaviours) if behaviour.kind == "long_term"]
        scale = torch.tensor([behaviour.scale for behaviour in behaviours], dtype=torch.float64)
        self.units = scale * torch.tensor(std or [1.0] * len(behaviours), dtype=torch.float64)
        discounts = [behaviour.gamma for behaviour in behaviours]
        if is_mixed:
            discounts = [max(behaviours[index].gamma for index in self.long)]
        self.discount = torch.tensor(discounts, dtype=torch.float32, device=device)
        # The run of critics with a discount; the targets of the others do not read the next state.
        ahead = [index for index, gamma in enumerate(discounts) if gamma > 0]
        self._ahead = slice(ahead[0], ahead[-1] + 1) if ahead else slice(0, 0)
        self._mixture = torch.tensor(mixture, dtype=torch.float32, device=device)
        self._is_mixed, self._module = is_mixed, module

    @property
    def weights(self) -> Tensor:
        """[m], of the behaviours in the mixture, with the multipliers of dual ascent as they stand."""
        weights = self._mixture.clone()
        weights[self.short] += self._module.multipliers
        return weights

    def of(self, feedback: Tensor) -> Tensor:
        """What the critics predict: the reward of every behaviour [n, m], or their mixture [n, 1]."""
        return (feedback @ self.weights).unsqueeze(1) if self._is_mixed else feedback

    def next_values(self, next_state: Tensor, like: Tensor) -> Tensor:
        """V(s') of the critics with a discount, zero for the others."""
        values = torch.zeros_like(like)
        if self._ahead.stop > self._ahead.start:
            values[:, self._ahead] = self._module.target("critics")(next_state, self._ahead)
        return values
