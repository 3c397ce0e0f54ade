"""V-trace: n-step targets for critics from sessions that another policy logged.

Espeholt et al., "IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner Architectures", ICML 2018:
v_t = V(s_t) + δ_t + γ c_t (v_{t+1} − V(s_{t+1})), δ_t = ρ_t (r_t + γ V(s_{t+1}) − V(s_t)), ρ_t = min(ρ̄, π/π_b),
c_t = min(c̄, π/π_b). Here ρ̄ = c̄.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recfuse.config import require


@dataclass(frozen=True)
class VTrace:
    """Attributes (no gradient):
        target: v_t, [B, m], what V(s_t) is fitted to.
        advantage: r_t + γ (1 − d_t) v_{t+1} − V(s_t), [B, m], before the ratio of its own request.
    """

    target: Tensor
    advantage: Tensor


def v_trace(
    value: Tensor, next_value: Tensor, feedback: Tensor, done: Tensor, discount: Tensor, log_ratio: Tensor,
    continues: Tensor, trace_max: float = 1.0,
) -> VTrace:
    """V-trace targets of requests in the order of their sessions.

    Args:
        value, next_value, feedback: V(s_t), V(s_{t+1}), r_t, [B, m].
        done: [B], 1 at the last request of a session.
        discount: γ, [m].
        log_ratio: log π(a_t|s_t) − log π_b(a_t|s_t), [B].
        continues: bool[B], row t + 1 is the request that follows row t; false at the end of a session, and of the rows,
            where the target ends with V(s_{t+1}).
        trace_max: ρ̄ = c̄ > 0.
    """
    require(value.ndim == 2, "value", tuple(value.shape), "a tensor [B, m]")
    for name, tensor in (("next_value", next_value), ("feedback", feedback)):
        require(tensor.shape == value.shape, name, tuple(tensor.shape), f"{tuple(value.shape)}, the shape of value")
    rows = len(value)
    for name, tensor in (("done", done), ("log_ratio", log_ratio), ("continues", continues)):
        require(tuple(tensor.shape) == (rows,), name, tuple(tensor.shape), f"({rows},)")
    require(trace_max > 0, "trace_max", trace_max, "a number > 0")
    require(rows == 0 or not bool(continues[-1]), "continues", True, "false in the last row")
    value, next_value, log_ratio = value.detach(), next_value.detach(), log_ratio.detach()
    ratio = log_ratio.exp().clamp(max=trace_max).unsqueeze(1)
    share = discount * (1.0 - done).unsqueeze(1)
    # A product with zero would let an infinity or a NaN through from a state that must not count.
    ahead = torch.where(share > 0, share * next_value, torch.zeros_like(next_value))
    excess = ratio * (feedback + ahead - value)  # becomes v_t − V(s_t)
    following = torch.zeros_like(excess)  # v_{t+1} − V(s_{t+1}), where it is known
    for places in _from_the_end(continues):
        following[places] = excess[places + 1]
        excess[places] += share[places] * ratio[places] * following[places]
    return VTrace(value + excess, feedback + ahead + share * following - value)


def _from_the_end(continues: Tensor) -> list[Tensor]:
    """Rows that continue, by their distance from the row that does not: every session at once, last requests first."""
    rows = len(continues)
    position = torch.arange(rows, device=continues.device)
    ends = torch.where(continues, rows, position)
    distance = torch.flip(torch.cummin(torch.flip(ends, (0,)), 0).values, (0,)) - position
    order = torch.argsort(distance, stable=True)
    counts = torch.bincount(distance).tolist() if rows else []
    return list(order.split(counts))[1:]
