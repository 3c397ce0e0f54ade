"""Densities of the logged actions: as they were logged, or as the cloned policy estimates them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from recfuse.learning.columns import chunks, fill
from recfuse.learning.context import Context


def estimated_density(context: Context[Any]) -> dict[str, Tensor]:
    """`action_logp` → log π_b(a|s) of every sample [n], where it is estimated; empty where it was logged."""
    behaviour = context.module.behaviour
    if behaviour is None:
        return {}

    def parts() -> Iterator[tuple[int, Tensor]]:
        for position, chunk in chunks(context.windows):
            yield position, behaviour.log_prob(chunk["state"], chunk["action"])

    def compute() -> Tensor:
        with torch.no_grad():
            return fill(context.rows, 1, parts())[:, 0]

    return {"action_logp": context.memory.once("density", ("behaviour",), compute)}


def logged_density(context: Context[Any], rows: dict[str, Tensor], position: int) -> Tensor:
    """log π_b(a|s), [n], of consecutive samples.

    Args:
        rows: their columns; position: of the first of them.
    """
    estimate = estimated_density(context).get("action_logp")
    if estimate is None:
        return rows["action_logp"]
    return estimate[position : position + len(rows["done"])].to(rows["done"].device)
