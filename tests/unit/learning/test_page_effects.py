"""Relative effects of pages and the one vector (maths 5.3, 5.7)."""

import numpy as np
import pytest
import torch

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.fusion.attention import Attention
from recfuse.fusion.effects import FOLDS, EffectSums, Modifiers
from recfuse.fusion.replay import Candidates, antithetic_noise, attention_of, expected_features, page_features
from recfuse.learning.page_effects import Objective, best_vector, mean_effects, relative_effects
from recfuse.learning.replay import Measured, ReplayRows

PAGE, WIDTH = 3, 20


def opposed(rows: int = 1500, sigma: float = 0.05, seed: int = 3) -> ReplayRows:
    """Requests whose two columns say nothing of each other, logged by a vector that weighs both alike."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.rand(rows, WIDTH, 2, generator=generator)
    candidates = Candidates(columns, columns, torch.ones(rows, WIDTH, dtype=torch.bool))
    mu, deviation = torch.ones(rows, 2), torch.full((rows, 2), sigma)
    attention = attention_of(0.85, PAGE, columns)
    expected = expected_features(candidates, mu, deviation, antithetic_noise(32, 2, generator), attention)
    return ReplayRows(torch.zeros(rows, 1), candidates, mu, deviation, one(rows), torch.arange(rows) % FOLDS, expected,
                      attention)


def one(rows: int) -> torch.Tensor:
    """Modifiers of requests that are all alike."""
    return Modifiers(1, 0).of(torch.zeros(rows, dtype=torch.int64), torch.zeros(rows, 0))


def whole(effects: torch.Tensor) -> torch.Tensor:
    """Effects of the two columns as those of the modifiers, of which the second says nothing."""
    return torch.stack([effects, torch.zeros_like(effects)])


def angle(vector: np.ndarray) -> float:
    return float(np.degrees(np.arctan2(vector[1], vector[0])))


@pytest.mark.parametrize("floor", [0.0, -0.2])
def test_a_floor_ends_at_its_boundary(floor):
    """Maths R7: the first objective is the first column, the second the second one. Along the angle of the vector one
    rises where the other falls, so that the best angle is where the second meets its floor; found here by a scan."""
    rows, attention = opposed(), attention_of(0.85, PAGE, torch.zeros(1))
    effects = whole(torch.eye(2, dtype=torch.float64))  # relative effects of the two columns
    objective = Objective(torch.tensor([1.0, 0.0]).double(), torch.tensor([float("-inf"), floor]).double())
    vector = best_vector(rows, effects, objective, seed=0)
    degrees = np.arange(0.0, 91.0, 0.5)
    circle = torch.from_numpy(np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], 1)).float()
    value = mean_effects(rows, page_features(rows.candidates, circle, attention), effects)
    best = degrees[(value[:, 1] >= floor).nonzero()[0, 0]]
    if floor == 0.0:
        assert best == pytest.approx(45.0, abs=1.5)  # in closed form: where the log is
    assert angle(vector) == pytest.approx(best, abs=2.0)
    assert np.linalg.norm(vector) == pytest.approx(2**0.5, rel=1e-3)  # as long as the logged one


def test_without_floors_the_vector_weighs_what_counts():
    rows = opposed()
    objective = Objective(torch.tensor([1.0, 0.0]).double(), torch.full((2,), float("-inf")).double())
    vector = best_vector(rows, whole(torch.eye(2, dtype=torch.float64)), objective, seed=0)
    assert angle(vector) == pytest.approx(0.0, abs=8.0)


def vocabulary() -> Vocabulary:
    return Vocabulary(
        behaviours=(Behaviour(name="watch_time", kind="long_term", scale=2.0),
                    Behaviour(name="like", kind="short_term"), Behaviour(name="share", kind="short_term")),
        fusion_parameters=("watch_time", "like"), state_size=1)


def test_relative_effects_are_those_of_the_rows():
    """By hand: watch = 3 f₀ in units of 2; like = .4 f₁, shrunk by nothing that counts; share has no prediction and
    follows f₀; a unit of f₀ brings half a request more."""
    generator = torch.Generator().manual_seed(5)
    features = torch.randn(8000, 2, generator=generator)
    noise = 0.05 * torch.randn(8000, 4, generator=generator)
    targets = torch.stack([1.5 * features[:, 0], 0.5 * features[:, 0], 0.4 * features[:, 1], 0.1 * features[:, 0]], 1)
    sums = EffectSums.zeros(Modifiers(1, 0), 2, 4)
    sums.add(features, one(8000), targets + noise, torch.arange(8000) % FOLDS)
    reward = torch.tensor([10.0, 0.2, 0.05]).double()
    found = relative_effects(Measured(sums, Attention(0.85, 0.0), reward, 3.0), vocabulary(),
                             torch.tensor([2.0, 1.0, 1.0]), [(0.5, 0.5)] * 2)
    expected = torch.tensor([[0.15, 0.5, 0.1 / 0.05 + 0.5], [0.0, 0.4 / 0.2, 0.0]]).double()
    assert found.coefficients.sum(0) == pytest.approx(expected, abs=0.03)
    assert found.slopes.log[0] == pytest.approx(0.4, abs=0.01)
    assert found.slopes.used[0] == pytest.approx(0.4, abs=0.01)


def test_what_the_own_prediction_does_not_tell_is_told_by_the_others():
    """like = .4 f₁ − .3 f₀ with columns that go together: the slope on f₁ alone is .4 − .3 · .6 = .22, and whoever
    shows more of f₀ alone loses likes."""
    generator = torch.Generator().manual_seed(5)
    columns = torch.randn(8000, 2, generator=generator)
    features = torch.stack([columns[:, 0], 0.6 * columns[:, 0] + 0.8 * columns[:, 1]], 1)
    targets = torch.zeros(8000, 4)
    targets[:, 2] = 0.4 * features[:, 1] - 0.3 * features[:, 0]
    sums = EffectSums.zeros(Modifiers(1, 0), 2, 4)
    sums.add(features, one(8000), targets + 0.05 * torch.randn(8000, 4, generator=generator),
             torch.arange(8000) % FOLDS)
    found = relative_effects(Measured(sums, Attention(0.85, 0.0), torch.tensor([1.0, 0.2, 1.0]).double(), 3.0),
                             vocabulary(), torch.ones(3), [(0.5, 0.5)] * 2)
    assert found.slopes.used[0] == pytest.approx(0.22, abs=0.02)
    assert found.coefficients.sum(0)[:, 1] == pytest.approx(torch.tensor([-1.5, 2.0]).double(), abs=0.05)


def test_few_positives_leave_the_slope_near_its_prior():
    sums = EffectSums.zeros(Modifiers(1, 0), 2, 4)
    features = torch.randn(200, 2, generator=torch.Generator().manual_seed(1))
    targets = torch.zeros(200, 4)
    targets[7, 2] = 1.0
    sums.add(features * 1e-4, one(200), targets, torch.arange(200) % FOLDS)
    found = relative_effects(Measured(sums, Attention(0.85, 0.0), torch.tensor([1.0, 0.005, 0.0]).double(), 3.0),
                             vocabulary(), torch.ones(3), [(0.5, 0.5)] * 2)
    assert found.slopes.error[0] > 10
    assert found.slopes.used[0] == pytest.approx(0.5, abs=0.05)


def test_a_behaviour_that_never_occurs_has_no_effect():
    sums = EffectSums.zeros(Modifiers(1, 0), 2, 4)
    features = torch.randn(400, 2, generator=torch.Generator().manual_seed(1))
    targets = torch.cat([features[:, :1], torch.zeros(400, 3)], 1)
    sums.add(features, one(400), targets, torch.arange(400) % FOLDS)
    found = relative_effects(Measured(sums, Attention(0.85, 0.0), torch.zeros(3).double(), 3.0), vocabulary(),
                             torch.ones(3), [(0.5, 0.5)] * 2)
    assert torch.isfinite(found.coefficients).all()
    assert found.coefficients[:, :, 1:].abs().max() == 0
