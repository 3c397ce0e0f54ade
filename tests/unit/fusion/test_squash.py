"""Squashed actions and their density, against torch.distributions and by integration."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import integrate

from recfuse.config import InvalidFieldError
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.networks import GaussianPolicies, Normalisation
from recfuse.fusion.policies import decide
from recfuse.fusion.squash import log_slope, squash, unsquash
from recfuse.stats.gaussian import squash_array, squashed_log_density, unsquash_array

RANGE = (-0.5, 2.0)


def transformed(mu: torch.Tensor, sigma: torch.Tensor) -> torch.distributions.TransformedDistribution:
    """tanh, then to the range: an independent implementation."""
    low, high = RANGE
    return torch.distributions.TransformedDistribution(torch.distributions.Normal(mu, sigma), [
        torch.distributions.transforms.TanhTransform(),
        torch.distributions.transforms.AffineTransform((low + high) / 2, (high - low) / 2)])


def test_density_against_transformed_distribution():
    torch.manual_seed(0)
    normalisation = Normalisation((0.0,) * 3, (1.0,) * 3, (0.2, -0.4), (0.6, 1.1))
    policies = GaussianPolicies(("a", "b"), NetworkConfig(hidden=(8,), action_range=RANGE), normalisation).double()
    state = torch.randn(200, 3).double()
    mu, log_sigma = policies(state)
    action = squash(torch.randn(200, 2).double(), RANGE)
    expected = transformed(mu, log_sigma.exp()).log_prob(action.unsqueeze(1)).sum(-1)
    torch.testing.assert_close(policies.log_prob(state, action), expected)
    found = squashed_log_density(action.numpy(), mu[:, 0].detach().numpy(), log_sigma[:, 0].exp().detach().numpy(),
                                 RANGE)
    np.testing.assert_allclose(found, expected[:, 0].detach().numpy(), rtol=1e-9)


@pytest.mark.parametrize(("mu", "sigma"), [(0.0, 1.0), (-1.2, 0.4), (0.7, 0.2)])
def test_density_integrates_to_one(mu, sigma):
    total, _ = integrate.quad(
        lambda a: math.exp(squashed_log_density([[a]], [[mu]], [[sigma]], RANGE)[0]), *RANGE, limit=200)
    assert total == pytest.approx(1.0, abs=1e-5)


def test_there_and_back_and_the_slope():
    u = torch.linspace(-4, 4, 41, dtype=torch.float64, requires_grad=True)
    action = squash(u, RANGE)
    torch.testing.assert_close(unsquash(action, RANGE), u)
    (slope,) = torch.autograd.grad(action.sum(), u)
    torch.testing.assert_close(log_slope(u, RANGE), slope.log())
    np.testing.assert_allclose(squash_array(u.detach().numpy(), RANGE), action.detach().numpy())
    np.testing.assert_allclose(unsquash_array(action.detach().numpy(), RANGE), u.detach().numpy(), atol=1e-12)
    assert torch.isfinite(log_slope(torch.tensor([-50.0, 50.0]), RANGE)).all()


def test_decisions_keep_the_range_and_state_the_density_of_what_is_logged():
    mu = np.random.default_rng(0).normal(size=(500, 2)).astype(np.float32)
    sigma = np.full_like(mu, 0.8)
    decision = decide(mu, sigma, True, np.random.default_rng(1), RANGE)
    assert RANGE[0] < decision.action.min() < decision.action.max() < RANGE[1]
    expected = transformed(torch.from_numpy(mu).double(), torch.tensor(0.8).double()).log_prob(
        torch.from_numpy(decision.action).double()).sum(1)
    np.testing.assert_allclose(decision.action_logp, expected.numpy(), rtol=1e-6, atol=1e-6)
    without = decide(mu, sigma, False, np.random.default_rng(1), RANGE)
    np.testing.assert_allclose(without.action, squash_array(mu, RANGE), rtol=1e-6)


def test_a_bad_range_is_named():
    with pytest.raises(InvalidFieldError, match=r"action_range: got \(1.0, 1.0\); allowed: numbers \(low, high"):
        NetworkConfig(action_range=(1.0, 1.0))
