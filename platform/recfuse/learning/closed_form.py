"""Stage two in the closed form of its constraints (Cai et al. 2023), with several vectors a state (maths 5.6).

Vectors are drawn from the logged policy in every state, replay says what each of them would have brought, and their
weights have the sum 1 in the state. How far the policy goes from the auxiliary policies, the temperature Λ, is chosen
by replay on users whom neither the effects nor the weights have seen.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from recfuse.fusion.effects import coefficients_of
from recfuse.fusion.losses import state_weights
from recfuse.fusion.networks import gaussian_kl, log_density
from recfuse.fusion.replay import page_features
from recfuse.learning.context import Context
from recfuse.learning.gradients import Batch
from recfuse.learning.metrics import LOSS, Metric, Metrics
from recfuse.learning.phases import Phase, PhaseLoss
from recfuse.learning.replay import COLUMNS, ReplayRows
from recfuse.learning.replay_policy import (
    KL,
    judge_policy,
    passes,
    replay_rows,
    start_policy,
    values_of,
    with_some_steps,
)
from recfuse.learning.stopping import StoppingRule

# Vectors a state.
VECTORS = 16
# The temperature Λ in standard deviations of the long-term effect over the vectors of a state.
GRID = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
CHOSEN, EFFECT = Metric("lambda_total"), Metric("effect")


def lambdas_of(context: Context[Any], like: Tensor) -> Tensor:
    """[k], multipliers of the vocabulary, with the sum that was chosen; one where the behaviours share a policy."""
    given = torch.tensor([behaviour.multiplier for behaviour in context.vocabulary.short_term])
    if len(context.module.auxiliaries.names) == 1:
        given = given.sum(0, keepdim=True)
    return (given / given.sum()).to(like) * context.module.lambda_total.to(like)


@torch.no_grad()
def _weights(context: Context[Any], state: Tensor, mu: Tensor, sigma: Tensor, actions: Tensor, effect: Tensor,
             lambdas: Tensor) -> Tensor:
    """[n, K] of actions [n, K, M] with long-term effects [n, K]."""
    logged = log_density(actions, mu.unsqueeze(1), sigma.log().unsqueeze(1))
    means, log_sigmas = context.module.auxiliaries(state)
    learned = log_density(actions.unsqueeze(2), means.unsqueeze(1), log_sigmas.unsqueeze(1))
    return state_weights(learned - logged.unsqueeze(2), effect, lambdas)


def _standardised(effect: Tensor) -> Tensor:
    centred = effect - effect.mean(1, keepdim=True)
    return centred / centred.square().mean().sqrt().clamp(min=1e-12)


def _draw(mu: Tensor, sigma: Tensor, noise: Tensor) -> Tensor:
    return mu.unsqueeze(1) + sigma.unsqueeze(1) * noise


@torch.no_grad()
def choose_total(context: Context[Any], rng: np.random.Generator, iteration: int) -> Metrics:
    """The temperature Λ by replay on the other half of the users: the best long-term effect among those that keep the
    floors, or the one that lacks least."""
    module, rows = context.module, replay_rows(context)
    other = rows[rows.fold % 2 == 1]
    noise = torch.from_numpy(rng.standard_normal((len(other), VECTORS, other.mu.shape[1])).astype(np.float32))
    actions = _draw(other.mu, other.sigma, noise.to(other.mu))
    features = page_features(other.candidates, actions, other.attention)
    effect = _standardised(_effect(other, features, module.half_effects[0])[:, :, 0])
    judged = _effect(other, features - other.base.unsqueeze(1), module.half_effects[1])
    objective = context.settings.replay_objective(context.vocabulary)
    scores = []
    for total in GRID:
        module.lambda_total.fill_(total)
        weights = _weights(context, other.state, other.mu, other.sigma, actions, effect, lambdas_of(context, effect))
        value = (weights.unsqueeze(2) * judged).sum(1).double().mean(0).cpu()
        scores.append(float(objective.score(value.unsqueeze(0))[0]))
    best = int(np.argmax(scores))
    module.lambda_total.fill_(GRID[best])
    return {LOSS: torch.tensor(-scores[best]), CHOSEN: module.lambda_total.clone(), EFFECT: torch.tensor(scores[best])}


def _effect(rows: ReplayRows, features: Tensor, effects: Tensor) -> Tensor:
    """[n, K, k] of features [n, K, C]."""
    return torch.bmm(features, coefficients_of(effects, rows.modifiers))


def draw_vectors(context: Context[Any], rng: np.random.Generator, rows: int) -> Batch:
    """`noise` [n, K, M]."""
    size = (rows, VECTORS, context.vocabulary.action_size)
    return {"noise": torch.from_numpy(rng.standard_normal(size).astype(np.float32))}


def closed_form_loss(context: Context[Any], batch: Batch) -> PhaseLoss:
    """−Σ_k w_k log π(a_k|s), in the mean over the states."""
    actions = _draw(batch["mu"], batch["sigma"], batch["noise"])
    with torch.no_grad():
        values = values_of(context, batch, actions, context.module.page_effects, page_features)
        effect = _standardised(values[:, :, 0])
    weights = _weights(context, batch["state"], batch["mu"], batch["sigma"], actions, effect,
                       lambdas_of(context, effect))
    mu, log_sigma = context.module.policy(batch["state"])
    log_prob = log_density(actions, mu, log_sigma)
    divergence = gaussian_kl(mu[:, 0], log_sigma[:, 0], batch["mu"], batch["sigma"].log())
    return PhaseLoss(-(weights * log_prob).sum(1).mean(), {KL: divergence.mean().detach()})


CHOOSE_TOTAL: Phase = Phase(name="multipliers", seed=15, rule=lambda _: StoppingRule(iterations=1),
                            search=choose_total)
CLOSED_FORM: Phase = with_some_steps(Phase(
    name="stage_two", seed=16, rule=passes, columns=COLUMNS, networks=("policy",),
    loss=closed_form_loss, begin=start_policy, draw=draw_vectors, judge=judge_policy))
