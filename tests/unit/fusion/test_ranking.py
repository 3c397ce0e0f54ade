from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recfuse.behaviours import Behaviour, CandidateFeatures, Curve, Vocabulary
from recfuse.config import InvalidFieldError
from recfuse.fusion import replay
from recfuse.fusion.ranking import fuse, rank
from recfuse.fusion.replay import Candidates
from recfuse.logs.candidates import reproduces
from recfuse.logs.candidates import scores_of as log_scores
from recfuse.serving.fusion import fuse_columns
from recfuse.state.candidates import CandidateEncoder


def test_linear_worked_example():
    """0.8 · 60 + 0.5 · 0.50 + 0.9 · 0.30 = 48.52 (maths 2.1)."""
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


CURVES = (Curve(x=(0.0, 1.0, 3.0), y=(0.0, 2.0, 3.0)), Curve(x=(0.0, 0.1, 0.5), y=(-1.0, -1.0, 4.0)))


def test_curves_come_before_the_weights():
    """Between the knots they are numpy's interpolation; beyond, the outer lines go on: 3 + ½ · 2 = 4 at 5."""
    rng = np.random.default_rng(0)
    predictions, weights = np.stack([rng.uniform(0, 3, 60), rng.uniform(0, .5, 60)], 1), np.array([0.7, -0.2])
    scores = fuse(torch.from_numpy(predictions), torch.from_numpy(weights), curves=CURVES)
    expected = sum(weight * np.interp(column, curve.x, curve.y)
                   for weight, column, curve in zip(weights, predictions.T, CURVES, strict=True))
    np.testing.assert_allclose(scores, expected, rtol=1e-12, atol=1e-12)
    outer = fuse(torch.tensor([[5.0, 0.0], [-1.0, 0.6]]), torch.tensor([1.0, 1.0]), curves=CURVES)
    torch.testing.assert_close(outer, torch.tensor([4.0 - 1.0, -2.0 + 5.25]))
    with pytest.raises(InvalidFieldError, match=r"curves: .*2 curves for the formula linear, or none"):
        fuse(torch.ones(1, 2), torch.ones(2), "log_sum", curves=CURVES)


def test_all_who_rank_read_the_curves_alike():
    """Replay, the states' candidate features, the log's check and serving weigh what `fuse` weighs."""
    vocabulary = Vocabulary(behaviours=(Behaviour(name="w", kind="long_term"),), fusion_parameters=("a", "b"),
                            state_size=CandidateFeatures.width_of(2), candidate_features=CandidateFeatures(page=3),
                            curves=CURVES)
    predictions = np.random.default_rng(1).uniform(-.2, 3.5, (5, 2, 9)).astype(np.float16)
    action = np.random.default_rng(2).normal(size=(5, 2)).astype(np.float32)
    columns = torch.from_numpy(predictions.astype(np.float64)).transpose(1, 2)
    expected = fuse(columns, torch.from_numpy(action).double(), curves=CURVES).numpy()
    logged, rounding = log_scores(predictions, action, "linear", 1e-3, CURVES)
    np.testing.assert_allclose(logged, expected, atol=1e-12)
    candidates = Candidates.of(torch.from_numpy(predictions), torch.ones(5, 9, dtype=torch.bool), vocabulary)
    replayed = replay.scores_of(candidates, torch.from_numpy(action).unsqueeze(1))[:, 0].numpy()
    assert (np.abs(replayed - expected) <= rounding[:, None]).all()
    served = [fuse_columns(columns.astype(np.float64), vector, vocabulary)[1]
              for columns, vector in zip(predictions, action, strict=True)]
    np.testing.assert_allclose(served, expected, atol=1e-12)
    mean = CandidateEncoder(vocabulary).raw(predictions)[:, :2]
    np.testing.assert_allclose(mean, vocabulary.curved(predictions).mean(2), atol=1e-12)
    shown = np.argsort(-expected, axis=1)[:, :3]
    assert reproduces(predictions, np.ones((5, 9), bool), action, shown, "linear", 1e-3, CURVES).all()
