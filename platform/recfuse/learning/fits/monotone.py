"""One vector over learned monotone curves of the predictions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from recfuse.fusion.item_values import matched_sigma
from recfuse.fusion.replay import page_features
from recfuse.learning.algorithms.monotone import MonotoneConfig
from recfuse.learning.context import Context
from recfuse.learning.metrics import LOSS, Metrics
from recfuse.learning.page_curves import fitted_curves, knots_of_rows, measure_curves
from recfuse.learning.page_effects import best_vector, mean_effects
from recfuse.learning.phases import Phase
from recfuse.learning.replay_policy import VECTOR_BEHAVIOUR_EFFECT, VECTOR_EFFECT, replay_rows
from recfuse.learning.settings import StoppingRule


@torch.no_grad()
def fit_curves_and_vector(context: Context[MonotoneConfig], rng: np.random.Generator, iteration: int) -> Metrics:
    """Regresses the curves on all samples, then searches the vector on replay."""
    module, logged = context.module, replay_rows(context)
    x = knots_of_rows(logged, context.settings.knots)
    curves = fitted_curves(context, measure_curves(context, x), x, logged)
    module.curve_x.copy_(curves.x)
    module.curve_y.copy_(curves.y)
    columns = logged.candidates.columns
    terms = curves.to(columns.device)(columns[..., : len(x)]).to(columns.dtype)
    rows = replace(logged, candidates=replace(logged.candidates, terms=terms))
    objective, effects = context.settings.replay_objective(context.vocabulary), module.page_effects.cpu()
    vector = torch.from_numpy(best_vector(rows, effects, objective, int(rng.integers(1 << 31)))).to(terms)
    module.vector_mean.copy_(vector)
    module.vector_std.copy_(matched_sigma(rows.candidates.open, (logged.candidates.terms, logged.mu), logged.sigma,
                                          (terms, vector.expand_as(logged.mu))))
    value = mean_effects(rows, page_features(rows.candidates, vector.unsqueeze(0), rows.attention), effects)
    return {LOSS: -objective.score(value)[0], VECTOR_EFFECT: value[0, 0], VECTOR_BEHAVIOUR_EFFECT: value[0, 1:]}


CURVES: Phase = Phase(name="curves", seed=19, rule=lambda _: StoppingRule(iterations=1), search=fit_curves_and_vector)
