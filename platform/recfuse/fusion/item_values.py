"""A value per candidate in place of a vector that is drawn: the regressed effect of showing it (maths 5.9).

Effects are linear in a page's columns, and the columns are the fused predictions, so that the page of the largest
effect is that of the candidates with the largest B(s) · p. This is the formula `linear` with a vector that is a linear
function of the state: it serves, logs and explores as every other policy does.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recfuse.behaviours import Vocabulary
from recfuse.fusion.effects import Modifiers
from recfuse.fusion.policies import LinearGaussian

_TINY = 1e-12


def linear_vocabulary(vocabulary: Vocabulary) -> Vocabulary:
    """The same contexts and predictions under the formula `linear`; what a state says of the candidates, in terms of
    the other formula, is left out wherever it says something else too."""
    plain = vocabulary.replace(formula="linear", curves=None, action_range=None)
    size = vocabulary.context_size
    return plain.replace(candidate_features=None, state_size=size) if size else plain


def scene_columns(vocabulary: Vocabulary) -> tuple[int, ...] | None:
    """Columns of the state that are 1 in one scene of the vocabulary each, and else 0; None where it does not tell."""
    start = 0
    for feature in vocabulary.state_features:
        if feature.name == "scene" and vocabulary.scenes and set(vocabulary.scenes) <= set(feature.categories):
            return tuple(start + feature.categories.index(scene) for scene in vocabulary.scenes)
        start += feature.width
    return None


def without_scenes(effects: Tensor, modifiers: Modifiers, shares: Tensor) -> Tensor:
    """Effects [..., U, C, k] of a state that does not tell the scene: those of the scenes by their shares [scenes]."""
    result = effects.clone()
    scenes = slice(1, 1 + modifiers.scenes)
    result[..., 0, :, :] += torch.einsum("...sck,s->...ck", effects[..., scenes, :, :], shares.to(effects))
    result[..., scenes, :, :] = 0.0
    return result


def value_policy(effects: Tensor, worth: Tensor, modifiers: Modifiers, vocabulary: Vocabulary, state_mean: Tensor,
                 state_std: Tensor, reach: float, sigma: Tensor) -> LinearGaussian:
    """μ(s) = Σ_j w_j B_j(s), for `linear_vocabulary` of the vocabulary.

    Args:
        effects: [U, M, k], rows of the modifiers; worth: [k], of the objectives.
        state_mean, state_std: [S], by which modifiers are standardised, and then cut at ±reach.
        sigma: [M], of the exploration.
    """
    size = linear_vocabulary(vocabulary).state_size
    coefficients = (effects.double().cpu() @ worth.double().cpu()).numpy()
    mean, std = (moment.double().cpu().numpy()[:size] for moment in (state_mean, state_std))
    weights = np.zeros((size, coefficients.shape[1]))
    weights[:modifiers.numbers] = coefficients[1 + modifiers.scenes:]
    bias = coefficients[0].copy()
    for scene, column in enumerate(scene_columns(vocabulary) or ()):
        # A column of zeros and ones stays one of two numbers when it is standardised and cut.
        off, on = ((number - mean[column]) / std[column] for number in (0.0, 1.0))
        off, on = max(-reach, min(reach, off)), max(-reach, min(reach, on))
        slope = coefficients[1 + scene] / (on - off)
        weights[column] += slope
        bias -= slope * off
    return LinearGaussian(weights, bias, mean, std, reach, sigma.float().cpu().numpy())


def matched_sigma(is_open: Tensor, logged: tuple[Tensor, Tensor], sigma: Tensor,
                  served: tuple[Tensor, Tensor]) -> Tensor:
    """[M], the exploration around another policy's vectors that turns its rankings as far as the logged one's.

    Every prediction keeps its part of what exploration moves scores by, and that keeps its ratio to the spread of the
    scores themselves, both among the candidates of a request.

    Args:
        is_open: bool[n, N]; sigma: [n, M], of the logged policy.
        logged, served: terms [n, N, M] that vectors weigh, and the means of the vectors, [n, M].
    """
    (was, was_score), (now, now_score) = (
        (spread(terms, is_open), spread((terms * vectors.unsqueeze(1)).sum(2, keepdim=True), is_open))
        for terms, vectors in (logged, served))
    ratio = torch.where(now > _TINY, was / now.clamp(min=_TINY), 1.0)
    known = float(was_score) > _TINY and float(now_score) > _TINY
    return sigma.square().mean(0).sqrt() * ratio * (now_score / was_score if known else 1.0)


def spread(values: Tensor, is_open: Tensor) -> Tensor:
    """[k], root of the mean variance of values [n, N, k] among the open candidates of a request."""
    there = is_open.unsqueeze(2)
    count = there.sum(1, keepdim=True).clamp(min=1)
    mean = torch.where(there, values, 0.0).sum(1, keepdim=True) / count
    squares = torch.where(there, values - mean, 0.0).square().sum(1) / count[:, 0]
    return squares.mean(0).sqrt()
