"""Losses of the rivals that learn the value of actions: IQL and TD3+BC, for the fusion action.

Pure functions of tensors, batch first. Actions are in standard deviations of the logged ones, which takes the place of
the unit box of the papers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recfuse.config import require


@dataclass(frozen=True)
class ImplicitLoss:
    """Attributes:
        loss: scalar: action values and state value, which have no parameter in common.
        action_value, state_value: scalars, no gradient.
    """

    loss: Tensor
    action_value: Tensor
    state_value: Tensor


def implicit_loss(action_values: Tensor, target: Tensor, best: Tensor, value: Tensor, expectile: float) -> ImplicitLoss:
    """IQL's two regressions (Kostrikov et al., "Offline Reinforcement Learning with Implicit Q-Learning", ICLR 2022).

    Args:
        action_values: Q_k(s_t, a_t), [B, k].
        target: r_t + γ (1 − d_t) V(s_{t+1}), [B]; held constant.
        best: min_k Q̄_k(s_t, a_t) of the target networks, [B]; held constant.
        value: V(s_t), [B].
        expectile: of Q̄ over the logged actions that V is, in (0, 1); ½ is the mean.
    """
    of_actions = action_value_loss(action_values, target)
    of_states = expectile_loss(best.detach() - value, expectile)
    return ImplicitLoss(of_actions + of_states, of_actions.detach(), of_states.detach())


def action_value_loss(action_values: Tensor, target: Tensor) -> Tensor:
    """Σ_k mean (Q_k − target)², of values [B, k] and a target [B] that is held constant."""
    shape = tuple(action_values.shape)
    require(action_values.ndim == 2, "action_values", shape, "a tensor [B, k]")
    require(tuple(target.shape) == shape[:1], "target", tuple(target.shape), f"{shape[:1]}")
    return (action_values - target.detach().unsqueeze(1)).square().mean(0).sum()


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """mean |τ − 1(error < 0)| error² of errors [B]; its optimum is the τ-expectile (Newey and Powell, 1987)."""
    require(0.0 < expectile < 1.0, "expectile", expectile, "a number in (0, 1)")
    weight = torch.where(error < 0, 1.0 - expectile, expectile)
    return (weight * error.square()).mean()


def td3_bc_loss(value: Tensor, scale: Tensor, mean: Tensor, action: Tensor, alpha: float) -> Tensor:
    """TD3+BC's policy loss: −α / scale · mean Q(s, μ(s)) + mean (μ(s) − a)² (Fujimoto and Gu, "A Minimalist Approach to
    Offline Reinforcement Learning", NeurIPS 2021).

    Args:
        value: Q(s_t, μ(s_t)), [B], with gradient to μ(s_t).
        scale: scalar, mean |Q(s, μ(s))| over the minibatch; held constant.
        mean, action: μ(s_t) and the logged action, [B, M].
        alpha: α > 0.
    """
    require(alpha > 0, "alpha", alpha, "a number > 0")
    require(tuple(mean.shape) == tuple(action.shape), "mean", tuple(mean.shape), str(tuple(action.shape)))
    return -alpha / scale.detach().clamp(min=1e-6) * value.mean() + (mean - action).square().mean()
