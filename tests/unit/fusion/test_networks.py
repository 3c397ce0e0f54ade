from __future__ import annotations

import pytest
import torch

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.config import InvalidFieldError
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.networks import (
    BatchedMLP,
    Critics,
    GaussianPolicies,
    Normalisation,
    gaussian_entropy,
    gaussian_kl,
    log_density,
    long_term_policy,
)

NAMES = ("watch_time", "like", "follow")
NORMALISATION = Normalisation((1.0, -1.0), (2.0, 0.5), (3.0, 4.0, 5.0), (0.1, 0.2, 0.3))
STATE = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))


def test_batched_networks_are_the_single_ones_side_by_side():
    """Against torch.nn.Sequential with the same parameters."""
    batched = BatchedMLP(NAMES, (2, 8, 4, 3), NetworkConfig(activation="tanh"), seed=1)
    for k in range(3):
        layers: list[torch.nn.Module] = []
        for weight, bias in zip(batched.weights, batched.biases, strict=True):
            linear = torch.nn.Linear(*weight[k].shape)
            linear.weight.data, linear.bias.data = weight[k].data.T, bias[k, 0].data
            layers += [linear, torch.nn.Tanh()]
        torch.testing.assert_close(batched(STATE)[k], torch.nn.Sequential(*layers[:-1])(STATE))


def test_a_shared_trunk_has_one_set_of_hidden_layers():
    """Against one torch.nn.Sequential whose last layer has all outputs; and P6 holds."""
    config = NetworkConfig(activation="tanh", trunk="shared")
    shared = BatchedMLP(NAMES, (2, 8, 4, 3), config, seed=1)
    assert [len(weight) for weight in shared.weights] == [1, 1, 3]
    x = STATE
    for weight, bias in zip(shared.weights[:-1], shared.biases[:-1], strict=True):
        x = torch.tanh(x @ weight[0] + bias[0, 0])
    expected = torch.stack([x @ w + b for w, b in zip(shared.weights[-1], shared.biases[-1], strict=True)])
    torch.testing.assert_close(shared(STATE), expected)
    torch.testing.assert_close(shared(STATE, slice(1, 2)), expected[1:2])
    reordered = BatchedMLP(NAMES[::-1], (2, 8, 4, 3), config, seed=1)
    torch.testing.assert_close(reordered(STATE), expected.flip(0))


@pytest.mark.parametrize("trunk", ["separate", "shared"])
@pytest.mark.parametrize("activation", ["relu", "tanh"])  # only the first is computed by oneDNN
@pytest.mark.parametrize("names", [NAMES, NAMES[:1]])
def test_large_layers_are_computed_one_network_after_the_other(monkeypatch, names, activation, trunk):
    """Which changes nothing but rounding, in values and in gradients of parameters and input, for a run of the networks
    too."""
    batched = BatchedMLP(names, (2, 8, 4, 3), NetworkConfig(activation=activation, trunk=trunk), seed=1)
    x = STATE.clone().requires_grad_()
    results = []
    for large in (1 << 17, 1):
        monkeypatch.setattr("recfuse.fusion.networks._LARGE", large)
        values = batched(x)
        torch.testing.assert_close(batched(x, slice(0, 1)), values[:1])
        of_input, = torch.autograd.grad(batched(x, frozen=True).square().sum(), x)
        results.append((values, of_input, *torch.autograd.grad(values.square().sum(), list(batched.parameters()))))
    for together, apart in zip(*results, strict=True):
        torch.testing.assert_close(apart, together)


def test_large_layers_in_double_precision_stay_in_it(monkeypatch):
    batched = BatchedMLP(NAMES, (2, 8, 3), NetworkConfig(), seed=1).double()
    expected = batched(STATE.double())
    monkeypatch.setattr("recfuse.fusion.networks._LARGE", 1)
    torch.testing.assert_close(batched(STATE.double()), expected, atol=1e-14, rtol=1e-14)


@pytest.mark.parametrize("trunk", ["separate", "shared"])
def test_bfloat16_rounds_the_products_of_large_hidden_layers_alone(monkeypatch, trunk):
    """Values and gradients within the rounding of eight bits, of float32 parameters, and a last layer that has all of
    its digits: without hidden layers, or below the size, nothing is rounded."""
    exact, rounded = (BatchedMLP(NAMES, (2, 64, 64, 3), NetworkConfig(trunk=trunk, arithmetic=arithmetic), seed=1)
                      for arithmetic in ("float32", "bfloat16"))
    torch.testing.assert_close(rounded(STATE), exact(STATE), atol=0, rtol=0)
    monkeypatch.setattr("recfuse.fusion.networks._LARGE", 1)
    results = []
    for network in (exact, rounded):
        values = network(STATE)
        results.append((values, *torch.autograd.grad(values.square().sum(), list(network.parameters()))))
    for one, other in zip(*results, strict=True):
        assert other.dtype == torch.float32
        assert 0 < float((other - one).detach().norm() / one.detach().norm()) < 0.02
    linear = BatchedMLP(NAMES, (2, 3), NetworkConfig(arithmetic="bfloat16"), seed=1)
    torch.testing.assert_close(linear(STATE), STATE @ linear.weights[0] + linear.biases[0], atol=1e-6, rtol=1e-6)


