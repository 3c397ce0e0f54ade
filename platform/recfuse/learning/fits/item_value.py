"""Candidates ranked by their own regressed value, under floors: the user-item level of a reward model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from recfuse.fusion.effects import coefficients_of
from recfuse.fusion.item_values import matched_sigma, scene_columns, without_scenes
from recfuse.fusion.replay import page_features
from recfuse.learning.algorithms.item_value import ItemValueConfig
from recfuse.learning.context import Context
from recfuse.learning.metrics import LOSS, Metrics
from recfuse.learning.page_effects import Objective, mean_effects
from recfuse.learning.phases import Phase
from recfuse.learning.replay import ReplayRows
from recfuse.learning.replay_policy import BEHAVIOUR_EFFECT, EFFECT, MULTIPLIER, ascend, replay_rows
from recfuse.learning.replay_settings import ReplaySettings
from recfuse.learning.settings import StoppingRule


@torch.no_grad()
def fit_multipliers(context: Context[ItemValueConfig], rng: np.random.Generator, iteration: int) -> Metrics:
    """Dual ascent: the values of either half of the users rank for the other half, whose effects judge."""
    module, settings, logged = context.module, context.settings, replay_rows(context)
    rows = linear_rows(logged)
    if scene_columns(context.vocabulary) is None:
        shares = rows.modifiers[:, 1 : 1 + module.modifiers.scenes].mean(0)
        for effects in (module.page_effects, module.half_effects):
            effects.copy_(without_scenes(effects, module.modifiers, shares))
    judged = _Judged([rows[rows.fold % 2 == side] for side in (0, 1)], module.half_effects.cpu().double())
    objective = settings.replay_objective(context.vocabulary)
    multipliers = ascended(judged, objective, settings.replay, settings.ascent_steps)
    worth = worth_of(multipliers)
    module.multipliers.copy_(multipliers)
    vectors = _vectors(rows, module.page_effects.cpu().double() @ worth)
    module.vector_std.copy_(matched_sigma(rows.candidates.open, (logged.candidates.terms, logged.mu), logged.sigma,
                                          (rows.candidates.terms, vectors)))
    found = judged(worth)
    return {LOSS: -objective.score(found.unsqueeze(0))[0], EFFECT: found[0], BEHAVIOUR_EFFECT: found[1:],
            MULTIPLIER: multipliers}


def ascended(judged: Callable[[Tensor], Tensor], objective: Objective, settings: ReplaySettings, steps: int) -> Tensor:
    """Multipliers float64[|S|] with which no effect falls short of its floor, as far as multipliers can."""
    floors = objective.floors[1:]
    multipliers, kept = torch.zeros_like(floors), list[Tensor]()
    # Values follow their multipliers at once, so that a part in proportion would overshoot.
    summing = settings.replace(dual_gain=0.0)
    for _ in range(steps):
        kept.append(multipliers)
        _, multipliers = ascend(multipliers, floors - judged(worth_of(multipliers))[1:], summing)
    # Pages change in steps, so that multipliers go round the answer, which is their mean once they have reached it.
    return torch.stack(kept[len(kept) // 2 :]).mean(0)


def worth_of(multipliers: Tensor) -> Tensor:
    """[1 + |S|], of the effects in a value: 1 for the long-term one."""
    return torch.cat([multipliers.new_ones(1), multipliers])


@dataclass(frozen=True)
class _Judged:
    """Mean effects float64[k] of what values show, given what every effect is worth in them.

    Attributes:
        rows: of either half of the users; effects: float64[2, U, M, k], by either half.
    """

    rows: list[ReplayRows]
    effects: Tensor

    def __call__(self, worth: Tensor) -> Tensor:
        first, second = (_effects_of(self.rows[1 - side], self.effects[side] @ worth, self.effects[1 - side])
                         for side in (0, 1))
        return (first + second) / 2


def linear_rows(rows: ReplayRows) -> ReplayRows:
    """The same requests, whose vectors weigh the predictions themselves."""
    columns = rows.candidates.columns[..., : rows.mu.shape[1]]
    return replace(rows, candidates=replace(rows.candidates, terms=columns))


def _vectors(rows: ReplayRows, values: Tensor) -> Tensor:
    """[n, M], the values of a prediction in every request, of values [U, M] by modifier."""
    return coefficients_of(values.unsqueeze(2), rows.modifiers)[:, :, 0]


def _effects_of(rows: ReplayRows, values: Tensor, effects: Tensor) -> Tensor:
    """Mean effects float64[k] of the pages that values show."""
    shown = page_features(rows.candidates, _vectors(rows, values).unsqueeze(1), rows.attention)
    return mean_effects(rows, shown, effects)[0]


VALUES: Phase = Phase(name="values", seed=18, rule=lambda _: StoppingRule(iterations=1), search=fit_multipliers)
