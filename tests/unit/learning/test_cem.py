from __future__ import annotations

import numpy as np
import pytest

from recfuse.errors import InvalidFieldError
from recfuse.learning.cem import cem

OPTIMUM = np.array([0.5, -1.0, 2.0])


def bowl(vectors: np.ndarray) -> np.ndarray:
    return -((vectors - OPTIMUM) ** 2).sum(1)


def test_it_finds_the_optimum_of_a_bowl():
    result = cem(bowl, np.zeros(3), 1.0, population=64, iterations=25, std_floor=0.001)
    np.testing.assert_allclose(result.vector, OPTIMUM, atol=0.02)
    scores = [iteration.mean_score for iteration in result.history]
    assert scores[-1] > scores[0]


def test_it_copes_with_noise():
    rng = np.random.default_rng(0)
    result = cem(lambda v: bowl(v) + rng.normal(0, 0.5, len(v)), np.zeros(3), 1.0, population=100, iterations=25)
    np.testing.assert_allclose(result.vector, OPTIMUM, atol=0.25)


def test_the_same_seed_gives_the_same_result():
    first, second = (cem(bowl, np.zeros(3), 1.0, seed=3, iterations=3).vector for _ in range(2))
    assert np.array_equal(first, second)


def test_the_spread_keeps_its_floor():
    result = cem(bowl, np.zeros(3), 1.0, iterations=40, std_floor=0.05)
    assert (result.std >= 0.05).all()


@pytest.mark.parametrize(("change", "message"), [
    ({"mean": []}, r"mean: got \(0,\); allowed: a vector \[M\]"),
    ({"std": 0.0}, "std: got 0.0; allowed: finite numbers > 0"),
    ({"population": 1}, "population: got 1; allowed: an integer ≥ 2"),
    ({"elite_share": 1.0}, r"elite_share: got 1.0; allowed: a share in \(0, 1\)"),
    ({"smoothing": 1.0}, r"smoothing: got 1.0; allowed: a share in \[0, 1\)"),
    ({"iterations": 0}, "iterations: got 0; allowed: an integer ≥ 1"),
    ({"objective": lambda v: v}, r"objective: got \(32, 3\); allowed: scores of shape \(32,\)"),
    ({"objective": lambda v: v[:, 0] * np.nan}, "objective: got .*nan.*; allowed: finite scores"),
])
def test_bad_arguments_are_named(change, message):
    arguments = {"objective": bowl, "mean": np.zeros(3), "std": 1.0} | change
    with pytest.raises(InvalidFieldError, match=message):
        cem(**arguments)
