"""The cross-entropy method on a log: one fusion vector for all requests, as tuning by hand arrives at."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
from numpy.typing import NDArray
from torch import Tensor

from recfuse.fusion.networks import gaussian_entropy
from recfuse.learning.advantages import mixed_advantages
from recfuse.learning.algorithms.cem import CemConfig
from recfuse.learning.cem import propose, refit
from recfuse.learning.columns import CHUNK
from recfuse.learning.context import Context
from recfuse.learning.density import logged_density
from recfuse.learning.metrics import ENTROPY, ESS_SHARE, LOSS, Metric, Metrics
from recfuse.learning.phases import Phase
from recfuse.stats.gaussian import LOG_2PI

# Vectors this many standard deviations from zero are centred.
_FAR = 100.0
GAIN, BEST_GAIN, BELOW_FLOOR_SHARE = Metric("gain"), Metric("best_gain"), Metric("below_floor_share")


@torch.no_grad()
def search(context: Context[CemConfig], rng: np.random.Generator, iteration: int) -> Metrics:
    """One population, judged on the log; each worker weighs its share of the samples."""
    settings, module = context.settings, context.module
    first = settings.spread * module.policy.action_std.double().cpu().numpy()
    spread = first if iteration == 0 else module.vector_std.double().cpu().numpy()
    vectors = propose(module.vector_mean.double().cpu().numpy(), spread, settings.population, rng)
    sums = _sums_over_log(context, torch.from_numpy(vectors).to(module.policy.action_std))
    scores = logged_scores(sums.cpu().numpy(), context.rows, settings.pessimism, settings.ess_floor)
    mean, std, elite = refit(vectors, scores.score, spread, settings.std_floor * first, settings.elite_share,
                             settings.smoothing)
    module.vector_mean.copy_(torch.from_numpy(mean))
    module.vector_std.copy_(torch.from_numpy(std))
    numbers = {LOSS: -elite, GAIN: scores.estimate[0], BEST_GAIN: scores.estimate[scores.score.argmax()],
               ESS_SHARE: scores.ess_share[0], BELOW_FLOOR_SHARE: (scores.ess_share < settings.ess_floor).mean()}
    return {**{metric: torch.tensor(float(number), dtype=torch.float64) for metric, number in numbers.items()},
            ENTROPY: gaussian_entropy(module.vector_std.log())}


def _sums_over_log(context: Context[CemConfig], vectors: Tensor) -> Tensor:
    """`importance_sums` of all samples of all workers."""
    advantage, sigma = mixed_advantages(context, "sampled").sampled, context.module.policy.action_std
    sums = torch.zeros(5, len(vectors), dtype=torch.float64, device=context.device)
    for position, window in context.windows:
        logged = logged_density(context, window, position)
        for start in range(context.rank * CHUNK, len(logged), CHUNK * context.workers):
            rows = slice(start, start + CHUNK)
            gain = advantage[position + start : position + start + len(logged[rows])].to(context.device)
            sums += importance_sums(vectors, sigma, window["action"][rows], logged[rows], gain, context.settings.cap)
    if context.workers > 1:
        torch.distributed.all_reduce(sums)
    return sums


SEARCH: Phase = Phase(name="search", seed=9, rule=lambda settings: settings.search, search=search)


@dataclass(frozen=True)
class LoggedScores:
    """Attributes:
        score: [P], the estimate less `pessimism` standard errors.
        estimate: [P], self-normalised mean of the advantage.
        ess_share: [P], effective sample size of the weights over the samples.
    """

    score: NDArray[np.float64]
    estimate: NDArray[np.float64]
    ess_share: NDArray[np.float64]


def importance_sums(
    vectors: Tensor, sigma: Tensor, action: Tensor, behaviour_log_prob: Tensor, advantage: Tensor, rho_max: float
) -> Tensor:
    """Sums over samples that `logged_scores` needs, float64[5, P]; those of parts of the samples add up.

    Args:
        vectors: [P, M], means of the Gaussians that are judged; sigma: [M], of all.
        action: [n, M]; behaviour_log_prob, advantage: [n].
        rho_max: the weights ρ = min(ρ̄, π / π_b) are cut there (maths 4.1).
    """
    if bool((vectors.abs() > _FAR * sigma).any()):  # their squares would lose the digits that count
        center = vectors.mean(0)
        action, vectors = action - center, vectors - center
    z, w = action / sigma, vectors / sigma
    constant = -sigma.log().sum() - 0.5 * LOG_2PI * action.shape[1]
    log_prob = z @ w.T - 0.5 * z.square().sum(1, keepdim=True) - 0.5 * w.square().sum(1) + constant
    rho = (log_prob - behaviour_log_prob.unsqueeze(1)).clamp(max=math.log(rho_max)).exp()
    square, value = rho.square(), advantage.unsqueeze(1)
    terms = (rho, square, rho * value, square * value, square * value.square())
    return torch.stack([term.sum(0, dtype=torch.float64) for term in terms])


def logged_scores(sums: NDArray[np.float64], rows: int, pessimism: float, ess_floor: float) -> LoggedScores:
    """Scores of vectors on a log (maths 4.1, with the standard error of a ratio of means).

    A vector whose effective sample size lies below the floor ranks below all others, because the log says too little
    about it, and the lower the smaller it is.
    """
    first, second, gain, gain2, gain3 = sums
    total = np.maximum(first, 1e-300)
    estimate = gain / total
    error = np.sqrt(np.maximum(gain3 - 2.0 * estimate * gain2 + estimate**2 * second, 0.0)) / total
    share = first**2 / np.maximum(second, 1e-300) / rows
    score = estimate - pessimism * error
    known = share >= ess_floor
    lowest = score[known].min() if known.any() else 0.0
    return LoggedScores(np.where(known, score, lowest - 1.0 - (ess_floor - share)), estimate, share)
