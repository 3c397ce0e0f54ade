"""What would give an answer where the log has too little support: more days of it, or more exploration."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recfuse.evaluation.blocks import Block
from recfuse.evaluation.case import Case, who_decides
from recfuse.evaluation.support import Ratios, Vector, effective_sample_size

_MOST_SCALE, _STEPS = 10.0, 200  # of σ, which are tried from 1 on in equal ratios
_DAY = 86_400e6  # microseconds
_MEAN_ESS, _MOST_TIMES = 400.0, 1_000.0


def advice(case: Case, blocks: Sequence[Block]) -> list[str]:
    """Sentences on the questions that ratios are asked, and do not answer for lack of support."""
    asked = [block for block in blocks if any(answer.refused for answer in block.answers)
             and all(answer.refused or answer.ranks_only for answer in block.answers)]
    if not asked or not case.explore or not case.weighed.any():
        return []
    log = case.log.take(case.weighed)
    size = effective_sample_size(Ratios.of(case.log_prob[case.weighed], log.log_prob, case.product_cap).scaled)
    # A mean ratio is known to ± 5% with so many; what the log lacks of the policy cannot be told from chance below it.
    need = max(case.options.min_ess, _MEAN_ESS) if size >= case.options.min_ess else case.options.min_ess
    gaussians = _gaussians(case)
    if gaussians is not None:
        size = min(size, len(log.state) / mean_square(*gaussians))
    names = " and ".join(f"“{block.question.name}”" for block in asked)
    return [f"no ratio answers {names} for lack of support",
            f"{len(log.state):,} requests of this log are worth {size:,.1f} of the policy's own, and {need:g} are "
            "needed",
            *_more_days(size, need, log.ts),
            *([] if gaussians is None else _more_exploration(gaussians, need))]


def _more_days(size: float, need: float, ts: NDArray[np.int64] | None) -> list[str]:
    if size <= 0:
        return ["more days of this log would give no answer: too much of what the policy does is never logged"]
    times = need / size - 1
    if times <= 0:
        return []
    if times > _MOST_TIMES:
        return [f"more of this log would give no answer: more than {_MOST_TIMES:,g} times as many requests are needed"]
    if ts is None or ts.max() == ts.min():
        return [f"{times:,.1f} times as many requests more, logged alike, would give an answer"]
    days = float(ts.max() - ts.min()) / _DAY
    return [f"{math.ceil(times * days):,} more days logged alike would give an answer, beside the {days:,.1f} days of "
            "this log"]


def _more_exploration(gaussians: tuple[Vector, Vector, Vector, Vector], need: float) -> list[str]:
    scale = least_scale(*gaussians, need)
    if scale is None:
        return [f"no exploration up to {_MOST_SCALE:g} times the logged σ would give an answer with as many requests: "
                "the policy lies too far from the logged one"]
    if scale == 1:
        return []
    return [f"as many requests, logged with {scale:.2f} times the σ, would give an answer"]


def _gaussians(case: Case) -> tuple[Vector, Vector, Vector, Vector] | None:
    """μ, σ of the policy and of the log, [n, M] each, of the requests with a ratio; None where one is no Gaussian."""
    log = case.log.take(case.weighed)
    if log.mu is None or log.sigma is None:
        return None
    mu, sigma = (np.empty(log.mu.shape) for _ in range(2))
    for own, places in who_decides(case.actor, log):
        decision = own.act(log.state[places], explore=False)
        if not np.array_equal(decision.action, decision.mu):
            return None
        mu[places], sigma[places] = decision.mu, decision.sigma
    return mu, sigma, log.mu.astype(np.float64), log.sigma.astype(np.float64)


def mean_square(mu: Vector, sigma: Vector, logged_mu: Vector, logged_sigma: Vector) -> float:
    """E ρ² over requests and the logged policy's actions, all [n, M]; inf where a σ is more than √2 times the logged
    one (maths 4.11)."""
    spread = 2 * logged_sigma**2 - sigma**2
    if (spread <= 0).any():
        return math.inf
    log = 2 * np.log(logged_sigma) - np.log(sigma) - .5 * np.log(spread) + (mu - logged_mu)**2 / spread
    with np.errstate(over="ignore"):
        return float(np.exp(log.sum(1)).mean())


def least_scale(mu: Vector, sigma: Vector, logged_mu: Vector, logged_sigma: Vector, need: float) -> float | None:
    """The least c ≥ 1 at which `n / E ρ²` reaches `need` had the log drawn with c times its σ; None up to 10."""
    for scale in np.geomspace(1.0, _MOST_SCALE, _STEPS):
        if len(mu) / mean_square(mu, sigma, logged_mu, scale * logged_sigma) >= need:
            return float(scale)
    return None
