"""The properties P1 to P7 of docs/maths.md, against closed forms and numbers worked by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recfuse.config import InvalidFieldError
from recfuse.fusion.losses import (
    advantage,
    auxiliary_policy_loss,
    constrained_policy_loss,
    critic_loss,
    effective_sample_share,
    state_weights,
    target_exponent,
    target_weights,
)
from recfuse.fusion.networks import log_density


def double(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def logs(*values: float) -> Tensor:
    return double(*values).log()


# Numbers worked by hand


def test_critic_loss_by_hand():
    """Targets 1 + ½·3 = 2.5 and 0 (end of session); errors 1.5 and 2; (2.25 + 4) / 2 = 3.125."""
    batch = double(1, 2), double(3, 4), double(1, 0), double(0, 1)
    torch.testing.assert_close(critic_loss(*batch, 0.5).loss, double(3.125)[0])
    torch.testing.assert_close(advantage(*batch, 0.5), double(1.5, -2.0))


def test_critic_losses_of_several_behaviours_are_summed():
    value, following, reward, done = torch.randn(4, 6, 3, dtype=torch.float64)
    done = (done[:, 0] > 0).double()
    discount = double(0.9, 0.0, 0.5)
    together = critic_loss(value, following, reward, done, discount)
    alone = [critic_loss(value[:, j], following[:, j], reward[:, j], done, float(discount[j])).loss for j in range(3)]
    torch.testing.assert_close(together.per_behaviour, torch.stack(alone))
    torch.testing.assert_close(together.loss, torch.stack(alone).sum())


def test_auxiliary_policy_loss_by_hand():
    """Ratios 2 and 1: −(2·1·ln .2 − 1·2·ln .5) / 2 = ln 2.5. Cut at 1.5: −(1.5·ln .2 − 2·ln .5) / 2."""
    batch = logs(0.2, 0.5), logs(0.1, 0.5), double(1, -2)
    torch.testing.assert_close(auxiliary_policy_loss(*batch).loss, logs(2.5)[0])
    cut = auxiliary_policy_loss(*batch, rho_max=1.5)
    expected = -(1.5 * math.log(0.2) - 2 * math.log(0.5)) / 2
    torch.testing.assert_close(cut.loss, double(expected)[0])
    assert cut.clipped_share == 0.5
    # (1.5 + 1)² / (2 · (2.25 + 1))
    torch.testing.assert_close(cut.ess_share, double(6.25 / 6.5)[0])


def test_on_policy_the_ratio_is_one():
    log_prob, gain = torch.randn(2, 50, dtype=torch.float64)
    torch.testing.assert_close(auxiliary_policy_loss(log_prob, log_prob, gain, 1.0).loss, -(gain * log_prob).mean())


def test_constrained_policy_loss_by_hand():
    """p = (¼, ¾), w = 2^¼ · 4^¾ = 2^1.75; A/Λ = ln 2; so the weight is 2^2.75, times −ln .5."""
    loss = constrained_policy_loss(logs(0.5), logs(0.1), logs(0.2, 0.4).unsqueeze(0), double(4 * math.log(2)),
                                   double(1, 3))
    torch.testing.assert_close(loss.weights.weight, double(2**2.75))
    torch.testing.assert_close(loss.loss, double(2**2.75 * math.log(2))[0])


# Properties


def test_p1_without_discount_the_critic_fits_the_mean_reward_of_the_state():
    """Rewards 1, 2, 6 in one state and −1, 0 in the other: values 3 and −½, whatever comes next."""
    state, reward = torch.tensor([0, 0, 0, 1, 1]), double(1, 2, 6, -1, 0)
    following, done = double(7, math.inf, -7, 0, 1), torch.zeros(5).double()
    value = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([value], line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = critic_loss(value[state], following, reward, done, 0.0).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(value.detach(), double(3.0, -0.5), atol=1e-6, rtol=0)


def test_p1_without_discount_the_advantage_ignores_the_next_state():
    value, reward, done = torch.randn(3, 9, dtype=torch.float64)
    first, second = (advantage(value, torch.randn(9).double(), reward, done.gt(0).double(), 0.0) for _ in range(2))
    assert torch.equal(first, second)


def test_p2_nothing_bootstraps_over_the_end_of_a_session():
    value, reward, end = double(1, 1), double(2, 2), double(1, 1)
    for following in (double(5, -5), double(math.inf, math.nan)):
        torch.testing.assert_close(advantage(value, following, reward, end, 0.9), double(1, 1))
        assert critic_loss(value, following, reward, end, 0.9).loss == 1.0


def test_p3_without_advantage_the_optimum_is_the_geometric_mean_of_the_auxiliaries():
    """1/σ*² = Σ p_j/σ_j², μ* = σ*² Σ p_j μ_j/σ_j², reached by training on samples of another Gaussian."""
    generator = torch.Generator().manual_seed(0)
    rows, lambdas = 200_000, double(1.0, 3.0)
    mu, sigma = torch.tensor([[-0.5, 0.2], [0.7, 0.4]]).double(), torch.tensor([[0.8, 0.6], [0.5, 0.9]]).double()
    action = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    behaviour = log_density(action, torch.zeros(2).double(), torch.zeros(2).double())
    auxiliary = torch.stack([log_density(action, m, s.log()) for m, s in zip(mu, sigma, strict=True)], 1)
    learned = torch.zeros(2, 2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([learned], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        log_prob = log_density(action, learned[0], learned[1])
        loss = constrained_policy_loss(log_prob, behaviour, auxiliary, torch.zeros(rows).double(), lambdas,
                                       normalise=True).loss
        loss.backward()
        return loss

    optimizer.step(closure)
    share = (lambdas / lambdas.sum()).unsqueeze(1)
    precision = (share / sigma**2).sum(0)
    torch.testing.assert_close(learned[0].detach(), (share * mu / sigma**2).sum(0) / precision, atol=0.01, rtol=0)
    torch.testing.assert_close(learned[1].detach().exp(), precision.rsqrt(), atol=0.01, rtol=0)


def test_p4_auxiliaries_equal_to_the_logged_policy_leave_advantage_weighted_regression():
    log_prob, behaviour, gain = torch.randn(3, 64, dtype=torch.float64)
    result = constrained_policy_loss(log_prob, behaviour, behaviour.unsqueeze(1).expand(64, 2), gain, double(0.5, 1.5))
    torch.testing.assert_close(result.loss, -(torch.exp(gain / 2.0) * log_prob).mean())


batches = st.integers(0, 2**31 - 1).map(lambda seed: torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(generator=batches, scale=st.floats(0.01, 100), behaviours=st.integers(1, 5))
def test_p5_scaling_the_multipliers_divides_the_exponent_of_the_advantage_alone(generator, scale, behaviours):
    behaviour, gain = torch.randn(2, 16, generator=generator, dtype=torch.float64)
    auxiliary = torch.randn(16, behaviours, generator=generator, dtype=torch.float64)
    lambdas = torch.rand(behaviours, generator=generator, dtype=torch.float64) + 0.1
    nothing = torch.zeros_like(gain)
    torch.testing.assert_close(target_exponent(behaviour, auxiliary, nothing, scale * lambdas),
                               target_exponent(behaviour, auxiliary, nothing, lambdas))
    torch.testing.assert_close(target_exponent(behaviour, auxiliary, gain, scale * lambdas),
                               target_exponent(behaviour, auxiliary, gain / scale, lambdas))


@settings(deadline=None, max_examples=60)
@given(generator=batches, order=st.permutations(range(4)))
def test_p6_permuting_the_behaviours_permutes_the_result(generator, order):
    draw = torch.randn(6, 16, 4, generator=generator, dtype=torch.float64)
    value, following, reward, log_prob, gain, auxiliary = draw
    done, behaviour = (draw[0, :, 0] > 0).double(), draw[1, :, 0]
    discount, lambdas = torch.rand(2, 4, generator=generator, dtype=torch.float64) + 0.05
    discount = discount.clamp(max=0.99)
    pairs = [
        (critic_loss(value, following, reward, done, discount),
         critic_loss(value[:, order], following[:, order], reward[:, order], done, discount[order])),
        (auxiliary_policy_loss(log_prob, behaviour, gain, 2.0),
         auxiliary_policy_loss(log_prob[:, order], behaviour, gain[:, order], 2.0)),
    ]
    for plain, permuted in pairs:
        torch.testing.assert_close(permuted.loss, plain.loss)
        torch.testing.assert_close(permuted.per_behaviour, plain.per_behaviour[order])
    torch.testing.assert_close(constrained_policy_loss(value[:, 0], behaviour, auxiliary[:, order], gain[:, 0],
                                                       lambdas[order], 0.5, True).loss,
                               constrained_policy_loss(value[:, 0], behaviour, auxiliary, gain[:, 0], lambdas, 0.5,
                                                       True).loss)


def differences(function: Callable[[Tensor], Tensor], at: Tensor, step: float = 1e-6) -> Tensor:
    """Central differences of a scalar function, entry by entry."""
    gradient = torch.zeros_like(at)
    for index in range(at.numel()):
        shift = torch.zeros_like(at).view(-1)
        shift[index] = step
        shift = shift.view_as(at)
        gradient.view(-1)[index] = (function(at + shift) - function(at - shift)) / (2 * step)
    return gradient


def test_p7_gradients_agree_with_finite_differences():
    torch.manual_seed(0)
    value, following, reward, gain, log_prob = torch.randn(5, 7, 3, dtype=torch.float64).unbind()
    done, behaviour = (value[:, 0] > 0).double(), torch.randn(7, dtype=torch.float64)
    discount, lambdas, auxiliary = double(0.9, 0.0, 0.5), double(1, 2, 0.5), torch.randn(7, 3, dtype=torch.float64)
    # ρ is held constant, so the differences are taken of the loss with ρ as it is here.
    rho = (log_prob - behaviour.unsqueeze(1)).exp().clamp(max=1.5)
    cases: list[tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Tensor]] = []
    critic = lambda x: critic_loss(x, following, reward, done, discount).loss  # noqa: E731
    cases.append((critic, critic, value))
    cases.append((lambda x: auxiliary_policy_loss(x, behaviour, gain, 1.5).loss,
                  lambda x: -(rho * gain * x).mean(0).sum(), log_prob))
    for options in ({}, {"ess_floor": 0.6}, {"ess_floor": 0.6, "normalise": True}, {"normalise": True, "cap": 2.0}):
        policy = lambda x, o=options: constrained_policy_loss(x, behaviour, auxiliary, gain[:, 0], lambdas, **o).loss  # noqa: E731
        cases.append((policy, policy, log_prob[:, 0].clone()))
    for loss, reference, at in cases:
        point = at.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(point), point)
        torch.testing.assert_close(gradient, differences(reference, at), atol=1e-7, rtol=1e-6)


def test_p7_through_the_gaussian():
    torch.manual_seed(0)
    action, mu, log_sigma = torch.randn(3, 5, 2, dtype=torch.float64).unbind()
    mu.requires_grad_(), log_sigma.requires_grad_()
    behaviour, gain = torch.randn(2, 5, dtype=torch.float64)
    auxiliary = torch.randn(5, 2, dtype=torch.float64)

    def loss(mu: Tensor, log_sigma: Tensor) -> Tensor:
        return constrained_policy_loss(log_density(action, mu, log_sigma), behaviour, auxiliary, gain,
                                       double(1, 2)).loss

    assert torch.autograd.gradcheck(loss, (mu, log_sigma))


def test_what_is_held_constant_carries_no_gradient():
    tensors = [torch.randn(6, dtype=torch.float64, requires_grad=True) for _ in range(5)]
    value, following, reward, behaviour, gain = tensors
    auxiliary = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    done = torch.zeros(6).double()
    assert not advantage(value, following, reward, done, 0.9).requires_grad
    critic_loss(value, following, reward, done, 0.9).loss.backward()
    assert following.grad is None
    auxiliary_policy_loss(value, behaviour, gain).loss.backward()
    constrained_policy_loss(value, behaviour, auxiliary, gain, double(1, 1), 0.5, True).loss.backward()
    assert behaviour.grad is None
    assert gain.grad is None
    assert auxiliary.grad is None


# Numerics (maths 1.6)


def test_effective_sample_share_by_hand():
    """(1 + 1 + 2)² / (3 · (1 + 1 + 4)) = 16 / 18."""
    torch.testing.assert_close(effective_sample_share(logs(1, 1, 2)), double(16 / 18)[0])


@settings(deadline=None, max_examples=60)
@given(generator=batches, spread=st.floats(0, 200), floor=st.floats(0.02, 0.9))
def test_the_floor_is_kept_by_the_largest_scale(generator, spread, floor):
    exponent = spread * torch.randn(200, generator=generator, dtype=torch.float64)
    weights = target_weights(exponent, ess_floor=floor, normalise=True)
    assert weights.ess_share >= floor - 1e-9
    torch.testing.assert_close(weights.weight.mean(), double(1.0)[0])
    if weights.tau < 1:
        assert effective_sample_share((weights.tau + 1e-6) * exponent) < floor
    else:
        assert effective_sample_share(exponent) >= floor


def test_huge_exponents_stay_finite_in_float32():
    exponent = torch.tensor([1e4, 1e4 + 1.0, -1e4])
    weights = target_weights(exponent, normalise=True)
    torch.testing.assert_close(weights.weight, 3 * torch.softmax(torch.tensor([0.0, 1.0, -2e4]), 0))


def test_the_cap_is_reported():
    weights = target_weights(logs(1, 1, 1, 5), normalise=True, cap=2.0)
    torch.testing.assert_close(weights.weight, double(0.5, 0.5, 0.5, 2.0))
    assert weights.capped_share == 0.25


B = torch.zeros(4)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: critic_loss(B, B[:3], B, B, 0.9), r"next_value: got \(3,\); allowed: \(4,\), the shape of value"),
    (lambda: critic_loss(B, B, B.unsqueeze(1), B, 0.9), r"feedback: got \(4, 1\); allowed: \(4,\)"),
    (lambda: critic_loss(B, B, B, B[:1], 0.9), r"done: got \(1,\); allowed"),
    (lambda: advantage(B, B, B, B, torch.ones(2)), r"discount: got \(2,\); allowed: a number or \(\)"),
    (lambda: auxiliary_policy_loss(B, B, B.unsqueeze(1)), r"advantage: got \(4, 1\); allowed: \(4,\)"),
    (lambda: auxiliary_policy_loss(B, B, B, 0.0), "rho_max: got 0.0; allowed: a number > 0, or None"),
    (lambda: constrained_policy_loss(B, B, B, B, torch.ones(1)), r"auxiliary_log_probs: got \(4,\); allowed: \(4, 1\)"),
    (lambda: constrained_policy_loss(B, B, B.unsqueeze(1), B, torch.zeros(1)), r"lambdas: got \[0.0\]; allowed: num"),
    (lambda: target_weights(B, ess_floor=2.0), r"ess_floor: got 2.0; allowed: a share in \[0, 1\]"),
])
def test_bad_values_are_named(call, message):
    with pytest.raises(InvalidFieldError, match=message):
        call()


def test_weights_of_a_state_are_the_geometric_mean_of_its_policies():
    """Maths R6: with A ≡ 0 and many vectors, the weighted moments are those of Π_j π_j^(λ_j/Λ), a Gaussian whose
    precision is the weighted mean of the precisions (one action, by hand)."""
    generator = torch.Generator().manual_seed(0)
    action = torch.randn(1, 400_000, generator=generator, dtype=torch.float64)
    logged = torch.distributions.Normal(0.0, 1.0)
    policies = [torch.distributions.Normal(0.8, 0.9), torch.distributions.Normal(-0.4, 0.7)]
    lambdas = torch.tensor([3.0, 1.0], dtype=torch.float64)
    ratios = torch.stack([policy.log_prob(action) - logged.log_prob(action) for policy in policies], 2)
    weights = state_weights(ratios, torch.zeros_like(action), lambdas)
    precision = 0.75 / 0.9**2 + 0.25 / 0.7**2
    mean = (0.75 * 0.8 / 0.9**2 + 0.25 * -0.4 / 0.7**2) / precision
    assert float(weights.sum()) == pytest.approx(1.0)
    assert float((weights * action).sum()) == pytest.approx(mean, abs=0.01)
    assert float((weights * (action - mean).square()).sum()) == pytest.approx(1 / precision, rel=0.02)


def test_weights_of_a_state_do_not_see_other_states():
    """A constant in a state, which one vector a state would have to drop, cancels."""
    generator = torch.Generator().manual_seed(1)
    ratios, advantage = torch.randn(3, 5, 2, generator=generator), torch.randn(3, 5, generator=generator)
    shifted = advantage + torch.tensor([[0.0], [7.0], [-3.0]])
    lambdas = torch.tensor([0.2, 0.3])
    assert torch.allclose(state_weights(ratios, advantage, lambdas),
                          state_weights(ratios, shifted, lambdas), atol=1e-6)