def test_a_run_of_the_networks():
    batched = BatchedMLP(NAMES, (2, 8, 3), NetworkConfig(), seed=1)
    torch.testing.assert_close(batched(STATE, slice(1, 2)), batched(STATE)[1:2])


def test_initial_parameters_depend_on_seed_and_name_alone():
    """P6: reordering the behaviours reorders the networks and changes nothing else."""
    config = NetworkConfig(hidden=(8,))
    values = Critics(NAMES, config, NORMALISATION, seed=5)(STATE)
    torch.testing.assert_close(Critics(NAMES[::-1], config, NORMALISATION, seed=5)(STATE), values.flip(1))
    assert not torch.equal(Critics(NAMES, config, NORMALISATION, seed=6)(STATE), values)


def test_critics_start_at_the_given_values():
    values = Critics(NAMES, NetworkConfig(), NORMALISATION, start=(10.0, 20.0, 30.0))(STATE)
    torch.testing.assert_close(values.mean(0), torch.tensor([10.0, 20.0, 30.0]), atol=1.0, rtol=0)


@pytest.mark.parametrize("sigma", ["state", "free"])
def test_a_fresh_policy_is_close_to_the_moments_of_the_log(sigma):
    policies = GaussianPolicies(NAMES, NetworkConfig(sigma=sigma), NORMALISATION)
    mu, log_sigma = policies(STATE)
    assert mu.shape == log_sigma.shape == (7, 3, 3)
    torch.testing.assert_close(mu, torch.tensor([3.0, 4.0, 5.0]).expand_as(mu), atol=0.05, rtol=0)
    torch.testing.assert_close(log_sigma.exp(), torch.tensor([0.1, 0.2, 0.3]).expand_as(mu), atol=0.02, rtol=0)


@pytest.mark.parametrize("sigma", ["state", "free"])
def test_mean_and_sigma_keep_their_bounds(sigma):
    config = NetworkConfig(sigma=sigma, sigma_min=0.5, sigma_max=1.5, mean_range=2.0)
    policies = GaussianPolicies(NAMES, config, NORMALISATION)
    with torch.no_grad():
        for parameter in policies.parameters():
            parameter.mul_(1e4).add_(torch.randn_like(parameter) * 100)
    mean, log_std = policies.standardised(1e3 * STATE)
    assert mean.abs().max() <= 2.0
    assert log_std.exp().min() >= 0.5 - 1e-6
    assert log_std.exp().max() <= 1.5 + 1e-6


def test_density_entropy_and_divergence_against_torch():
    mu, log_sigma, other_mu, other_log_sigma, action = torch.randn(5, 4, 3).unbind()
    normal = torch.distributions.Normal(mu, log_sigma.exp())
    other = torch.distributions.Normal(other_mu, other_log_sigma.exp())
    torch.testing.assert_close(log_density(action, mu, log_sigma), normal.log_prob(action).sum(-1))
    torch.testing.assert_close(gaussian_entropy(log_sigma), normal.entropy().sum(-1))
    divergence = torch.distributions.kl_divergence(normal, other).sum(-1)
    torch.testing.assert_close(gaussian_kl(mu, log_sigma, other_mu, other_log_sigma), divergence)


@pytest.mark.parametrize(("change", "message"), [
    ({"hidden": (0,)}, r"hidden\.0: got 0; allowed: .* than 0|hidden\.0: got 0; allowed: an integer > 0"),
    ({"activation": "gelu"}, "activation: got 'gelu'; allowed: relu, tanh, silu"),
    ({"sigma": "fixed"}, "sigma: got 'fixed'; allowed: state, free"),
    ({"sigma_min": 0.0}, r"sigma_min: got 0.0; allowed: a number in \(0, 1\)"),
    ({"sigma_max": 1.0}, "sigma_max: got 1.0; allowed: a number > 1"),
    ({"trunk": "common"}, "trunk: got 'common'; allowed: separate, shared"),
    ({"arithmetic": "float16"}, "arithmetic: got 'float16'; allowed: float32, bfloat16"),
    ({"mean_range": -1.0}, "mean_range: got -1.0; allowed: a number > 0"),
])
def test_bad_config_is_named(change, message):
    with pytest.raises(InvalidFieldError, match=message):
        NetworkConfig(**change)


def test_bad_normalisation_is_named():
    with pytest.raises(InvalidFieldError, match=r"action_std: got \(0.0,\); allowed: finite numbers > 0"):
        Normalisation((0.0,), (1.0,), (0.0,), (0.0,))
    vocabulary = Vocabulary(behaviours=(Behaviour(name="w", kind="long_term"),), fusion_parameters=("a",), state_size=2)
    with pytest.raises(InvalidFieldError, match=r"normalisation.action_mean: got 3; allowed: 1 numbers"):
        long_term_policy(vocabulary, NetworkConfig(), NORMALISATION)
