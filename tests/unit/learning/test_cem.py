from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from recfuse.config import InvalidFieldError
from recfuse.learning.cem import cem
from recfuse.learning.fits.cem import importance_sums, logged_scores

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


def test_scores_on_a_log_against_plain_sums():
    """NCIS of the advantage (maths 4.1), with the standard error of a ratio of means."""
    rng = np.random.default_rng(0)
    action, gain = rng.standard_normal((400, 2)), rng.standard_normal(400)
    behaviour = stats.norm.logpdf(action).sum(1)
    vectors, sigma = np.array([[0.0, 0.0], [0.5, -0.5], [6.0, 6.0]]), np.array([1.0, 0.8])
    sums = np.zeros((5, 3))
    for rows in (slice(0, 150), slice(150, 400)):
        arrays = vectors, sigma, action[rows], behaviour[rows], gain[rows]
        sums += importance_sums(*map(torch.from_numpy, arrays), rho_max=3.0).numpy()
    found = logged_scores(sums, 400, pessimism=1.5, ess_floor=0.05)
    for index, vector in enumerate(vectors):
        rho = np.minimum(3.0, np.exp(stats.norm.logpdf(action, vector, sigma).sum(1) - behaviour))
        estimate = (rho * gain).sum() / rho.sum()
        error = np.sqrt((rho**2 * (gain - estimate) ** 2).sum()) / rho.sum()
        assert found.estimate[index] == pytest.approx(estimate)
        assert found.ess_share[index] == pytest.approx(rho.sum() ** 2 / (rho**2).sum() / 400)
        if index < 2:
            assert found.score[index] == pytest.approx(estimate - 1.5 * error)
    assert found.ess_share[2] < 0.05
    assert found.score[2] < found.score[:2].min()
