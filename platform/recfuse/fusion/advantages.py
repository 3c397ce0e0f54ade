"""The advantage as a function of state and action, regressed from its samples.

A sampled advantage (maths 1.3) is unbiased but carries all that a single request happened to bring and whether its
session went on. Stage two exponentiates it, and the exponential of a noisy sample follows the noise: it spends the
effective sample size on luck. The optimum of maths 1.5 holds A(s, a) itself, its conditional expectation.

The model is A(s, a) = (W [1, s]) · a + aᵀ H a in standardised states and actions, whose gradients are the compatible
features of a Gaussian policy (Sutton et al., "Policy Gradient Methods for Reinforcement Learning with Function
Approximation", NeurIPS 1999). Ridge regression in closed form: one pass, no steps, the same on any number of workers.

Its memory grows with the second power of the columns and its time with the third, so that there is a budget of columns.
Above it, a wide state enters by its leading principal directions, and many actions by their squares alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import NoReturn

import torch
from torch import Tensor

from recfuse.config import InvalidFieldError
from recfuse.fusion.config import REGRESSION_COLUMNS

# Position of the first row, standardised state [n, S] and action [n, M], sampled advantage [n, m].
Chunk = tuple[int, Tensor, Tensor, Tensor]
FOLDS = 10
# Rows of a fold come in runs, so that most sessions lie within one fold.
RUN = 16
# Penalties of the constant, the state-dependent and the quadratic coefficients, in units of the samples' number. The
# first explains nothing by the action.
_OFF = 1e6
PENALTIES = ((_OFF, _OFF, _OFF), *itertools.product((1e-3,), (_OFF, 3.0, 1.0, 0.3, 0.1, 0.03, 0.003), (_OFF, 1e-3)))
# By how many standard errors over the folds a model must be better than the one without the action.
SIGNIFICANCE = 3.0
# Rows of wide terms that are in memory at a time.
_ROWS = 4096
# Of the subspace iteration that finds the principal directions.
_ITERATIONS, _OVERSAMPLING = 8, 10


@dataclass(frozen=True)
class Plan:
    """What a budget of columns leaves of the model.

    Attributes:
        states: width of the state as it enters; rank: that of its principal directions, None where it enters whole.
        actions: how many there are.
        squares_only: the products of two different actions are left out.
        whole: columns that the model without a budget has.
    """

    states: int
    actions: int
    rank: int | None
    squares_only: bool
    whole: int

    @property
    def columns(self) -> int:
        """How many it has."""
        return (1 + self.states) * (1 + self.actions) + self.quadratic

    @property
    def quadratic(self) -> int:
        """Of them products of two entries of the action."""
        return self.actions if self.squares_only else self.actions * (self.actions + 1) // 2

    def __str__(self) -> str:
        """What was cut; empty where nothing was."""
        parts = []
        if self.rank is not None:
            parts.append(f"the state enters by its {self.rank} leading principal directions" if self.rank else
                         "the state does not enter")
        if self.squares_only:
            parts.append("products of two different actions are left out")
        return " and ".join(parts)


def plan(states: int, actions: int, columns: int = REGRESSION_COLUMNS) -> Plan:
    """The model for states of width S and M actions within a budget of columns. What is always there is 1 + M columns,
    and the squares of the actions."""
    whole = (1 + states) * (1 + actions) + actions * (actions + 1) // 2
    if whole <= columns:
        return Plan(states, actions, None, False, whole)
    # The state is worth more than products of actions, so that these get no more than a quarter.
    squares_only = actions * (actions + 1) // 2 > columns // 4
    quadratic = actions if squares_only else actions * (actions + 1) // 2
    rank = max(0, (columns - quadratic) // (1 + actions) - 1)
    if rank >= states:
        return Plan(states, actions, None, squares_only, whole)
    return Plan(rank, actions, rank, squares_only, whole)


@dataclass(frozen=True)
class RegressedAdvantage:
    """A_j(s, a) of m behaviours.

    Attributes:
        coefficients: float64[m, (1 + S) · M + M (M + 1) / 2], of `action_terms`; fewer where a plan cuts them.
        explained_variance: float64[m], out of fold: the share of the samples' variance that the model explains.
        directions: [S, r], that the state enters by; None where it enters whole.
        squares_only: the products of two different actions are left out.
    """

    coefficients: Tensor
    explained_variance: Tensor
    directions: Tensor | None = None
    squares_only: bool = False

    def __call__(self, state: Tensor, action: Tensor) -> Tensor:
        """[n, m] for standardised states [n, S] and actions [n, M]."""
        coefficients = self.coefficients.to(state.dtype).T
        if self.directions is None and not self.squares_only:
            return action_terms(state, action) @ coefficients
        state = project(state, self.directions)
        parts = zip(state.split(_ROWS), action.split(_ROWS), strict=True)
        return torch.cat([action_terms(*part, self.squares_only) @ coefficients for part in parts])


def project(state: Tensor, directions: Tensor | None) -> Tensor:
    """States [n, S] along some directions [S, r]; as they are without any."""
    return state if directions is None else state @ directions.to(state)


def action_terms(state: Tensor, action: Tensor, squares_only: bool = False) -> Tensor:
    """[n, (1 + S) · M + M (M + 1) / 2]: [1, state] ⊗ action, then the products of two entries of the action; or their M
    squares alone."""
    base = torch.cat([action.new_ones(len(action), 1), state], 1)
    left, right = torch.triu_indices(action.shape[1], action.shape[1])
    if squares_only:
        left, right = left[left == right], left[left == right]
    return torch.cat([(base.unsqueeze(2) * action.unsqueeze(1)).flatten(1), action[:, left] * action[:, right]], 1)


def regress_advantage(chunks: Iterable[Chunk], folds: int = FOLDS,
                      columns: int = REGRESSION_COLUMNS) -> RegressedAdvantage:
    """Fits the model; how strongly it depends on the action, and on the state, is chosen per behaviour out of fold.

    Args:
        chunks: (position of the first row among all samples, standardised state [n, S], standardised action [n, M],
            sampled advantage [n, m]). Where the model does not fit into the budget they are read twice, so that they
            must be something that can be.
        folds: of the cross-validation.
        columns: the budget; see `plan`.

    A behaviour whose samples do not say significantly more with the action than without it gets zero, which leaves its
    policy where the logged one is.
    """
    iterator = iter(chunks)
    first = next(iterator, None)
    if first is None:
        return _too_few(0, folds)
    model = plan(first[1].shape[1], first[2].shape[1], columns)
    remaining: Iterable[Chunk] = itertools.chain([first], iterator)
    directions = None
    if model.rank is not None:
        if iterator is chunks:
            raise TypeError("chunks that can be read twice are needed for a state this wide, not an iterator")
        directions = principal_directions((chunk[1] for chunk in remaining), model.rank)
        remaining = chunks
    if str(model):
        remaining = _smaller(remaining, directions)
    grams: list[Tensor] = []
    for position, state, action, advantage in remaining:
        # The first columns, without the action, take up what the critics left of the state's value.
        constant = action.new_ones(len(action), 1)
        rows = torch.cat([constant, state, action_terms(state, action, model.squares_only), advantage], 1)
        fold = (torch.arange(position, position + len(rows), device=rows.device) // RUN) % folds
        parts = [rows[fold == index] for index in range(folds)]
        # Products of a chunk in its own precision, which takes half the time; their sum over the samples in double.
        products = [(part.T @ part).double() for part in parts]
        grams = [gram.add_(product) for gram, product in zip(grams, products, strict=True)] if grams else products
    counts = [int(gram[0, 0]) for gram in grams]
    if min(counts) == 0:
        return _too_few(sum(counts), folds)
    return replace(_select(grams, model), directions=directions, squares_only=model.squares_only)


def _too_few(rows: int, folds: int) -> NoReturn:
    raise InvalidFieldError("samples", rows, f"at least {folds * RUN} of them to regress the advantage on, or "
                                             "`advantage: sampled`")


def _smaller(chunks: Iterable[Chunk], directions: Tensor | None) -> Iterator[Chunk]:
    """Pieces of the chunks, whose terms do not take much memory, with projected states."""
    for position, *columns in chunks:
        for place, (state, action, advantage) in enumerate(zip(*(column.split(_ROWS) for column in columns),
                                                               strict=True)):
            yield position + place * _ROWS, project(state, directions), action, advantage


def principal_directions(states: Iterable[Tensor], rank: int) -> Tensor:
    """The directions [S, r] in which standardised states [n, S] vary most, orthonormal, by subspace iteration; the same
    states give the same ones."""
    moment: Tensor | None = None
    for state in states:
        product = (state.T @ state).double()
        moment = product if moment is None else moment.add_(product)
    assert moment is not None
    size = len(moment)
    generator = torch.Generator().manual_seed(0)
    width = min(size, rank + _OVERSAMPLING)
    basis = torch.randn(size, width, generator=generator, dtype=torch.float64).to(moment.device)
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(moment @ basis).Q
    _, vectors = torch.linalg.eigh(basis.T @ moment @ basis)
    return basis @ vectors.flip(1)[:, :rank]


def _select(grams: list[Tensor], model: Plan) -> RegressedAdvantage:
    total = functools.reduce(torch.add, grams)
    actions = model.actions
    first = 1 + model.states
    quadratic = first + first * actions
    terms = slice(first, quadratic + model.quadratic)
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
