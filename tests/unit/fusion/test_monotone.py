"""Monotone curves: by hand, against scipy's non-negative least squares, and what a fit of them promises."""

from __future__ import annotations

import pytest
import torch
from scipy.optimize import nnls

from recfuse.config import InvalidFieldError
from recfuse.fusion.monotone import MonotoneCurves, fit_curves, knots_of


def test_values_lie_on_the_lines_and_beyond_them() -> None:
    curves = MonotoneCurves(torch.tensor([[0., 1., 3.], [0., 2., 4.]]), torch.tensor([[0., 2., 3.], [1., 1., 5.]]))
    found = curves(torch.tensor([[.5, 1.], [2., 3.], [4., 5.], [-1., -9.], [1., 2.]]))
    torch.testing.assert_close(found, torch.tensor([[1., 1.], [2.5, 3.], [3.5, 7.], [-2., 1.], [2., 1.]]))
    assert curves(torch.zeros(3, 4, 2)).shape == (3, 4, 2)
    torch.testing.assert_close((curves * 2.0 + curves)(torch.tensor([[.5, 3.]])), torch.tensor([[3., 9.]]))


def test_a_fit_finds_the_curves_that_the_target_is_made_of() -> None:
    generator = torch.Generator().manual_seed(0)
    p = torch.rand(4_000, 2, generator=generator, dtype=torch.float64)
    x = torch.linspace(0, 1, 5, dtype=torch.float64).repeat(2, 1)
    truth = MonotoneCurves(x, torch.tensor([[0., 3., 3., 3.5, 7.], [0., 0., 1., 1., 1.]], dtype=torch.float64))
    groups = torch.arange(4_000) // 8
    target = truth(p).sum(1) + 100.0 * groups
    found = fit_curves(p, target, groups, x=x, penalty=1e-9)
    torch.testing.assert_close(found.y, truth.y, atol=1e-3, rtol=0)
    noisy = fit_curves(p, target + torch.randn(4_000, generator=generator, dtype=torch.float64), groups, x=x)
    torch.testing.assert_close(noisy.y, truth.y, atol=.3, rtol=0)


def test_the_fit_is_that_of_non_negative_least_squares() -> None:
    generator = torch.Generator().manual_seed(1)
    p = torch.rand(500, 3, generator=generator, dtype=torch.float64)
    target = p[:, 0] ** 2 - p[:, 1] + .3 * torch.randn(500, generator=generator, dtype=torch.float64)
    x = knots_of(p, 6)
    found = fit_curves(p, target, x=x, penalty=1e-10)
    basis = torch.cat([((p[:, [m]] - x[m, :-1]) / x[m].diff()).clamp(0, 1) for m in range(3)], 1)
    rises, _ = nnls((basis - basis.mean(0)).numpy(), (target - target.mean()).numpy())
    torch.testing.assert_close(found.y.diff(dim=1).reshape(-1), torch.from_numpy(rises), atol=1e-4, rtol=0)
    assert float(found.y[1, -1]) == 0.0  # what only falls has no increasing part


def test_more_of_a_prediction_never_ranks_lower() -> None:
    generator = torch.Generator().manual_seed(2)
    p = torch.rand(300, 2, generator=generator)
    curves = fit_curves(p, torch.randn(300, generator=generator))
    more = p.clone()
    more[:, 0] += torch.rand(300, generator=generator)
    assert bool((curves(more).sum(1) >= curves(p).sum(1) - 1e-12).all())


def test_knots_increase_where_a_prediction_has_few_values() -> None:
    p = torch.tensor([[0., 1.]] * 90 + [[.5, 1.]] * 10)
    x = knots_of(p, 8)
    assert bool((x.diff(dim=1) > 0).all())
    assert x[0, 0] == 0.0
    assert float(x[0, -1]) == pytest.approx(.5, rel=1e-3)
    assert bool(torch.isfinite(fit_curves(p, p[:, 0]).y).all())


@pytest.mark.parametrize(("call", "message"), [
    (lambda: MonotoneCurves(torch.zeros(2, 1), torch.zeros(2, 1)), r"x: got \(2, 1\)"),
    (lambda: MonotoneCurves(torch.tensor([[0., 1.]]), torch.zeros(1, 3)), "y: got"),
    (lambda: MonotoneCurves(torch.tensor([[1., 1.]]), torch.zeros(1, 2)), "x: got 'knots that do not increase'"),
    (lambda: MonotoneCurves(torch.tensor([[0., 1.]]), torch.tensor([[1., 0.]])), "y: got 'values that decrease'"),
    (lambda: MonotoneCurves(torch.tensor([[0., 1.]]), torch.tensor([[0., torch.nan]])), "x and y: got 'NaN"),
    (lambda: MonotoneCurves(torch.tensor([[0., 1.]]), torch.tensor([[0., 1.]]))(torch.zeros(3, 2)),
     r"predictions: got \(3, 2\)"),
    (lambda: MonotoneCurves(torch.tensor([[0., 1.]]), torch.tensor([[0., 1.]])) * -1.0, "factor: got -1.0"),
    (lambda: fit_curves(torch.zeros(3, 2), torch.zeros(4)), r"target: got \(4,\)"),
])
def test_bad_values_are_named(call, message: str) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        call()
