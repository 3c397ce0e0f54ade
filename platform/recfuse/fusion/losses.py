"""Losses of two-stage constrained actor-critic (maths 1; Cai et al., WWW 2023, arXiv 2302.01680).

Pure functions of tensors, batch first. What the formulas hold constant (targets, ratios, weights) carries no gradient
here, whatever the caller passes. `m` behaviours may be given as one more dimension; their losses are summed, so that
networks on disjoint parameters need one backward pass.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from recfuse.config import require


@dataclass(frozen=True)
class CriticLoss:
    """Attributes:
        loss: scalar, the sum of the behaviours' losses.
        per_behaviour: [m] (a scalar where values are [B]), no gradient.
    """

    loss: Tensor
    per_behaviour: Tensor


@dataclass(frozen=True)
class AuxiliaryLoss:
    """Attributes (diagnostics carry no gradient, and have the shape [|S|], or are scalar where log_prob is [B]):
        loss: scalar, the sum of the behaviours' losses.
        per_behaviour: the loss of each.
        clipped_share: share of the ratios that were cut at `rho_max`.
        ess_share: effective sample size of the ratios over B.
        gain: mean of ρ A, the estimate of what the policy is for.
    """

    loss: Tensor
    per_behaviour: Tensor
    clipped_share: Tensor
    ess_share: Tensor
    gain: Tensor


@dataclass(frozen=True)
class TargetWeights:
    """Weights of the samples in stage two. All without gradient.

    Attributes:
        weight: [B].
        tau: scalar in [0, 1], what the exponent was scaled by to keep the floor (1: nothing was changed).
        ess_share: scalar, effective sample size over B, after scaling and before the cap.
        capped_share: scalar, share of weights at the cap.
    """

    weight: Tensor
    tau: Tensor
    ess_share: Tensor
    capped_share: Tensor


@dataclass(frozen=True)
class ConstrainedLoss:
    """Attributes:
        loss: scalar.
        weights: the weights it used, with their diagnostics.
    """

    loss: Tensor
    weights: TargetWeights


def critic_loss(
    value: Tensor, next_value: Tensor, feedback: Tensor, done: Tensor, discount: float | Tensor
) -> CriticLoss:
    """Mean squared temporal-difference error (maths 1.2).

    Args:
        value: V(s_t), [B] or [B, m].
        next_value: V(s_{t+1}), like value; held constant.
        feedback: r_t, like value.
        done: [B] (or like value), 1 at the last request of a session.
        discount: γ, a number or [m].
    """
    error = value - td_target(next_value, feedback, done, discount, like=value)
    per_behaviour = error.square().mean(0)
    return CriticLoss(loss=per_behaviour.sum(), per_behaviour=per_behaviour.detach())


def advantage(
    value: Tensor, next_value: Tensor, feedback: Tensor, done: Tensor, discount: float | Tensor
) -> Tensor:
    """A_t = r_t + γ (1 − d_t) V(s_{t+1}) − V(s_t), no gradient (maths 1.3). Shapes as `critic_loss`."""
    return td_target(next_value, feedback, done, discount, like=value) - value.detach()


def td_target(
    next_value: Tensor, feedback: Tensor, done: Tensor, discount: float | Tensor, like: Tensor
) -> Tensor:
    """r_t + γ (1 − d_t) V(s_{t+1}), no gradient; refuses shapes that would broadcast into something else."""
    shape = tuple(like.shape)
    require(like.ndim in (1, 2), "value", shape, "a tensor [B] or [B, m]")
    require(tuple(next_value.shape) == shape, "next_value", tuple(next_value.shape), f"{shape}, the shape of value")
    require(tuple(feedback.shape) == shape, "feedback", tuple(feedback.shape), f"{shape}, the shape of value")
    require(tuple(done.shape) in (shape, shape[:1]), "done", tuple(done.shape), f"{shape[:1]} or {shape}")
    gamma = torch.as_tensor(discount, dtype=like.dtype, device=like.device)
    require(gamma.ndim == 0 or tuple(gamma.shape) == shape[1:], "discount", tuple(gamma.shape),
            f"a number or {shape[1:]}")
    going_on = 1.0 - done
    if done.ndim < like.ndim:
        going_on = going_on.unsqueeze(-1)
    share = gamma * going_on
    # A product with zero would let an infinity or a NaN through from a state that must not count.
    bootstrap = torch.where(share > 0, share * next_value, torch.zeros_like(next_value))
    return (feedback + bootstrap).detach()


def auxiliary_policy_loss(
    log_prob: Tensor, behaviour_log_prob: Tensor, advantage: Tensor, rho_max: float | None = None
) -> AuxiliaryLoss:
    """Stage one: −mean(ρ A log π) with the clipped ratio ρ = min(ρ̄, π / π_b) held constant (maths 1.4).

    Args:
        log_prob: log π_θj(a_t|s_t), [B] or [B, |S|].
        behaviour_log_prob: log π_b(a_t|s_t), [B]; equal to log_prob on-policy, where ρ is then 1.
        advantage: A_{t,j}, like log_prob.
        rho_max: ρ̄ > 0; None leaves the ratio as it is.
    """
    shape = tuple(log_prob.shape)
    require(log_prob.ndim in (1, 2), "log_prob", shape, "a tensor [B] or [B, |S|]")
    _require_shape("behaviour_log_prob", behaviour_log_prob, shape[:1])
    _require_shape("advantage", advantage, shape)
    require(rho_max is None or rho_max > 0, "rho_max", rho_max, "a number > 0, or None")
    behaviour = behaviour_log_prob if log_prob.ndim == 1 else behaviour_log_prob.unsqueeze(-1)
    log_ratio = (log_prob - behaviour).detach()
    limit = math.inf if rho_max is None else math.log(rho_max)
    # Cut before the exponential: the ratio itself may leave the range of floats.
    log_rho = log_ratio.clamp(max=limit)
    gain = log_rho.exp() * advantage.detach()
    per_behaviour = -(gain * log_prob).mean(0)
    return AuxiliaryLoss(
        loss=per_behaviour.sum(),
        per_behaviour=per_behaviour.detach(),
        clipped_share=(log_ratio > limit).to(log_prob.dtype).mean(0),
        ess_share=effective_sample_share(log_rho),
        gain=gain.mean(0),
    )


def target_exponent(
    behaviour_log_prob: Tensor, auxiliary_log_probs: Tensor, advantage: Tensor, lambdas: Tensor
) -> Tensor:
    """e_t = log w_t + A_t / Λ, [B], no gradient (maths 1.5, 1.6).

    Args: as `constrained_policy_loss`.
    """
    batch = tuple(behaviour_log_prob.shape)
    require(behaviour_log_prob.ndim == 1, "behaviour_log_prob", batch, "a tensor [B]")
    require(lambdas.ndim == 1 and lambdas.numel() > 0, "lambdas", tuple(lambdas.shape), "a tensor [|S|], |S| ≥ 1")
    _require_shape("auxiliary_log_probs", auxiliary_log_probs, (*batch, lambdas.shape[0]))
    _require_shape("advantage", advantage, batch)
    lambdas = lambdas.to(auxiliary_log_probs)
    require(bool((lambdas > 0).all()), "lambdas", lambdas.tolist(), "numbers > 0")
    total = lambdas.sum()
    log_weight = (auxiliary_log_probs - behaviour_log_prob.unsqueeze(-1)) @ (lambdas / total)
    return (log_weight + advantage / total).detach()


def target_weights(
    exponent: Tensor, ess_floor: float = 0.0, normalise: bool = False, cap: float | None = None
) -> TargetWeights:
    """exp(τ e_t), with the largest τ ≤ 1 whose effective sample size keeps the floor (maths 1.6).

    Args:
        exponent: e_t, [B], over the samples that the floor and the normalisation are to hold for.
        ess_floor: least effective sample size, as a share of B in [0, 1]; 0 leaves the exponent as it is.
        normalise: scales the weights to mean 1.
        cap: largest weight, after normalisation; None for no cap.
    """
    require(exponent.ndim == 1 and exponent.numel() > 0, "exponent", tuple(exponent.shape), "a tensor [B], B ≥ 1")
    require(0.0 <= ess_floor <= 1.0, "ess_floor", ess_floor, "a share in [0, 1]")
    require(cap is None or cap > 0, "cap", cap, "a number > 0, or None")
    exponent = exponent.detach()
    tau = _largest_scale(exponent, ess_floor)
    scaled = tau * exponent
    if normalise:
        # The maximum first: next to a large one, the logarithm of the sum would have lost the digits that count.
        scaled = scaled - scaled.max()
        scaled = scaled - torch.logsumexp(scaled, 0) + math.log(len(scaled))
    weight = scaled.exp()
    capped = torch.zeros_like(tau)
    if cap is not None:
        capped = (weight > cap).to(weight.dtype).mean()
        weight = weight.clamp(max=cap)
    return TargetWeights(weight=weight, tau=tau, ess_share=effective_sample_share(scaled), capped_share=capped)


def state_weights(log_ratios: Tensor, advantage: Tensor, lambdas: Tensor) -> Tensor:
    """Weights of K vectors drawn in each state, w_k ∝ Π_j (π_j / π_b)^(λ_j / Λ) exp(A / Λ), [n, K], with Σ_k w_k = 1 in
    every state (maths 5.6): the normaliser of the state is computed where one vector a state drops it.

    Args:
        log_ratios: [n, K, |S|], log π_j(a_k|s) − log π_b(a_k|s), with a_k drawn from π_b.
        advantage: [n, K]; lambdas: multipliers λ [|S|], > 0, with the sum Λ, the temperature.
    """
    total = lambdas.sum()
    return ((log_ratios @ lambdas + advantage) / total).softmax(1).detach()


def weighted_likelihood_loss(log_prob: Tensor, weight: Tensor) -> Tensor:
    """−mean(weight · log π), the weights held constant: stage two once its weights are known (maths 1.5)."""
    _require_shape("weight", weight, tuple(log_prob.shape))
    return -(weight.detach() * log_prob).mean()


def constrained_policy_loss(
    log_prob: Tensor,
    behaviour_log_prob: Tensor,
    auxiliary_log_probs: Tensor,
    advantage: Tensor,
    lambdas: Tensor,
    ess_floor: float = 0.0,
    normalise: bool = False,
    cap: float | None = None,
) -> ConstrainedLoss:
    """Stage two: −mean(w exp(A/Λ) log π), w = Π_j (π_j / π_b)^{λ_j/Λ} (maths 1.5).

    Args:
        log_prob: log π_θ(a_t|s_t), [B].
        behaviour_log_prob: log π_b(a_t|s_t), [B].
        auxiliary_log_probs: log π_θj(a_t|s_t), [B, |S|]; held constant.
        advantage: A_{t,1} (or Σ α_k A_{t,k}), [B]; held constant.
        lambdas: multipliers λ_j > 0, [|S|].
        ess_floor, normalise, cap: see `target_weights`; with the defaults the plain formula.
    """
    require(log_prob.ndim == 1, "log_prob", tuple(log_prob.shape), "a tensor [B]")
    _require_shape("behaviour_log_prob", behaviour_log_prob, tuple(log_prob.shape))
    exponent = target_exponent(behaviour_log_prob, auxiliary_log_probs, advantage, lambdas)
    weights = target_weights(exponent, ess_floor, normalise, cap)
    return ConstrainedLoss(loss=weighted_likelihood_loss(log_prob, weights.weight), weights=weights)


def effective_sample_share(log_weight: Tensor) -> Tensor:
    """(Σ w)² / (B Σ w²) of weights given by their logarithms [B, ...], in log space over the first dimension."""
    rows = math.log(max(len(log_weight), 1))
    log_weight = log_weight - log_weight.amax(0)
    return (2.0 * torch.logsumexp(log_weight, 0) - torch.logsumexp(2.0 * log_weight, 0) - rows).exp()


def _largest_scale(exponent: Tensor, floor: float, steps: int = 60) -> Tensor:
    """The largest τ in [0, 1] with effective_sample_share(τ e) ≥ floor, which falls as τ grows: by bisection."""
    unity = torch.ones((), dtype=exponent.dtype, device=exponent.device)
    if floor <= 0.0 or bool(effective_sample_share(exponent) >= floor):
        return unity
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = 0.5 * (low + high)
        if bool(effective_sample_share(middle * exponent) >= floor):
            low = middle
        else:
            high = middle
        if high - low < 1e-12:
            break
    return unity * low


def _require_shape(field: str, value: Tensor, shape: tuple[int, ...]) -> None:
    require(tuple(value.shape) == tuple(shape), field, tuple(value.shape), str(tuple(shape)))
