"""The decay of attention over the places of a page, estimated from feedback (maths 5.0)."""

import numpy as np
import pytest
import torch

from recfuse.fusion.attention import DEFAULT_DECAY, AttentionSums
from recfuse.fusion.effects import FOLDS


def estimated(decay: float, seed: int, rows: int = 40_000, slope: float = 0.5, page: int = 5):
    """From pages that people look at from the first place on, and leave after each place with chance 1 − decay."""
    rng = np.random.default_rng(seed)
    chance = rng.beta(2, 4, (rows, 2, page))
    looked = np.cumprod(np.concatenate([np.ones((rows, 1)), rng.random((rows, page - 1)) < decay], 1), 1)
    happens = rng.random((rows, 2, page)) < slope * chance
    feedback = (happens * looked[:, None]).sum(2)
    sums = AttentionSums.zeros(2, page)
    for part in np.array_split(np.arange(rows), 7):
        sums.add(torch.from_numpy(chance[part]), torch.from_numpy(feedback[part]), torch.from_numpy(part // 50 % FOLDS))
    return sums.estimate()


@pytest.mark.parametrize("decay", [0.5, 0.85, 1.0])
def test_the_decay_is_found_within_its_error(decay):
    found = estimated(decay, seed=1)
    assert found.decay == pytest.approx(decay, abs=max(3 * found.error, 0.02))
    assert 0 <= found.error < 0.05
    assert found.of(3, torch.zeros(1)).tolist() == pytest.approx([1, found.decay, found.decay**2])


def test_a_log_that_does_not_tell_gives_the_default():
    found = estimated(0.6, seed=2, rows=300, slope=0.01)
    assert (found.decay, found.error) == (DEFAULT_DECAY, float("inf"))
    assert "assumed" in str(found)
    assert AttentionSums.zeros(1, 1).estimate().decay == DEFAULT_DECAY
