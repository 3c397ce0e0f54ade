"""The advantage as a function of state and action, regressed from its samples.

A sampled advantage (maths 1.3) is unbiased but carries all that a single request happened to bring and whether its
session went on. Stage two exponentiates it, and the exponential of a noisy sample follows the noise: it spends the
effective sample size on luck. The optimum of maths 1.5 holds A(s, a) itself, its conditional expectation.

The model is A(s, a) = (W [1, s]) · a + aᵀ H a in standardised states and actions, whose gradients are the compatible
features of a Gaussian policy (Sutton et al., "Policy Gradient Methods for Reinforcement Learning with Function
Approximation", NeurIPS 1999). Ridge regression in closed form: one pass, no steps, the same on any number of workers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from recfuse.config import require

FOLDS = 10
# Rows of a fold come in runs, so that most sessions lie within one fold.
RUN = 16
# Penalties of the constant, the state-dependent and the quadratic coefficients, in units of the samples' number. The
# first explains nothing by the action.
_OFF = 1e6
PENALTIES = ((_OFF, _OFF, _OFF), *itertools.product((1e-3,), (_OFF, 3.0, 1.0, 0.3, 0.1, 0.03, 0.003), (_OFF, 1e-3)))
# By how many standard errors over the folds a model must be better than the one without the action.
SIGNIFICANCE = 3.0


@dataclass(frozen=True)
class RegressedAdvantage:
    """A_j(s, a) of m behaviours.

    Attributes:
        coefficients: float64[m, (1 + S) · M + M (M + 1) / 2], of `action_terms`.
        explained_variance: float64[m], out of fold: the share of the samples' variance that the model explains.
    """

    coefficients: Tensor
    explained_variance: Tensor

    def __call__(self, state: Tensor, action: Tensor) -> Tensor:
        """[n, m] for standardised states [n, S] and actions [n, M]."""
        return action_terms(state, action) @ self.coefficients.to(state.dtype).T


def action_terms(state: Tensor, action: Tensor) -> Tensor:
    """[n, (1 + S) · M + M (M + 1) / 2]: [1, state] ⊗ action, then the products of two entries of the action."""
    base = torch.cat([torch.ones_like(state[:, :1]), state], 1)
    left, right = torch.triu_indices(action.shape[1], action.shape[1])
    return torch.cat([(base.unsqueeze(2) * action.unsqueeze(1)).flatten(1), action[:, left] * action[:, right]], 1)


def regress_advantage(chunks: Iterable[tuple[int, Tensor, Tensor, Tensor]], folds: int = FOLDS) -> RegressedAdvantage:
    """Fits the model; how strongly it depends on the action, and on the state, is chosen per behaviour out of fold.

    Args:
        chunks: (position of the first row among all samples, standardised state [n, S], standardised action [n, M],
            sampled advantage [n, m]).
        folds: of the cross-validation.

    A behaviour whose samples do not say significantly more with the action than without it gets zero, which leaves its
    policy where the logged one is.
    """
    grams: list[Tensor] = []
    states = actions = 0
    for position, state, action, advantage in chunks:
        states, actions = state.shape[1], action.shape[1]
        # The first columns, without the action, take up what the critics left of the state's value.
        rows = torch.cat([torch.ones_like(state[:, :1]), state, action_terms(state, action), advantage], 1)
        fold = (torch.arange(position, position + len(rows), device=rows.device) // RUN) % folds
        parts = [rows[fold == index] for index in range(folds)]
        # Products of a chunk in its own precision, which takes half the time; their sum over the samples in double.
        products = [(part.T @ part).double() for part in parts]
        grams = [gram + product for gram, product in zip(grams, products, strict=True)] if grams else products
    counts = [int(gram[0, 0]) for gram in grams]
    require(min(counts, default=0) > 0, "samples", sum(counts),
            f"at least {folds * RUN} of them to regress the advantage on, or `advantage: sampled`")
    return _select(grams, states, actions)


def _select(grams: list[Tensor], states: int, actions: int) -> RegressedAdvantage:
    total = torch.stack(grams).sum(0)
    first = 1 + states
    quadratic = first + (1 + states) * actions
    terms = slice(first, quadratic + actions * (actions + 1) // 2)
    losses, candidates = [], []  # [folds, m] and [m, terms] of every penalty
    for on_action, on_state, on_quadratic in PENALTIES:
        penalty = torch.full((terms.stop,), on_state, dtype=total.dtype, device=total.device)
        penalty[:first], penalty[first : first + actions], penalty[quadratic:] = 1e-3, on_action, on_quadratic
        losses.append(torch.stack([_held_out_loss(total - gram, gram, penalty) for gram in grams]))
        candidates.append(_solve(total, penalty)[:, terms])
    gain = losses[0] - torch.stack(losses)  # [penalties, folds, m]
    error = gain.std(1) * len(grams) ** 0.5
    gain = gain.sum(1)
    best = torch.where(gain > SIGNIFICANCE * error, gain, 0.0).max(0)
    chosen = torch.stack(candidates)[best.indices, torch.arange(gain.shape[1], device=gain.device)]
    chosen = torch.where((best.values > 0).unsqueeze(1), chosen, 0.0)
    count, sums = total[0, 0], total[0, terms.stop :]
    variance = total.diagonal()[terms.stop :] / count - (sums / count).square()
    return RegressedAdvantage(chosen, best.values / count / variance.clamp(min=1e-12))


def _solve(gram: Tensor, penalty: Tensor) -> Tensor:
    """Ridge coefficients [m, features] from a Gram matrix of [features, targets]; the penalty in units of the rows."""
    features = len(penalty)
    left = gram[:features, :features] + torch.diag(penalty * gram[0, 0])
    factor, _ = torch.linalg.cholesky_ex(left)
    return torch.cholesky_solve(gram[:features, features:], factor).T


def _held_out_loss(train: Tensor, test: Tensor, penalty: Tensor) -> Tensor:
    """Sum of squared errors [m] on the rows of `test` of the model fitted to the rows of `train`."""
    features = len(penalty)
    coefficients = _solve(train, penalty)
    cross, square = test[:features, features:], test.diagonal()[features:]
    fitted = (coefficients @ test[:features, :features] * coefficients).sum(1)
    return square - 2 * (coefficients * cross.T).sum(1) + fitted
