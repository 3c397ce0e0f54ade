"""What the hooks of a phase see of a run: settings, networks, samples, and what has been computed of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from recfuse.behaviours import Vocabulary
from recfuse.learning.gradients import Batch, PairwiseSum, over_workers, split
from recfuse.learning.metrics import Per
from recfuse.learning.rewards import Rewards
from recfuse.learning.windows import DrawnWindows, Rows, Windows

if TYPE_CHECKING:
    from recfuse.learning.module import FusionPolicyModule


class RunSettings(Protocol):
    """What the context itself asks of the settings; hooks know the class of their algorithm."""

    @property
    def parts(self) -> int:
        """Parts of a global minibatch whose gradients are computed apart."""
        ...


S = TypeVar("S", bound=RunSettings, covariant=True)
T = TypeVar("T")


class Memory:
    """Keeps what was computed from networks until one of them is trained again."""

    def __init__(self) -> None:
        self._kept: dict[str, tuple[frozenset[str], Any]] = {}
        self._prefix = ""

    def apart(self, name: str) -> Memory:
        """The same memory with values of its own, for other rows; what is forgotten here or there is so in both."""
        memory = Memory()
        memory._kept, memory._prefix = self._kept, f"{name}/"
        return memory

    def once(self, name: str, networks: tuple[str, ...], compute: Callable[[], T]) -> T:
        """The value of this name, computed where it is not there.

        Args:
            networks: that it is computed from; or whatever else changes, by a name of its own.
        """
        name = self._prefix + name
        if name not in self._kept:
            self._kept[name] = frozenset(networks), compute()
        value: T = self._kept[name][1]
        return value

    def forget(self, networks: tuple[str, ...]) -> None:
        """Drops what was computed from any of these networks."""
        for name in [name for name, entry in self._kept.items() if entry[0] & set(networks)]:
            del self._kept[name]

    def clear(self) -> None:
        """Drops everything."""
        self._kept.clear()


@dataclass(frozen=True)
class Context(Generic[S]):
    """One learner's run over one set of samples.

    Attributes:
        settings: of the run.
        vocabulary: of the samples, with the multipliers of the settings.
        module: all networks.
        rewards: what critics predict.
        windows: the samples that the phase reads.
        device: of the networks.
        rank, workers: of this learner, and how many there are.
        memory: what has been computed from networks.
    """

    settings: S
    vocabulary: Vocabulary
    module: FusionPolicyModule
    rewards: Rewards
    windows: Rows
    device: torch.device
    rank: int = 0
    workers: int = 1
    memory: Memory = field(default_factory=Memory)

    @cached_property
    def of_drawn(self) -> Context[S]:
        """The same over the samples whose action was drawn; itself where all were."""
        windows = self.windows.drawn() if isinstance(self.windows, Windows) else self.windows
        if not isinstance(windows, DrawnWindows):
            return self
        return replace(self, windows=windows, memory=self.memory.apart("drawn"))

    @property
    def parts(self) -> int:
        """Of a minibatch, that this worker computes."""
        return self.settings.parts // self.workers

    @property
    def rows(self) -> int:
        """How many samples there are."""
        return self.windows.rows

    def names(self, per: Per) -> tuple[str, ...]:
        """What the entries of a metric are called; of one number nothing."""
        if per is Per.PASS:
            return ()
        if per is Per.CRITIC:
            return self.module.critics.names
        if per is Per.AUXILIARY:
            return self.module.auxiliaries.names
        if per is Per.ACTION_VALUE:
            return ("action_value",)
        behaviours = self.vocabulary.short_term if per is Per.SHORT_TERM else self.vocabulary.behaviours
        return tuple(behaviour.name for behaviour in behaviours)

    @torch.no_grad()
    def mean_over_parts(self, batch: Batch, value: Callable[[Batch], Tensor]) -> Tensor:
        """Mean of a scalar over the parts of a global minibatch, summed as gradients are."""
        total = PairwiseSum()
        for part in split(batch, self.parts):
            total.add([value(part)])
        return over_workers(total.sum(), self.workers)[0] / (self.parts * self.workers)
