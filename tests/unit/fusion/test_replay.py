"""Replay of pages (maths 5), against loops over requests."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.config import InvalidFieldError
from recfuse.fusion import replay
from recfuse.fusion.ranking import fuse, rank
from recfuse.fusion.replay import (
    Candidates,
    antithetic_noise,
    attention_of,
    expected_features,
    features_of_shown,
    page_features,
    pages,
    relaxed_features,
)


def vocabulary(formula: str = "log_sum", parameters: int = 3) -> Vocabulary:
    return Vocabulary(behaviours=(Behaviour(name="watch_time", kind="long_term"),), state_size=1, formula=formula,
                      fusion_parameters=tuple(f"p{index}" for index in range(parameters)))


def drawn(seed: int, rows: int = 5, width: int = 9, parameters: int = 3, formula: str = "log_sum") -> Candidates:
    generator = torch.Generator().manual_seed(seed)
    predictions = torch.rand(rows, parameters, width, generator=generator).half()
    is_open = torch.rand(rows, width, generator=generator) < 0.7
    return Candidates.of(predictions, is_open, vocabulary(formula, parameters))


def by_loops(candidates: Candidates, action: torch.Tensor, row: int, attention: torch.Tensor, formula: str) -> list:
    """f of one request and vector, with the ranking that serves."""
    places = candidates.open[row].nonzero()[:, 0]
    scores = fuse(candidates.columns[row, places, :len(action)], action, formula)
    order = places[rank(scores)][:len(attention)]
    return [sum(float(v) * float(candidates.columns[row, item, k])
                for v, item in zip(attention, order, strict=False)) for k in range(candidates.columns.shape[2])]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), formula=st.sampled_from(["linear", "log_sum", "power"]), page=st.integers(1, 12),
       shared=st.booleans())
def test_features_are_those_of_the_page_that_serving_ranks(seed, formula, page, shared):
    candidates = drawn(seed, formula=formula)
    generator = torch.Generator().manual_seed(seed + 1)
    actions = torch.randn(*((4, 3) if shared else (5, 4, 3)), generator=generator)
    attention = attention_of(0.85, page, candidates.columns)
    features = page_features(candidates, actions, attention)
    for row in range(5):
        for vector in range(4):
            action = actions[vector] if shared else actions[row, vector]
            assert features[row, vector].tolist() == pytest.approx(
                by_loops(candidates, action, row, attention, formula), abs=1e-5)


def test_parts_are_the_whole(monkeypatch):
    candidates, actions = drawn(3, rows=40), torch.randn(40, 6, 3, generator=torch.Generator().manual_seed(4))
    attention = attention_of(0.9, 4, actions)
    whole = page_features(candidates, actions, attention)
    monkeypatch.setattr(replay, "_SCORES", 7 * 6 * 9)
    assert torch.equal(page_features(candidates, actions, attention), whole)


def test_the_logged_action_reproduces_the_page():
    """Maths R1."""
    candidates = drawn(11, rows=30, width=20)
    action = torch.randn(30, 1, 3, generator=torch.Generator().manual_seed(2))
    for row in range(30):
        places = candidates.open[row].nonzero()[:, 0]
        served = places[rank(fuse(candidates.columns[row, places], action[row, 0], "log_sum"))][:4]
        assert pages(candidates[row : row + 1], action[row : row + 1], 4)[0, 0].tolist() == served.tolist()


def test_features_of_what_was_shown():
    candidates = drawn(5, rows=2, parameters=2)
    shown = torch.tensor([[3, 0, 5], [2, -1, -1]])
    attention = torch.tensor([1.0, 0.5])
    features = features_of_shown(candidates, shown, attention)
    assert features[0] == pytest.approx(candidates.columns[0, 3] + 0.5 * candidates.columns[0, 0])
    assert features[1] == pytest.approx(candidates.columns[1, 2])


def test_vectors_that_show_the_same_page_have_the_same_features():
    """Maths R5: a vector and its double rank alike."""
    candidates, action = drawn(8), torch.randn(5, 1, 3, generator=torch.Generator().manual_seed(1))
    attention = attention_of(0.85, 4, action)
    assert torch.equal(page_features(candidates, action, attention), page_features(candidates, 2 * action, attention))


def test_draws_have_the_expectation_of_all():
    """Two candidates, one place: which is shown is the sign of a · (t₁ − t₂), so that the chance is Φ of its mean."""
    predictions = torch.tensor([[[0.6, 0.1], [0.2, 0.9]]])
    candidates = Candidates.of(predictions, torch.ones(1, 2, dtype=torch.bool), vocabulary("linear", 2))
    mu, sigma = torch.tensor([[1.0, 0.4]]), torch.tensor([[0.5, 0.8]])
    noise = antithetic_noise(20_000, 2, torch.Generator().manual_seed(0))
    expected = expected_features(candidates, mu, sigma, noise, torch.ones(1))[0]
    difference = predictions[0, :, 0] - predictions[0, :, 1]
    chance = torch.distributions.Normal(0.0, 1.0).cdf((mu[0] @ difference) / (sigma[0] * difference).norm())
    assert expected == pytest.approx(chance * predictions[0, :, 0] + (1 - chance) * predictions[0, :, 1], abs=0.01)
    assert noise.sum(0).abs().max() < 1e-3


def test_the_relaxed_page_becomes_the_page():
    candidates, actions = drawn(21, rows=6, width=15), torch.randn(6, 2, 3, generator=torch.Generator().manual_seed(3))
    attention = attention_of(0.85, 4, actions)
    exact = page_features(candidates, actions, attention)
    errors = [float((relaxed_features(candidates, actions, attention, tau) - exact).abs().mean())
              for tau in (1.0, 0.1, 3e-4)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.01


def test_the_relaxed_page_has_the_gradient_of_its_differences():
    candidates = drawn(4, rows=2)
    candidates = Candidates(candidates.columns.double(), candidates.terms.double(), candidates.open)
    actions = torch.randn(2, 1, 3, generator=torch.Generator().manual_seed(9), dtype=torch.float64, requires_grad=True)
    attention = attention_of(0.85, 3, actions)
    assert torch.autograd.gradcheck(lambda a: relaxed_features(candidates, a, attention, 0.5), (actions,))


def test_a_longer_vector_ranks_no_sharper():
    candidates, actions = drawn(4), torch.ones(5, 1, 3)
    attention = attention_of(0.85, 3, actions)
    assert torch.allclose(relaxed_features(candidates, actions, attention, 0.3),
                          relaxed_features(candidates, 5 * actions, attention, 0.3), atol=1e-4)


def test_requests_with_few_or_no_open_candidates():
    predictions = torch.rand(2, 2, 5, generator=torch.Generator().manual_seed(0)).half()
    is_open = torch.tensor([[False, True, False, False, False], [False] * 5])
    candidates = Candidates.of(predictions, is_open, vocabulary(parameters=2))
    attention = attention_of(0.5, 3, predictions.float())
    for features in (page_features(candidates, torch.ones(1, 2), attention),
                     relaxed_features(candidates, torch.ones(2, 1, 2), attention, 0.1)):
        assert torch.isfinite(features).all()
        assert features[1].abs().max() == 0
    exact = page_features(candidates, torch.ones(1, 2), attention)
    assert exact[0, 0] == pytest.approx(predictions[0, :, 1].float())


def test_bad_shapes_are_named():
    with pytest.raises(InvalidFieldError, match="predictions"):
        Candidates.of(torch.rand(2, 4, 5), torch.ones(2, 5, dtype=torch.bool), vocabulary())
    with pytest.raises(InvalidFieldError, match="open"):
        Candidates.of(torch.rand(2, 3, 5), torch.ones(2, 4, dtype=torch.bool), vocabulary())
    with pytest.raises(InvalidFieldError, match="draws"):
        antithetic_noise(3, 2, torch.Generator())
