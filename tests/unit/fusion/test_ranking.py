from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recfuse.config import InvalidFieldError
from recfuse.fusion.ranking import fuse, rank


def test_linear_worked_example_of_the_source():
    """0.8 · 60 + 0.5 · 0.50 + 0.9 · 0.30 = 48.52; the source prints 48.25, a slip of its own."""
    scores = fuse(torch.tensor([[60.0, 0.50, 0.30]]), torch.tensor([0.8, 0.5, 0.9]))
    torch.testing.assert_close(scores, torch.tensor([48.52]))


def test_log_sum_and_power_by_hand():
    """(0.5 + 0.5)^2 · (1.5 + 0.5)^3 = 8, and its logarithm."""
    predictions, weights = torch.tensor([[0.5, 1.5]]).double(), torch.tensor([2.0, 3.0]).double()
    for formula, expected in (("power", 8.0), ("log_sum", math.log(8.0))):
        scores = fuse(predictions, weights, formula, offset=0.5)
        torch.testing.assert_close(scores, torch.tensor([expected]).double())


def test_offset_per_parameter():
    scores = fuse(torch.tensor([[0.0, 0.0]]), torch.tensor([1.0, 2.0]), "power", offset=torch.tensor([2.0, 3.0]))
    torch.testing.assert_close(scores, torch.tensor([18.0]))


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**31 - 1), candidates=st.integers(1, 40), parameters=st.integers(1, 8))
def test_log_sum_and_power_order_alike(seed: int, candidates: int, parameters: int):
    generator = torch.Generator().manual_seed(seed)
    predictions = torch.rand(candidates, parameters, generator=generator, dtype=torch.float64)
    weights = torch.randn(parameters, generator=generator, dtype=torch.float64)
    orders = [rank(fuse(predictions, weights, formula, 1e-3)) for formula in ("log_sum", "power")]
    assert torch.equal(*orders)


def test_batches_of_requests():
    predictions, weights = torch.rand(3, 5, 2), torch.rand(3, 2)
    expected = torch.stack([fuse(p, w) for p, w in zip(predictions, weights, strict=True)])
    torch.testing.assert_close(fuse(predictions, weights), expected)
    torch.testing.assert_close(fuse(predictions[0], weights)[1], fuse(predictions[0], weights[1]))


@pytest.mark.parametrize("order", ["descending", "ascending"])
def test_ties_keep_the_candidates_order(order):
    scores = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0])
    expected = [1, 3, 0, 2, 4] if order == "descending" else [0, 2, 4, 1, 3]
    assert rank(scores, order).tolist() == expected


@pytest.mark.parametrize("formula", ["linear", "log_sum", "power"])
@pytest.mark.parametrize("transposed", [False, True])
def test_equal_candidates_tie_wherever_they_stand(formula, transposed):
    """A matrix product rounds a row by its place among the rows; the scores of equal candidates would differ."""
    generator = torch.Generator().manual_seed(0)
    for parameters in (3, 6, 8, 13, 31):
        row, weights = torch.rand(parameters, generator=generator), torch.randn(parameters, generator=generator)
        predictions = row.expand(257, parameters).contiguous()
        if transposed:
            predictions = predictions.T.contiguous().T
        assert rank(fuse(predictions, weights, formula)).tolist() == list(range(257))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"predictions": torch.tensor([[1.0, math.nan]])}, r"predictions\[0, 1\]: got nan; allowed: finite numbers"),
    ({"weights": torch.tensor([math.inf, 1.0])}, r"weights\[0\]: got inf; allowed: finite numbers"),
    ({"weights": torch.ones(3)}, r"weights: got \(3,\); allowed: a tensor \[..., M\] with M = 2"),
    ({"weights": torch.ones(4, 2), "predictions": torch.ones(3, 5, 2)}, r"weights: got \(4, 2\); allowed: leading"),
    ({"predictions": torch.ones(2)}, r"predictions: got \(2,\); allowed: a tensor \[..., N, M\]"),
    ({"formula": "product"}, "formula: got 'product'; allowed: linear, log_sum, power"),
    ({"formula": "log_sum", "offset": 0.0}, "offset: got 0.0; allowed: finite numbers > 0"),
    ({"formula": "power", "offset": torch.ones(3)}, r"offset: got \(3,\); allowed: a number or a tensor \[2\]"),
    ({"formula": "log_sum", "predictions": torch.tensor([[-1.0, 1.0]])}, r"predictions\[0, 0\]: got -1.0; allowed: n"),
])
def test_bad_values_are_named(arguments, message):
    good = {"predictions": torch.ones(1, 2), "weights": torch.ones(2)}
    with pytest.raises(InvalidFieldError, match=message):
        fuse(**good | arguments)


def test_rank_refuses_nan_and_unknown_orders():
    with pytest.raises(InvalidFieldError, match=r"scores\[1\]: got nan; allowed: numbers other than NaN"):
        rank(torch.tensor([1.0, math.nan]))
    with pytest.raises(InvalidFieldError, match="order: got 'up'; allowed: descending, ascending"):
        rank(torch.ones(1), "up")
