"""The relaxed page, against the same by autograd, place after place."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recfuse.fusion.relaxation import relaxed_places


def by_autograd(scores: torch.Tensor, is_open: torch.Tensor, attention: torch.Tensor, temperature: float):
    """The same of one request and vector, over its open candidates alone."""
    total = torch.zeros_like(scores)
    if not is_open.any():
        return total
    chosen = scores[is_open]
    logits = (chosen - chosen.mean()) / (chosen.var(correction=0) + 1e-12).sqrt() / temperature
    weights = torch.zeros_like(chosen)
    for place in attention:
        share = logits.softmax(0)
        weights = weights + place * share
        logits = logits + torch.log1p(-share.clamp(max=1 - 1e-6)) / temperature
    return total.masked_scatter(is_open, weights)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), places=st.integers(1, 6), temperature=st.sampled_from([0.1, 0.5, 2.0]))
def test_values_and_gradients_are_those_of_autograd(seed, places, temperature):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(4, 2, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    is_open = torch.rand(4, 8, generator=generator) < 0.7
    is_open[0] = False
    attention = 0.8 ** torch.arange(places, dtype=torch.float64)
    weight = torch.randn(4, 2, 8, generator=generator, dtype=torch.float64)
    result = relaxed_places(scores, is_open, attention, temperature)
    expected = torch.stack([torch.stack([by_autograd(vector, flags, attention, temperature) for vector in request])
                            for request, flags in zip(scores, is_open, strict=True)])
    assert torch.allclose(result, expected, atol=1e-12)
    assert result[0].abs().max() == 0
    found, = torch.autograd.grad((result * weight).sum(), scores)
    wanted, = torch.autograd.grad((expected * weight).sum(), scores)
    assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-9)


def test_places_share_all_attention_among_candidates():
    generator = torch.Generator().manual_seed(1)
    attention = torch.tensor([1.0, 0.5, 0.25])
    logits, is_open = torch.randn(3, 1, 9, generator=generator), torch.ones(3, 9, dtype=torch.bool)
    result = relaxed_places(logits, is_open, attention, 0.2)
    assert result.sum(2).flatten().tolist() == pytest.approx([1.75] * 3, abs=1e-5)
    assert bool((result >= 0).all())
