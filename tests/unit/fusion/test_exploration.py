"""σ from a bound on how much of a page may change."""

from __future__ import annotations

import numpy as np
import pytest

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.config import InvalidFieldError
from recfuse.fusion.exploration import Pages, widest


def vocabulary(parameters: int, **changes: object) -> Vocabulary:
    return Vocabulary(behaviours=(Behaviour(name="revenue", kind="long_term"),), state_size=1,
                      fusion_parameters=tuple(f"p{k}" for k in range(parameters)), **changes)  # type: ignore[arg-type]


def pages(predictions: np.ndarray, weights: list[float], top: int = 5, draws: int = 16, seed: int = 0,
          is_open: np.ndarray | None = None, of: Vocabulary | None = None) -> Pages:
    flags = np.ones(predictions.shape[::2], bool) if is_open is None else is_open
    return Pages(predictions, flags, of or vocabulary(predictions.shape[1]), np.array(weights), top, draws, seed)


def drawn(seed: int = 0, requests: int = 60, parameters: int = 3, candidates: int = 40) -> np.ndarray:
    scale = np.array([.01, 1.0, 50.0])[:parameters]
    return np.random.default_rng(seed).gamma(1.0, 1.0, (requests, parameters, candidates)) * scale[:, None]


@pytest.mark.parametrize("change", [.05, .2, .5])
def test_the_bound_is_met_and_not_missed(change: float) -> None:
    of = pages(drawn(), [30.0, 1.0, .1])
    found = widest(of, change)
    assert found.bounded
    assert found.change.share <= change
    assert of.change(of.sigma(found.reach * 1.01)).share > change
    # Other requests and draws agree within their own error.
    other = pages(drawn(seed=1), [30.0, 1.0, .1], seed=1).change(found.sigma)
    assert abs(other.share - change) < 4 * (found.change.error + other.error)


def test_a_change_counted_by_hand() -> None:
    """Two items, one place: the better one by the weight (1, 0) leads by .5; with (1, a) the other leads for a > 1."""
    predictions = np.array([[[1.0, .5], [0.0, .5]]])
    of = pages(predictions, [1.0, 0.0], top=1, draws=4_000)
    sigma = np.array([1e-9, 2.0])
    change = of.change(sigma)
    expected = .3085375387  # P(a > 1) with a ~ N(0, 2²)
    assert change.share == pytest.approx(expected, abs=.03)
    assert change.first == change.share
    assert change.correlation == pytest.approx(1 - 2 * change.share)


def test_every_parameter_moves_the_scores_alike_in_any_unit() -> None:
    of = pages(drawn(), [30.0, 1.0, .1])
    sigma = of.sigma(.5)
    np.testing.assert_allclose(sigma * of.spread, (sigma * of.spread)[0])
    # Other units of a prediction, with its weight in them, give the same pages and the same bound.
    scale = np.array([10.0, .1, 4.0])
    scaled = pages(drawn() * scale[:, None], (np.array([30.0, 1.0, .1]) / scale).tolist())
    np.testing.assert_allclose(scaled.sigma(.5), sigma / scale, rtol=1e-6)
    assert widest(scaled, .2).reach == pytest.approx(widest(of, .2).reach, rel=.01)


def test_candidates_that_are_not_open_do_not_count() -> None:
    """More of them behind change nothing, whatever their predictions."""
    plain = drawn(parameters=2, candidates=12)
    padded = np.concatenate([plain, np.full((60, 2, 5), 1e3)], 2)
    flags = np.concatenate([np.ones((60, 12), bool), np.zeros((60, 5), bool)], 1)
    few, more = pages(plain, [1.0, 1.0]), pages(padded, [1.0, 1.0], is_open=flags)
    np.testing.assert_allclose(few.spread, more.spread)
    assert few.change(few.sigma(.3)) == more.change(more.sigma(.3))


def test_a_log_sum_explores_its_logarithms() -> None:
    predictions = np.exp(np.random.default_rng(0).normal(size=(50, 2, 20)))
    of = pages(predictions, [1.0, 1.0], of=vocabulary(2, formula="log_sum"))
    np.testing.assert_allclose(of.spread, 1.0, atol=.1)
    with pytest.raises(InvalidFieldError, match="log_sum"):
        pages(predictions - 10, [1.0, 1.0], of=vocabulary(2, formula="log_sum"))


def test_where_all_candidates_fit_on_the_page_nothing_bounds() -> None:
    found = widest(pages(drawn(candidates=4), [1.0, 1.0, 1.0]), .1)
    assert not found.bounded
    assert found.change.share == 0


@pytest.mark.parametrize("weights", [[0.0, 0.0, 0.0], [1.0, 2.0], [1.0, float("nan"), 1.0]])
def test_bad_weights_are_refused(weights: list[float]) -> None:
    with pytest.raises(InvalidFieldError, match="weights"):
        pages(drawn(), weights)


def test_a_prediction_without_spread_has_a_finite_sigma() -> None:
    predictions = drawn(parameters=2)
    predictions[:, 1] = 3.0
    of = pages(predictions, [1.0, 2.0])
    assert np.isfinite(of.sigma(1.0)).all()
    assert (of.sigma(1.0) > 0).all()
