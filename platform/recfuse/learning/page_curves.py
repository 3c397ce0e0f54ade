"""Monotone curves of predictions, regressed on what pages showed of them (maths 5.10)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from recfuse.fusion.effects import EffectSums, Modifiers
from recfuse.fusion.item_values import spread
from recfuse.fusion.monotone import MonotoneCurves, basis_of, curves_of, knots_of, non_negative
from recfuse.fusion.replay import attention_of, expected_features, features_of_shown, terms_of
from recfuse.learning.columns import chunks
from recfuse.learning.context import Context
from recfuse.learning.critics import one_step_advantages
from recfuse.learning.replay import Layout, ReplayRows, candidates_of, fold_of, noise_of
from recfuse.learning.replay_settings import ReplaySettings

# How strongly rises are held to those of the logged formula, in units of their own information; the last leaves these.
_PENALTIES = (0.01, 0.1, 1.0, 10.0, float("inf"))
_GROUPS = 5
# Columns of so many requests are in memory at a time.
_ROWS = 4096
_RIDGE = 1e-6


def knots_of_rows(rows: ReplayRows, knots: int) -> Tensor:
    """float64[M, Q], knots at the quantiles of the open candidates' predictions."""
    width = rows.mu.shape[1]
    return knots_of(rows.candidates.columns[..., :width][rows.candidates.open].cpu(), knots)


def measure_curves(context: Context[Any], x: Tensor) -> EffectSums:
    """Sums of the regression of what came on what was shown of every basis function, beyond what was expected."""
    settings: ReplaySettings = context.settings.replay
    layout, x = Layout.of(context.vocabulary), x.float().to(context.device)
    sums = EffectSums.zeros(Modifiers(0, 0), x.shape[0] * (x.shape[1] - 1), len(context.vocabulary.behaviours))
    noise = noise_of(context.vocabulary, settings.draws, context.settings.seed).to(context.device)
    decay = float(context.module.attention_decay)
    for _, chunk in chunks(context.windows):
        for start in range(0, len(chunk["done"]), _ROWS):
            part = {name: column[start : start + _ROWS] for name, column in chunk.items()}
            candidates = candidates_of(part, context.vocabulary)
            basis = basis_of(candidates.columns[..., : len(x)], x).flatten(2)
            candidates = candidates.with_columns(basis * candidates.open.unsqueeze(2))
            weights = attention_of(decay, part["shown"].shape[1], noise)
            features = features_of_shown(candidates, part["shown"].long(), weights)
            features = features - expected_features(candidates, part["mu"], part["sigma"], noise, weights)
            targets = part["feedback"].clone()
            targets[:, list(layout.long)] = one_step_advantages(context, part)[:, list(layout.long)]
            sums.add(features, features.new_ones(len(features), 1), targets, fold_of(part["user"]))
    return sums


def fitted_curves(context: Context[Any], sums: EffectSums, x: Tensor, rows: ReplayRows) -> MonotoneCurves:
    """The curve of every prediction: that of its own behaviour where there is one, else of the long-term behaviours;
    each as steep, among the candidates of a request, as what the logged formula weighs."""
    vocabulary, layout = context.vocabulary, Layout.of(context.vocabulary)
    shape = terms_of(x.unsqueeze(0), vocabulary)[0].diff(dim=1).clamp(min=0.0)
    shape = shape / shape.sum(1, keepdim=True).clamp(min=1e-12)
    behaviour = {column: place for place, column in layout.own.items()}
    total = sum(each.weight for each in vocabulary.long_term)
    shares = torch.tensor([each.weight / total if each.kind == "long_term" else 0.0 for each in vocabulary.behaviours],
                          dtype=torch.float64)
    rises = []
    for prediction in range(len(x)):
        own = behaviour.get(prediction)
        target = shares if own is None else torch.eye(len(shares), dtype=torch.float64)[own]
        rises.append(fit_rises(_grams(sums, shape, prediction, target), shape[prediction]))
    curves = curves_of(x, torch.stack(rises))
    predictions, is_open = rows.candidates.columns[..., : len(x)].cpu(), rows.candidates.open.cpu()
    factor = spread(rows.candidates.terms.cpu(), is_open) / spread(curves(predictions), is_open).clamp(min=1e-12)
    return MonotoneCurves(x, curves.y * factor.double().unsqueeze(1))


