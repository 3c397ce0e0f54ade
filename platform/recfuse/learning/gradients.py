"""Gradients of a global minibatch: parts, their sum in a fixed order over any number of workers, and the step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed
from torch import Tensor

Batch = dict[str, Tensor]


class PairwiseSum:
    """Sums lists of tensors like the branches of a binary tree: of 2^k lists, the sum of the first half and that of the
    second are added last, wherever either was computed."""

    def __init__(self) -> None:
        self._levels: list[list[Tensor] | None] = []

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Adds one list; the tensors are the sum's from now on."""
        branch = list(tensors)
        for level, other in enumerate(self._levels):
            if other is None:
                self._levels[level] = branch
                return
            torch._foreach_add_(other, branch)
            branch, self._levels[level] = other, None
        self._levels.append(branch)

    def sum(self) -> list[Tensor]:
        """The sum of all lists; there is at least one."""
        branches = [branch for branch in self._levels if branch is not None]
        for branch in branches[1:]:
            torch._foreach_add_(branches[0], branch)
        return branches[0]


def split(batch: Batch, parts: int) -> Iterator[Batch]:
    """Equal parts of a batch; what does not fill them is left out."""
    rows = len(batch["state"]) // parts
    for start in range(0, rows * parts, rows):
        yield {name: column[start : start + rows] for name, column in batch.items()}


def over_workers(gradients: list[Tensor], workers: int) -> list[Tensor]:
    """The sum over the workers, in one collective and in the order of their ranks: an all-reduce adds in another."""
    if workers == 1:
        return gradients
    total = PairwiseSum()
    for flat in gathered(torch.cat([gradient.reshape(-1) for gradient in gradients]), workers):
        total.add([flat])
    parts = total.sum()[0].split([gradient.numel() for gradient in gradients])
    return [part.view_as(gradient) for gradient, part in zip(gradients, parts, strict=True)]


def gathered(value: Tensor, workers: int) -> list[Tensor]:
    """The tensor of every worker, by rank."""
    tensors = [torch.empty_like(value) for _ in range(workers)]
    torch.distributed.all_gather(tensors, value.contiguous())
    return tensors


def parameters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """What an optimizer changes."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def take_step(
    losses: Iterator[Tensor], optimizers: Sequence[torch.optim.Optimizer], parts: int, workers: int, max_norm: float
) -> Tensor:
    """One step of every optimizer down the mean loss of all parts of all workers.

    Args:
        losses: of this worker's parts, in order; computed one by one.
        max_norm: the gradients of each optimizer are scaled down to it.

    Returns:
        The norm of the first optimizer's gradients before that, a scalar.
    """
    groups = [parameters_of(optimizer) for optimizer in optimizers]
    parameters = [parameter for group in groups for parameter in group]
    total = PairwiseSum()
    for loss in losses:
        partial = torch.autograd.grad(loss, parameters, allow_unused=True)
        # Contiguous, as `backward` leaves them and the fused optimizer takes for granted.
        total.add([gradient.contiguous() for gradient in partial if gradient is not None])
    gradients = over_workers(total.sum(), workers)
    torch._foreach_div_(gradients, parts * workers)
    used = [parameter for parameter, gradient in zip(parameters, partial, strict=True) if gradient is not None]
    for parameter in parameters:
        parameter.grad = None
    for parameter, gradient in zip(used, gradients, strict=True):
        parameter.grad = gradient
    norms = [torch.nn.utils.clip_grad_norm_(group, max_norm, foreach=True) for group in groups]
    for optimizer in optimizers:
        optimizer.step()
    return norms[0]
