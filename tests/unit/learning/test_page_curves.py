"""Monotone curves regressed on pages: a known curve is found, and without evidence the logged formula stays."""

from __future__ import annotations

import torch

from recfuse.fusion.monotone import basis_of
from recfuse.learning.page_curves import fit_rises


def grams_of(rises: torch.Tensor, noise: float, rows: int = 4_000, alike: float = 1.0) -> torch.Tensor:
    """Products by five groups of: three basis functions, another prediction that goes with them, a constant, a target
    of these rises and of the other."""
    generator = torch.Generator().manual_seed(3)
    p = torch.rand(rows, 1, generator=generator, dtype=torch.float64)
    basis = basis_of(p, torch.linspace(0, 1, 4, dtype=torch.float64).unsqueeze(0))[:, 0]
    other = alike * p + 0.2 * torch.rand(rows, 1, generator=generator, dtype=torch.float64)
    target = basis @ rises.unsqueeze(1) + 0.7 * other + 2.0
    target = target + noise * torch.randn(rows, 1, generator=generator, dtype=torch.float64)
    design = torch.cat([basis, other, torch.ones_like(p), target], 1)
    return torch.stack([part.T @ part for part in design.split(rows // 5)])


def test_a_curve_is_found_whatever_the_shape_and_the_others():
    rises = torch.tensor([0.0, 3.0, 0.5], dtype=torch.float64)
    found = fit_rises(grams_of(rises, 0.01), torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64))
    torch.testing.assert_close(found, rises, atol=0.25, rtol=0)


def test_without_evidence_the_shape_stays():
    shape = torch.tensor([0.7, 0.2, 0.1], dtype=torch.float64)
    straight = fit_rises(grams_of(2.0 * shape, 5.0), shape)
    torch.testing.assert_close(straight / straight.sum(), shape, atol=0.15, rtol=0)
    falling = fit_rises(grams_of(-torch.ones(3, dtype=torch.float64), 0.01, alike=0.0), shape)
    assert torch.equal(falling, shape)