def _grams(sums: EffectSums, shape: Tensor, prediction: int, target: Tensor) -> Tensor:
    """float64[groups, q, q] by groups of folds: the prediction's own basis functions, the other predictions in the
    logged formula's shape, a constant, the target."""
    width, size = shape.shape
    features = width * size
    picks = torch.zeros(sums.grams.shape[1], size + width + 1, dtype=torch.float64)
    for q in range(size):
        picks[1 + prediction * size + q, q] = 1.0
    others = [other for other in range(width) if other != prediction]
    for place, other in enumerate(others):
        picks[1 + other * size : 1 + (other + 1) * size, size + place] = shape[other]
    picks[0, size + width - 1] = 1.0
    picks[1 + features :, size + width] = target
    filled = [index for index in range(sums.folds) if sums.grams[index, 0, 0] > 0]
    groups = [sums.grams[filled[start::_GROUPS]].sum(0) for start in range(min(_GROUPS, len(filled)))]
    return torch.stack([picks.T @ group @ picks for group in groups])


def fit_rises(grams: Tensor, shape: Tensor) -> Tensor:
    """Rises float64[Q − 1] ≥ 0 between the knots, held to a multiple of the shape; out of fold is decided how strongly.

    Args:
        grams: float64[groups, q, q], products of own basis functions, others, target, over the rows of each group.
        shape: float64[Q − 1] ≥ 0. It is returned where the target does not rise with it.
    """
    size, total = len(shape), grams.sum(0)
    losses = torch.zeros(len(_PENALTIES), dtype=torch.float64)
    for held in grams:
        own, moment, residual = _partialled(total - held, size)
        gram = residual.T @ held @ residual
        for index, penalty in enumerate(_PENALTIES):
            rises = _penalised(own, moment, shape, penalty)
            losses[index] += rises @ gram[:size, :size] @ rises - 2 * rises @ gram[:size, size]
    own, moment, _ = _partialled(total, size)
    # Of equal ones the last, which keeps closest to the shape.
    best = len(_PENALTIES) - 1 - int(losses.flip(0).argmin())
    rises = _penalised(own, moment, shape, _PENALTIES[best])
    return rises if float(rises.sum()) > 0 else shape


def _partialled(gram: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Products of own basis functions with one another [size, size] and with the target [size], both less what the
    others say of them; and the map [q, size + 1] to those residuals."""
    others = gram[size:-1, size:-1]
    scale = others.diagonal().clamp(min=1e-12)
    held = torch.linalg.solve(others + _RIDGE * torch.diag(scale), gram[size:-1])
    residual = torch.zeros(len(gram), size + 1, dtype=gram.dtype)
    residual[:size, :size] = torch.eye(size, dtype=gram.dtype)
    residual[-1, size] = 1.0
    residual[size:-1, :size], residual[size:-1, size] = -held[:, :size], -held[:, -1]
    left = residual.T @ gram @ residual
    return left[:size, :size], left[:size, size], residual


def _penalised(gram: Tensor, moment: Tensor, shape: Tensor, penalty: float) -> Tensor:
    slope = (shape @ moment / (shape @ gram @ shape).clamp(min=1e-12)).clamp(min=0.0)
    if penalty == float("inf"):
        return slope * shape
    held = penalty * gram.diagonal().clamp(min=1e-12 * float(gram.diagonal().max().clamp(min=1e-12)))
    return non_negative(gram + torch.diag(held), moment + held * slope * shape)
