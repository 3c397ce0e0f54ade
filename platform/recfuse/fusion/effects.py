"""What a page brings, regressed on what the vector showed beyond what the logged policy would have (maths 5.3).

The regressors are centred replay features, f(s, a) − E f(s, a′), which the exploration alone decides: whatever depends
on the state alone, as rich pools and heavy users do, cannot pass for an effect of the vector (Robinson,
"Root-N-Consistent Semiparametric Regression", Econometrica 1988; Nie and Wager, "Quasi-Oracle Estimation of
Heterogeneous Treatment Effects", Biometrika 2021, with a known propensity). Everything is kept as sums of products by
fold, so that the same pass gives the model of all users, of either half of them, and of all but one fold.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recfuse.config import require

# The largest explains nothing.
_OFF = 1e9
# Penalties of the common coefficients, of what a scene has of its own, and of what depends on the state; in units of
# the rows' number.
PENALTIES = (*itertools.product((1e-3,), (1e-2, 1.0, _OFF), (0.03, 0.3, 3.0, 30.0, _OFF)), (_OFF, _OFF, _OFF))
FOLDS = 20
# Folds are joined to so many for the choice of the penalties.
_GROUPS = 5
# A symmetric product in so many blocks a side takes two thirds of its time.
_BLOCKS = 3


@dataclass(frozen=True)
class Modifiers:
    """What the effect of a column may depend on: 1, the scene (one-hot), numbers of the state.

    Attributes:
        scenes, numbers: how many.
    """

    scenes: int
    numbers: int

    @property
    def width(self) -> int:
        """Of all."""
        return 1 + self.scenes + self.numbers

    def of(self, scene: Tensor, numbers: Tensor) -> Tensor:
        """[n, width] of scenes int64[n] and numbers [n, D], standardised."""
        one_hot = torch.nn.functional.one_hot(scene, self.scenes).to(numbers.dtype)
        return torch.cat([numbers.new_ones(len(numbers), 1), one_hot, numbers], 1)

    def penalty(self, chosen: tuple[float, float, float], features: int, constants: int) -> Tensor:
        """[constants + width · C], of a choice of PENALTIES; the constants are hardly penalised."""
        tiers = [chosen[0]] * features + [chosen[1]] * self.scenes * features + [chosen[2]] * self.numbers * features
        # Sums in single precision are no better than this; modifiers that add up to others would be singular.
        return torch.tensor([1e-5] * constants + tiers, dtype=torch.float64)


@dataclass(frozen=True)
class EffectModel:
    """A(s, a) = B(s) · f̃(s, a) of k targets, B(s) = Σ_u m_u(s) B_u.

    Attributes:
        coefficients: float64[U, C, k], a row for each modifier.
        explained_variance: float64[k], out of fold; 0 where the regression explains nothing.
        penalties: chosen per target, positions in PENALTIES.
    """

    coefficients: Tensor
    explained_variance: Tensor
    penalties: tuple[int, ...]

    def __call__(self, features: Tensor, modifiers: Tensor) -> Tensor:
        """[n, k] of centred features [n, C] of requests with these modifiers, [n, U]."""
        return torch.bmm(features.unsqueeze(1), coefficients_of(self.coefficients, modifiers).to(features))[:, 0]


def coefficients_of(effects: Tensor, modifiers: Tensor) -> Tensor:
    """B(s) of every request, [n, C, k], from effects [U, C, k] and modifiers [n, U]."""
    return (modifiers @ effects.to(modifiers).flatten(1)).unflatten(1, effects.shape[1:])


@dataclass(frozen=True)
class EffectSums:
    """Sums of products over the rows of every fold, from which models of any folds follow.

    Attributes:
        grams: float64[folds, q, q], q = U + U · C + k: modifiers, their products with the centred features, targets.
        modifiers: what effects may depend on.
        features, targets: how many there are.
    """

    grams: Tensor
    modifiers: Modifiers
    features: int
    targets: int

    @classmethod
    def zeros(cls, modifiers: Modifiers, features: int, targets: int, folds: int = FOLDS) -> EffectSums:
        """Sums over nothing."""
        width = modifiers.width * (1 + features) + targets
        return cls(torch.zeros(folds, width, width, dtype=torch.float64), modifiers, features, targets)

    def add(self, features: Tensor, modifiers: Tensor, targets: Tensor, fold: Tensor) -> None:
        """Adds rows.

        Args:
            features: [n, C], centred; modifiers: [n, U]; fold: int64[n]; a user's rows lie in one fold.
            targets: [n, k].
        """
        for index in fold.unique().tolist():
            rows = (fold == index).nonzero()[:, 0]
            some, regressors = modifiers[rows], features[rows]
            products = (some.unsqueeze(2) * regressors.unsqueeze(1)).flatten(1)
            design = torch.cat([some, products, targets[rows].to(features.dtype)], 1)
            # In single precision, which takes half the time; their sum over the samples in double.
            self.grams[index] += _gram(design).double().cpu()

    @property
    def folds(self) -> int:
        """How many there are."""
        return len(self.grams)

    @property
    def rows(self) -> int:
        """Of all folds."""
        return int(self.grams[:, 0, 0].sum())

    def fit(self, folds: Sequence[int] | None = None, like: EffectModel | None = None) -> EffectModel:
        """The model of some folds, or of all; how strongly it is shrunk is chosen per target out of fold, or is that of
        another model.

        Raises:
            InvalidFieldError: fewer than two folds with rows.
        """
        chosen = [index for index in (range(self.folds) if folds is None else folds) if self.grams[index, 0, 0] > 0]
        require(len(chosen) >= 2, "samples", self.rows, "users in at least two folds, to regress effects on replay")
        total = self.grams[chosen].sum(0)
        scale = self._scale(total)
        if like is not None:
            picked = self._pick(total * scale.outer(scale), like.penalties)
            return EffectModel(self._unscaled(picked, scale), like.explained_variance, like.penalties)
        groups = [self.grams[chosen[start::_GROUPS]].sum(0) for start in range(min(_GROUPS, len(chosen)))]
        scaled = [gram * scale.outer(scale) for gram in groups]
        whole = total * scale.outer(scale)
        losses = torch.stack([
            torch.stack([self._held_out_loss(whole - gram, gram, index) for gram in scaled]).sum(0)
            for index in range(len(PENALTIES))])
        best = losses.min(0)
        nothing = losses[-1]
        explained = ((nothing - best.values) / nothing.clamp(min=1e-300)).clamp(min=0.0)
        penalties = tuple(torch.where(explained > 0, best.indices, len(PENALTIES) - 1).tolist())
        return EffectModel(self._unscaled(self._pick(whole, penalties), scale), explained, penalties)

    def less(self, parts: Mapping[int, tuple[int, float]]) -> EffectSums:
        """The sums with what is left of some targets: less a coefficient times a centred feature.

        Args:
            parts: target → the feature, and its coefficient in every state.
        """
        grams = self.grams.clone()
        for target, (feature, coefficient) in parts.items():
            row, column = self.modifiers.width + feature, self._terms + target
            grams[:, :, column] -= coefficient * grams[:, :, row]
            grams[:, column] -= coefficient * grams[:, row]
        return replace(self, grams=grams)

    def slope(self, feature: int, target: int, folds: Sequence[int] | None = None) -> tuple[float, float]:
        """Slope of a target on one centred feature, over all states, and its error by the jackknife over folds."""
        chosen = list(range(self.folds) if folds is None else folds)
        row, column = self.modifiers.width + feature, self._terms + target
        square, product = self.grams[chosen, row, row], self.grams[chosen, row, column]
        if not square.sum() > 0:
            return 0.0, float("inf")
        left = (product.sum() - product) / (square.sum() - square).clamp(min=1e-300)
        return float(product.sum() / square.sum()), float(jackknife_error(left))

    @property
    def _terms(self) -> int:
        return self.modifiers.width * (1 + self.features)

    def _scale(self, total: Tensor) -> Tensor:
        """Of the columns: every feature in units of its standard deviation, whatever modifies it."""
        first = self.modifiers.width
        deviation = (total.diagonal()[first : first + self.features] / total[0, 0].clamp(min=1.0)).sqrt()
        inverse = torch.where(deviation > 1e-300, 1.0 / deviation.clamp(min=1e-300), torch.zeros_like(deviation))
        scale = torch.ones(len(total), dtype=total.dtype)
        scale[first : self._terms] = inverse.repeat(first)
        return scale

    def _unscaled(self, picked: Tensor, scale: Tensor) -> Tensor:
        first = self.modifiers.width
        return (picked * scale[: self._terms, None])[first:].reshape(first, self.features, self.targets)

    def _solve(self, gram: Tensor, penalties: int) -> Tensor:
        """Ridge coefficients [terms, k]."""
        penalty = self.modifiers.penalty(PENALTIES[penalties], self.features, self.modifiers.width)
        terms, kept = len(penalty), (penalty < _OFF).nonzero()[:, 0]  # the others are 0
        left = gram[:terms, :terms] if len(kept) == terms else gram[kept][:, kept]
        factor = torch.linalg.cholesky(left + torch.diag(penalty[kept] * gram[0, 0].clamp(min=1.0)))
        result = gram.new_zeros(terms, self.targets)
        result[kept] = torch.cholesky_solve(gram[kept, terms:], factor)
        return result

    def _pick(self, gram: Tensor, penalties: Sequence[int]) -> Tensor:
        solutions = {index: self._solve(gram, index) for index in set(penalties)}
        return torch.stack([solutions[index][:, target] for target, index in enumerate(penalties)], 1)

    def _held_out_loss(self, train: Tensor, test: Tensor, penalties: int) -> Tensor:
        """Sum of squared errors [k] on `test` of the model of `train`."""
        coefficients, terms = self._solve(train, penalties), self._terms
        cross = (coefficients * test[:terms, terms:]).sum(0)
        fitted = (coefficients * (test[:terms, :terms] @ coefficients)).sum(0)
        return test.diagonal()[terms:] - 2 * cross + fitted


def _gram(rows: Tensor) -> Tensor:
    """XᵀX of rows [n, q]: blocks below the diagonal, and their mirror images."""
    width = rows.shape[1]
    result = rows.new_empty(width, width)
    for block in range(_BLOCKS):
        first, end = width * block // _BLOCKS, width * (block + 1) // _BLOCKS
        result[first:end, :end] = rows[:, first:end].T @ rows[:, :end]
        result[:first, first:end] = result[first:end, :first].T
    return result


def jackknife_error(left: Tensor) -> Tensor:
    """Standard error [...] of what was estimated without each of g groups, [g, ...] (Efron and Stein, 1981)."""
    groups = len(left)
    return ((groups - 1) / groups * (left - left.mean(0)).square().sum(0)).sqrt()
