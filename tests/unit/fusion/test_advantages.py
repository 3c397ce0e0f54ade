"""The regressed advantage: recovers a known function, stays at zero without one, does not depend on the chunks."""

from __future__ import annotations

import pytest
import torch

from recfuse.config import InvalidFieldError
from recfuse.fusion.advantages import (
    REGRESSION_COLUMNS,
    RegressedAdvantage,
    action_terms,
    plan,
    principal_directions,
    regress_advantage,
)

ROWS, STATES, ACTIONS = 20_000, 3, 2


def draw(noise: float, seed: int = 0):
    """States, actions, and three advantages of known form with noise: constant and state-dependent, quadratic, none."""
    generator = torch.Generator().manual_seed(seed)
    state, action = (torch.randn(ROWS, size, generator=generator, dtype=torch.float64) for size in (STATES, ACTIONS))
    truth = torch.stack([
        (0.5 + state[:, 1]) * action[:, 0] - 0.3 * action[:, 1],
        -0.2 * action[:, 0] ** 2 + 0.4 * action[:, 0] * action[:, 1],
        torch.zeros(ROWS, dtype=torch.float64),
    ], 1)
    # What the critics left: a part that depends on the state alone.
    left = 0.7 * state[:, :1]
    samples = truth + left + noise * torch.randn(ROWS, 3, generator=generator, dtype=torch.float64)
    return state, action, truth, samples


def fit(state, action, samples, chunk: int = 4096) -> RegressedAdvantage:
    return regress_advantage(
        (i, state[i : i + chunk], action[i : i + chunk], samples[i : i + chunk]) for i in range(0, ROWS, chunk))


def test_terms_by_hand():
    terms = action_terms(torch.tensor([[2.0, 3.0]]), torch.tensor([[5.0, 7.0]]))
    # [1, 2, 3] ⊗ [5, 7], then 5·5, 5·7, 7·7.
    assert terms.tolist() == [[5, 7, 10, 14, 15, 21, 25, 35, 49]]


def test_a_known_function_is_recovered():
    state, action, truth, samples = draw(noise=0.01)
    torch.testing.assert_close(fit(state, action, samples)(state, action)[:, 0], truth[:, 0], rtol=0, atol=0.05)
    # Up to a constant, which the baseline takes.
    found = fit(state, action, samples)(state, action)[:, 1]
    torch.testing.assert_close(found - found.mean(), truth[:, 1] - truth[:, 1].mean(), rtol=0, atol=0.02)


def test_noise_is_left_out():
    state, action, truth, samples = draw(noise=5.0)
    model = fit(state, action, samples)
    found = model(state, action)[:, 0]
    correlation = torch.corrcoef(torch.stack([found, truth[:, 0]]))[0, 1]
    assert correlation > 0.95, "the samples themselves correlate by about 0.2"
    explained = truth[:, 0].var() / samples[:, 0].var()
    assert float(model.explained_variance[0]) == pytest.approx(float(explained), rel=0.3)


@pytest.mark.parametrize("seed", range(5))
def test_without_an_effect_of_the_action_it_is_zero(seed):
    state, action, _, samples = draw(noise=1.0, seed=seed)
    model = fit(state, action, samples)
    assert model.explained_variance[2] == 0
    assert not model.coefficients[2].any()


def test_chunks_do_not_matter():
    state, action, _, samples = draw(noise=1.0)
    one, other = fit(state, action, samples, ROWS), fit(state, action, samples, 777)
    torch.testing.assert_close(one.coefficients, other.coefficients, rtol=0, atol=1e-12)


def test_too_few_samples_are_refused():
    state, action, _, samples = draw(noise=1.0)
    with pytest.raises(InvalidFieldError, match=r"samples: .*at least"):
        regress_advantage([(0, state[:100], action[:100], samples[:100])])


def test_a_model_within_the_budget_is_whole():
    assert str(plan(53, 6)) == ""
    assert plan(53, 6).columns == 54 * 7 + 21
    state, action, _, samples = draw(noise=1.0)
    whole = regress_advantage([(0, state, action, samples)])
    exact = regress_advantage([(0, state, action, samples)], columns=4 * 3 + 3)
    assert torch.equal(whole.coefficients, exact.coefficients)


@pytest.mark.parametrize(("states", "actions"), [(256, 8), (256, 16), (512, 12), (2000, 20), (3, 60), (2000, 100)])
def test_wide_models_keep_to_the_budget(states, actions):
    cut = plan(states, actions)
    assert str(cut)
    assert cut.columns <= REGRESSION_COLUMNS
    assert cut.whole == (1 + states) * (1 + actions) + actions * (actions + 1) // 2


def test_a_wide_state_enters_by_its_principal_directions():
    """An embedding of three hidden numbers, which decide what the action is worth."""
    state, action, truth, samples = draw(noise=0.5)
    generator = torch.Generator().manual_seed(1)
    wide = state @ torch.randn(STATES, 120, generator=generator, dtype=torch.float64)
    wide = wide + 0.05 * torch.randn(ROWS, 120, generator=generator, dtype=torch.float64)
    wide = wide / wide.std(0)
    chunks = [(i, wide[i : i + 3000], action[i : i + 3000], samples[i : i + 3000]) for i in range(0, ROWS, 3000)]
    model = regress_advantage(chunks, columns=40)
    assert model.directions is not None
    assert model.coefficients.shape[1] <= 40
    found = model(wide, action)[:, 0]
    assert torch.corrcoef(torch.stack([found, truth[:, 0]]))[0, 1] > 0.98
    assert not model.coefficients[2].any(), "and of what does not depend on the action it still says nothing"
    again = regress_advantage(chunks, columns=40)
    assert torch.equal(again.coefficients, model.coefficients)
    with pytest.raises(TypeError, match="read twice"):
        regress_advantage(iter(chunks), columns=40)


def test_principal_directions_are_those_of_the_largest_variance():
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(5000, 30, generator=generator, dtype=torch.float64) * torch.linspace(3, 0.1, 30).double()
    found = principal_directions([state[:2000], state[2000:]], 2)
    torch.testing.assert_close(found.T @ found, torch.eye(2, dtype=torch.float64))
    expected = torch.linalg.eigh(state.T @ state).eigenvectors[:, -2:]
    assert torch.linalg.svdvals(found.T @ expected).min() > 0.98


def test_many_actions_enter_by_their_squares():
    state, action, _, samples = draw(noise=0.5)
    model = regress_advantage([(0, state, action, samples)], columns=11)
    assert model.squares_only
    terms = action_terms(torch.tensor([[2.0]]), torch.tensor([[5.0, 7.0]]), squares_only=True)
    assert terms.tolist() == [[5, 7, 10, 14, 25, 49]]
    assert model(state, action).shape == (ROWS, 3)
