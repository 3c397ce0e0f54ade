"""Losses of IQL and TD3+BC against numbers worked by hand and closed forms."""

from __future__ import annotations

import pytest
import torch

from recfuse.config import InvalidFieldError
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.networks import ActionValues, Normalisation
from recfuse.learning.action_values import action_value_loss
from recfuse.learning.fits.iql import expectile_loss, implicit_loss
from recfuse.learning.fits.td3_bc import td3_bc_loss


def test_implicit_loss_by_hand():
    """Q errors (1, −2) and (0, 3) to the target (1, 2): (1 + 0)/2 + (4 + 9)/2 = 7. V errors 1 and −1 at τ = .8:
    (.8 + .2) / 2 = .5."""
    values = torch.tensor([[2.0, 1.0], [0.0, 5.0]])
    found = implicit_loss(values, torch.tensor([1.0, 2.0]), torch.tensor([2.0, 0.0]), torch.tensor([1.0, 1.0]), 0.8)
    assert found.action_value == 7.0
    torch.testing.assert_close(found.state_value, torch.tensor(0.5))
    torch.testing.assert_close(found.loss, torch.tensor(7.5))


def test_the_optimum_is_the_expectile():
    """Half of the mean squared error at ½; at τ it balances the weighted errors on both sides."""
    data = torch.randn(500, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for share in (0.5, 0.7, 0.95):
        value = torch.zeros((), dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([value], line_search_fn="strong_wolfe", max_iter=100)

        def closure(share: float = share, value: torch.Tensor = value, optimizer=optimizer) -> torch.Tensor:
            optimizer.zero_grad()
            loss = expectile_loss(data - value, share)
            loss.backward()
            return loss

        optimizer.step(closure)
        above, below = (data - value).clamp(min=0).sum(), (value - data).clamp(min=0).sum()
        torch.testing.assert_close(share * above, (1 - share) * below, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(expectile_loss(data, 0.5), 0.5 * data.square().mean())


def test_td3_bc_loss_by_hand():
    """−2.5 / 4 · 2 + ((1 − 0)² + (2 − 4)²) / 2 = 1.25."""
    found = td3_bc_loss(torch.tensor([1.0, 3.0]), torch.tensor(4.0), torch.tensor([[1.0], [2.0]]),
                        torch.tensor([[0.0], [4.0]]), 2.5)
    torch.testing.assert_close(found, torch.tensor(1.25))


def test_frozen_values_give_gradients_to_the_action_alone():
    values = ActionValues(2, NetworkConfig(hidden=(8,)), Normalisation.identity(3, 2))
    action = torch.randn(5, 2, requires_grad=True)
    state = torch.randn(5, 3)
    values(state, action, frozen=True).sum().backward()
    assert action.grad is not None
    assert float(action.grad.abs().sum()) > 0
    assert all(parameter.grad is None for parameter in values.parameters())
    torch.testing.assert_close(values(state, action, frozen=True), values(state, action))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: expectile_loss(torch.zeros(2), 1.0), r"expectile: got 1.0; allowed: a number in \(0, 1\)"),
    (lambda: action_value_loss(torch.zeros(2), torch.zeros(2)), r"action_values: got \(2,\); allowed: a tensor \[B, k"),
    (lambda: action_value_loss(torch.zeros(2, 2), torch.zeros(3)), r"target: got \(3,\); allowed: \(2,\)"),
    (lambda: td3_bc_loss(torch.zeros(2), torch.ones(()), torch.zeros(2, 1), torch.zeros(2), 1.0),
     r"mean: got \(2, 1\); allowed: \(2,\)"),
])
def test_bad_values_are_named(call, message):
    with pytest.raises(InvalidFieldError, match=message):
        call()
