"""Numbers of every sample, on the CPU and in the order of the samples, computed in chunks."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from recfuse.learning.windows import Rows

# Rows of one pass through networks that no step changes.
CHUNK = 1 << 15


def chunks(windows: Rows) -> Iterator[tuple[int, dict[str, Tensor]]]:
    """Position and columns of every chunk of the samples."""
    for position, window in windows:
        for start in range(0, len(window["done"]), CHUNK):
            yield position + start, {name: column[start : start + CHUNK] for name, column in window.items()}


def fill(rows: int, width: int, parts: Iterator[tuple[int, Tensor]]) -> Tensor:
    """[rows, width] from parts by their position; written in place, so that it is in memory once."""
    result = torch.empty(rows, width)
    for position, part in parts:
        result[position : position + len(part)] = part
    return result


def to_unit_variance(values: Tensor) -> Tensor:
    """Columns [n, k] divided, in place, by their standard deviation; a constant column stays as it is."""
    count, center = len(values), mean(values)
    square = sum((part.double() - center).square().sum(0) for part in values.split(CHUNK))
    std = (square / count).sqrt()
    return values.div_(torch.where(std > 1e-12, std, torch.ones_like(std)).to(values.dtype))


def mean(values: Tensor) -> Tensor:
    """Means of columns, float64[k], in chunks: `mean(dtype=…)` would make a copy of all in double first."""
    return torch.stack([part.double().sum(0) for part in values.split(CHUNK)]).sum(0) / len(values)
