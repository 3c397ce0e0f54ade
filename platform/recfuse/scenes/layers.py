"""Layers of the scorer's networks: lookups in the embedding table, folded fields, and linear layers side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Lookup(torch.autograd.Function):
    """Rows of the embedding table; the gradient is added row by row into one dense tensor.

    F.embedding's backward sorts the ids, and `index_add_` takes its fast path for 64-bit indices alone: on two cores
    80,000 rows of 16 took 41 ms, 7.9 ms with 32-bit ids, 1.0 ms with 64-bit ones.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
        flat = ids.reshape(-1)
        ctx.save_for_backward(flat)
        ctx.rows = len(table)
        # Of the two orders the one that casts fewer rows is taken; the result is the same.
        rows = table.to(dtype).index_select(0, flat) if len(table) < len(flat) else table.index_select(0, flat)
        return rows.to(dtype).view(*ids.shape, table.shape[1])

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (ids,) = ctx.saved_tensors
        width = gradient.shape[-1]
        total = gradient.new_zeros(ctx.rows, width, dtype=_sum_precision(gradient.dtype))
        return total.index_add_(0, ids.long(), gradient.reshape(-1, width).to(total.dtype)), None, None


def _sum_precision(dtype: torch.dtype) -> torch.dtype:
    """What gradients of this precision are summed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class FoldedFields(nn.Module):
    """A linear layer on the embeddings of fields with few categories: once per category and batch, not once per row.

    A row's sum over fields of W_f e_f equals one row of zeros and ones times the stacked products E_f W_f. For a field
    of v categories and embeddings of width w a pass forward and back then costs 2 v instead of 3 w products a row and
    output, so fields with 2 v < 3 w are folded. Same function, other order of rounding.

    Args:
        rows: (first row of the embedding table, rows) of every field.
        width: of embeddings.
        unfolded: fields that stay, whatever their size.
    """

    def __init__(self, rows: Sequence[tuple[int, int]], width: int, unfolded: Sequence[int] = ()) -> None:
        super().__init__()
        self.fields = [i for i, (_, size) in enumerate(rows) if 2 * size < 3 * width and i not in unfolded]
        self.others = [i for i in range(len(rows)) if i not in self.fields]
        self.sizes = [rows[i][1] for i in self.fields]
        sizes = torch.tensor(self.sizes, dtype=torch.int64)
        firsts = torch.tensor([rows[i][0] for i in self.fields], dtype=torch.int64)
        self.shift = nn.Buffer(firsts - sizes.cumsum(0) + sizes, persistent=False)
        self.table_rows = nn.Buffer(
            torch.arange(sum(self.sizes)) + torch.repeat_interleave(self.shift, sizes), persistent=False)

    def forward(self, ids: Tensor, embedded: Tensor, weights: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """What to multiply: zeros and ones [B, S], and the products of the S categories [S, out].

        Args:
            ids: [B, folded fields]; embedded: [S, width], of `table_rows`; weights: [out, width] of each folded field.
        """
        chosen = embedded.new_zeros(len(ids), len(self.table_rows)).scatter_(1, ids.long() - self.shift, 1.0)
        with torch.autocast(ids.device.type, enabled=False):  # The products are too small to gain by bfloat16.
            products = torch.cat([part @ weight.T for part, weight in zip(
                embedded.to(weights[0].dtype).split(self.sizes), weights, strict=True)])
        return chosen, products.to(embedded.dtype)


class StackedLinear(nn.Module):
    """`count` linear layers side by side: [count, B, in] → [count, B, out] in one batched matmul."""

    def __init__(self, count: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(count, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(count, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor, chosen: slice | Tensor = slice(None)) -> Tensor:
        return torch.baddbmm(self.bias[chosen], x, self.weight[chosen])


def stack(count: int, widths: Sequence[int]) -> nn.ModuleList:
    """`count` networks side by side, of linear layers with the given widths."""
    return nn.ModuleList(StackedLinear(count, a, b) for a, b in pairwise(widths))


def run_stack(layers: nn.ModuleList, hidden: Tensor, chosen: slice | Tensor = slice(None)) -> Tensor:
    """[count, B, in] → [count, B, out] through the chosen networks of a stack, ReLU between layers."""
    for depth, layer in enumerate(layers):
        hidden = layer(F.relu(hidden) if depth else hidden, chosen)
    return hidden
