"""Metrics of a pass: what they are called, what their entries belong to, and how they become numbers in the history."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed
from torch import Tensor

from recfuse.learning.gradients import gathered


class Per(enum.Enum):
    """What the entries of a metric belong to."""

    PASS = "pass"
    CRITIC = "critic"
    BEHAVIOUR = "behaviour"
    SHORT_TERM = "short_term"
    AUXILIARY = "auxiliary"
    ACTION_VALUE = "action_value"


@dataclass(frozen=True, eq=False)
class Metric:
    """One metric; a key of what a loss and the hooks of a phase return.

    What a loss returns is reduced to the mean over all parts of all steps of a pass and over the workers. Where a
    minibatch takes several steps, their entries are strung together if they belong to behaviours, and else added.

    Attributes:
        name: in the history; entries of behaviours are called `name/behaviour`.
        per: what the entries belong to; `Per.PASS` is one number.
        is_logged: whether it goes into the history, or only to the phase's `finish`.
    """

    name: str
    per: Per = Per.PASS
    is_logged: bool = True

    def join(self, steps: Sequence[Tensor]) -> Tensor:
        """The entries of the steps of one minibatch as one."""
        return torch.stack(list(steps)).sum() if self.per is Per.PASS else torch.cat(list(steps))


    def numbers(self, value: Tensor, names: Sequence[str]) -> dict[str, float]:
        """What goes into the history.

        Args:
            names: of the entries; none for one number.
        """
        if not self.is_logged:
            return {}
        keys = [self.name] if self.per is Per.PASS else [f"{self.name}/{name}" for name in names]
        return dict(zip(keys, value.reshape(-1).tolist(), strict=True))


Metrics = Mapping[Metric, Tensor]

LOSS, HOLDOUT_LOSS, GRADIENT_NORM = Metric("loss"), Metric("holdout_loss"), Metric("gradient_norm")
ENTROPY = Metric("entropy")
ESS_SHARE = Metric("ess_share")
ADVANTAGE_EXPLAINED = Metric("advantage_explained", Per.CRITIC)


def join_steps(steps: Sequence[Sequence[Metrics]]) -> list[Metrics]:
    """Metrics of each part of a minibatch from those of each of its steps."""
    if len(steps) == 1:
        return list(steps[0])
    return [{metric: metric.join([step[metric] for step in of_part]) for metric in of_part[0]}
            for of_part in zip(*steps, strict=True)]


def steps_of_pass(seen: Sequence[Metrics], parts: int, workers: int) -> dict[Metric, Tensor]:
    """Metrics of the steps and parts of a pass, of all workers, [steps, parts, …] each, the same for any number of
    them.

    Args:
        seen: metrics of every part of every step of this worker, in order.
        parts: of a step, of this worker.
    """
    values = {metric: torch.stack([each[metric] for each in seen]).unflatten(0, (-1, parts)) for metric in seen[0]}
    if workers > 1:
        values = {metric: torch.cat(gathered(value, workers), 1) for metric, value in values.items()}
    return values


def means_over_pass(steps: Metrics) -> dict[Metric, Tensor]:
    """Means over the steps and parts of a pass, of the same bits for any number of workers: multipliers may follow
    them."""
    return {metric: value.flatten(0, 1).mean(0) for metric, value in steps.items()}


class HeldOut:
    """Sums over samples that are not learned from.

    Args:
        explained: what the explained variance of the phase's values is called; None where it fits none.
        columns: how many values are fitted.
    """

    def __init__(self, explained: Metric | None, columns: int, device: torch.device) -> None:
        self._explained = explained
        # The losses and their number; and squared errors, targets, their squares and their number.
        self._loss = torch.zeros(2, dtype=torch.float64, device=device)
        self._values = torch.zeros(4, columns, dtype=torch.float64, device=device)

    def add_values(self, value: Tensor, target: Tensor) -> None:
        """Adds what was fitted and to what, [n, columns] both."""
        sums = [(value - target).square().sum(0), target.sum(0), target.square().sum(0)]
        self._values += torch.stack([*sums, torch.full_like(sums[0], len(value))]).double()

    def add_loss(self, loss: Tensor, rows: int) -> None:
        """Adds the mean loss of so many samples."""
        self._loss += torch.stack([loss * rows, loss.new_tensor(rows)]).double()

    def metrics(self, workers: int) -> dict[Metric, Tensor]:
        """Loss and explained variance over all workers, where there were samples."""
        if workers > 1:
            torch.distributed.all_reduce(self._loss)
            torch.distributed.all_reduce(self._values)
        metrics: dict[Metric, Tensor] = {}
        if self._loss[1] > 0:
            metrics[HOLDOUT_LOSS] = self._loss[0] / self._loss[1]
        if self._explained is not None and self._values[3, 0] > 0:
            error, target, square, count = self._values
            variance = square / count - (target / count).square()
            metrics[self._explained] = 1.0 - error / count / variance.clamp(min=1e-12)
        return metrics
