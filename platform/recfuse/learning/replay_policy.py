"""Policies learned on replay, as phases: effects and the one vector, a policy per behaviour, the long-term policy under
floors, and whether it is better than the vector (maths 5.5 to 5.7)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from recfuse.fusion.attention import Attention
from recfuse.fusion.effects import FOLDS, EffectModel, coefficients_of, jackknife_error
from recfuse.fusion.networks import gaussian_kl
from recfuse.fusion.replay import Candidates, attention_of, page_features, relaxed_features
from recfuse.learning.context import Context
from recfuse.learning.gradients import Batch
from recfuse.learning.metrics import LOSS, Metric, Metrics, Per
from recfuse.learning.page_effects import RelativeEffects, best_vector, mean_effects, relative_effects
from recfuse.learning.phases import Phase, PhaseLoss, Step
from recfuse.learning.replay import (
    COLUMNS,
    Measured,
    ReplayRows,
    candidates_of,
    estimate_attention,
    fold_of,
    gather,
    measure,
)
from recfuse.learning.replay_settings import ReplaySettings, slope_priors
from recfuse.learning.stopping import StoppingRule

if TYPE_CHECKING:
    from recfuse.learning.module import FusionPolicyModule

EFFECT = Metric("effect")
BEHAVIOUR_EFFECT = Metric("effect", Per.SHORT_TERM)
VECTOR_EFFECT, VECTOR_BEHAVIOUR_EFFECT = Metric("vector_effect"), Metric("vector_effect", Per.SHORT_TERM)
MULTIPLIER, KL = Metric("multiplier", Per.SHORT_TERM), Metric("kl")
AUXILIARY_KL = Metric("kl", Per.AUXILIARY)
SLOPE, SLOPE_USED = Metric("slope", Per.SHORT_TERM), Metric("slope_used", Per.SHORT_TERM)
EXPLAINED, DECAY = Metric("replay_explained"), Metric("attention")
GAIN, GAIN_ERROR, GAIN_LOWER = Metric("gain"), Metric("gain_error"), Metric("gain_lower")
PUBLISHES_VECTOR = Metric("publishes_vector")
# Folds of users whose replay dual ascent looks at, and whose samples no policy climbs on; an even number of folds of
# either half of the users.
_WATCHED = tuple(range(0, FOLDS, 5))
# Steps from one move of the multipliers to the next.
_STEPS_PER_ASCENT = 4


def measured(context: Context[Any]) -> Measured:
    """What the log says of its pages, computed once."""
    settings: ReplaySettings = context.settings.replay

    def compute() -> Measured:
        return measure(context, settings.draws, estimate_attention(context))

    return context.memory.once("measured", ("critics",), compute)


def replay_rows(context: Context[Any]) -> ReplayRows:
    """The requests that vectors and multipliers are judged on, computed once."""
    settings: ReplaySettings = context.settings.replay
    decay = Attention(float(context.module.attention_decay), 0.0)
    return context.memory.once("replay_rows", ("attention",),
                               lambda: gather(context, settings.requests, decay))


def _effects(context: Context[Any], folds: list[int] | None = None,
             like: EffectModel | None = None) -> RelativeEffects:
    vocabulary = context.vocabulary
    prior = slope_priors(context.settings.replay, vocabulary)
    return relative_effects(measured(context), vocabulary, context.rewards.units, prior, folds, like)


def half(odd: int) -> list[int]:
    """The even or the odd folds of users."""
    return list(range(odd, FOLDS, 2))


@torch.no_grad()
def fit_effects(context: Context[Any], rng: np.random.Generator, iteration: int) -> Metrics:
    """Regresses the effects, on all users and on either half of them, and searches the one vector by each."""
    module, settings = context.module, context.settings
    found = measured(context)
    module.attention_decay.fill_(found.attention.decay)
    context.memory.forget(("attention",))
    rows, seed = replay_rows(context), int(rng.integers(1 << 31))
    whole, objective = _effects(context), settings.replay_objective(context.vocabulary)
    module.page_effects.copy_(whole.coefficients)
    module.vector_mean.copy_(torch.from_numpy(best_vector(rows, whole.coefficients, objective, seed)))
    for side in (0, 1):
        effects = _effects(context, half(side)).coefficients
        module.half_effects[side].copy_(effects)
        module.half_vectors[side].copy_(torch.from_numpy(
            best_vector(rows[rows.fold % 2 == side], effects, objective, seed)))
    value = mean_effects(rows, _shown_by(rows, module.vector_mean), whole.coefficients)
    return {LOSS: -objective.score(value)[0], VECTOR_EFFECT: value[0, 0], VECTOR_BEHAVIOUR_EFFECT: value[0, 1:],
            SLOPE: torch.tensor(whole.slopes.log), SLOPE_USED: torch.tensor(whole.slopes.used),
            EXPLAINED: whole.model.explained_variance[0], DECAY: module.attention_decay.detach().clone()}


def _shown_by(rows: ReplayRows, vector: Tensor) -> Tensor:
    """[n, 1, C], of the pages that one vector shows."""
    return page_features(rows.candidates, vector.to(rows.state).unsqueeze(0), rows.attention)


def draw_noise(context: Context[Any], rng: np.random.Generator, rows: int) -> Batch:
    """`noise` [n, M] of the actions that policies are climbed with."""
    return {"noise": torch.from_numpy(rng.standard_normal((rows, context.vocabulary.action_size)).astype(np.float32))}


def climb_loss(context: Context[Any], batch: Batch, effects: Tensor, learned: Tensor) -> PhaseLoss:
    """−E A under the multipliers along the relaxed page, and the divergence from the logged policy (maths 5.6).

    Args:
        effects: [U, C, 1 + |S|]; learned: bool[n], rows that are climbed on.
    """
    settings, module = context.settings.replay, context.module
    batch = {name: column[learned] for name, column in batch.items()}
    mu, log_sigma = (moment[:, 0] for moment in module.policy(batch["state"]))
    action = mu + settings.noise * log_sigma.exp().detach() * batch["noise"]
    value = values_of(context, batch, action.unsqueeze(1), effects, relaxed(settings))[:, 0]
    divergence = gaussian_kl(mu, log_sigma, batch["mu"], batch["sigma"].log())
    rows = max(1, len(mu))
    gain, divergence = (value @ _weights(context, value)).sum() / rows, divergence.sum() / rows
    # A longer vector ranks as before, but exploration turns it less, which the value along sampled actions rewards.
    length = mu.norm(dim=1) / batch["mu"].norm(dim=1).clamp(min=1e-6)
    held = settings.length_weight * (length - 1).square().sum() / rows
    return PhaseLoss(settings.kl_weight * divergence + held - gain, {KL: divergence.detach()})


def _weights(context: Context[Any], like: Tensor) -> Tensor:
    """[1 + |S|], with the multipliers as they stand."""
    weights = context.settings.replay_objective(context.vocabulary).weights.to(like)
    return torch.cat([weights[:1], weights[1:] + context.module.multipliers.to(like)])


# Features [n, K, C] of the pages of actions [n, K, M], of which the places have some attention [L].
Pages = Callable[[Candidates, Tensor, Tensor], Tensor]


def relaxed(settings: ReplaySettings) -> Pages:
    """Relaxed pages, along which actions have a gradient."""
    return partial(relaxed_features, temperature=settings.temperature)


def values_of(context: Context[Any], batch: Batch, actions: Tensor, effects: Tensor, pages: Pages) -> Tensor:
    """Effects [n, K, 1 + |S|] of the pages of actions [n, K, M], but for what the logged policy brings."""
    attention = attention_of(float(context.module.attention_decay), batch["shown"].shape[1], batch["state"])
    features = pages(candidates_of(batch, context.vocabulary), actions, attention)
    return torch.bmm(features, coefficients_of(effects, context.module.modifiers_of(batch["state"], batch["scene"])))


def _watched(fold: Tensor) -> Tensor:
    return torch.isin(fold, torch.tensor(_WATCHED, device=fold.device))


def stage_two_loss(context: Context[Any], batch: Batch) -> PhaseLoss:
    """On all users but those that dual ascent looks at."""
    return climb_loss(context, batch, context.module.page_effects, ~_watched(fold_of(batch["user"])))


def trial_loss(context: Context[Any], batch: Batch, side: int) -> PhaseLoss:
    """The same on half of the users, whom the other half judges."""
    fold = fold_of(batch["user"])
    return climb_loss(context, batch, context.module.half_effects[side], ~_watched(fold) & (fold % 2 == side))


def auxiliary_loss(context: Context[Any], batch: Batch) -> PhaseLoss:
    """Stage one: every policy climbs its behaviour's own effect along the relaxed page (maths 5.5)."""
    settings, module = context.settings.replay, context.module
    mu, log_sigma = module.auxiliaries(batch["state"])
    actions = mu + log_sigma.exp().detach() * batch["noise"].unsqueeze(1)
    value = values_of(context, batch, actions, module.page_effects, relaxed(settings))
    divergence = gaussian_kl(mu, log_sigma, batch["mu"].unsqueeze(1), batch["sigma"].log().unsqueeze(1))
    loss = (settings.kl_weight * divergence - _own(value)).mean(0)
    return PhaseLoss(loss.sum(), {AUXILIARY_KL: divergence.detach().mean(0)})


def _own(value: Tensor) -> Tensor:
    """[n, k], of effects [n, k, 1 + |S|]: every policy's behaviour; all behaviours' mean where they share a policy."""
    short = value[:, :, 1:]
    return short.diagonal(dim1=1, dim2=2) if short.shape[1] == short.shape[2] else short.mean(2)


@torch.no_grad()
def judge_policy(context: Context[Any], batch: Batch, effects: Tensor | None = None) -> PhaseLoss:
    """−E A of the pages that the policy's mean shows, under the multipliers as they stand."""
    mu, _ = context.module.policy(batch["state"])
    effects = context.module.page_effects if effects is None else effects
    value = values_of(context, batch, mu, effects, page_features)[:, 0]
    return PhaseLoss(-(value @ _weights(context, value)).mean())


def judge_trial(context: Context[Any], batch: Batch, side: int) -> PhaseLoss:
    """The same by the effects of half of the users."""
    return judge_policy(context, batch, context.module.half_effects[side])


@torch.no_grad()
def judge_auxiliaries(context: Context[Any], batch: Batch) -> PhaseLoss:
    """−E A_j of the pages that the auxiliary policies' means show, summed over them."""
    mu, _ = context.module.auxiliaries(batch["state"])
    value = values_of(context, batch, mu, context.module.page_effects, page_features)
    return PhaseLoss(-_own(value).mean(0).sum())


@torch.no_grad()
def served_effects(context: Context[Any], rows: ReplayRows, effects: Tensor) -> Tensor:
    """Mean relative effects of the policy's mean on these requests, float64[1 + |S|], by the pages that it shows."""
    return mean_effects(rows, _served_features(context, rows), effects.cpu().double())[0]


def _served_features(context: Context[Any], rows: ReplayRows) -> Tensor:
    mu, _ = context.module.policy(rows.state)
    return page_features(rows.candidates, mu, rows.attention)


def ascend(summed: Tensor, shortfall: Tensor, settings: ReplaySettings) -> tuple[Tensor, Tensor]:
    """What multipliers have summed up, and the multipliers, [|S|] each, after one move of dual ascent.

    Every multiplier is a proportional and an integral part of what its behaviour lacks to its floor: the integral alone
    swings, since the policy answers only after some steps (Stooke, Achiam and Abbeel, "Responsive Safety in
    Reinforcement Learning by PID Lagrangian Methods", ICML 2020).

    Args:
        summed: so far; shortfall: the floor less the effect, −∞ where there is no floor.
    """
    summed = (summed + settings.dual_step * shortfall).clamp(0.0, settings.multiplier_max)
    return summed, (summed + settings.dual_gain * shortfall).clamp(0.0, settings.multiplier_max)


@dataclass(frozen=True)
class Ascent:
    """Multipliers by dual ascent on users that no step climbs on.

    Attributes:
        rows: which of the replayed requests look; effects: by which they do.
    """

    rows: Callable[[ReplayRows], Tensor]
    effects: Callable[[FusionPolicyModule], Tensor]

    def __call__(self, context: Context[Any]) -> None:
        """Moves the multipliers."""
        settings, module = context.settings.replay, context.module
        floors = context.settings.replay_objective(context.vocabulary).floors[1:]
        shortfall = (floors - self.seen(context)[1:]).to(module.multipliers)
        summed, multipliers = ascend(module.shortfalls, shortfall, settings)
        module.shortfalls.copy_(summed)
        module.multipliers.copy_(multipliers)

    def seen(self, context: Context[Any]) -> Tensor:
        """Mean relative effects of the policy as it stands, float64[1 + |S|]."""
        every = replay_rows(context)
        return served_effects(context, every[self.rows(every)], self.effects(context.module))

    def report(self, context: Context[Any], _: Metrics) -> Metrics:
        """After a pass."""
        value = self.seen(context)
        return {EFFECT: value[0], BEHAVIOUR_EFFECT: value[1:], MULTIPLIER: context.module.multipliers.clone()}


@torch.no_grad()
def judge_by_others(context: Context[Any], side: int) -> None:
    """What the policy of one half of the users gains over their one vector, by the replay and the effects of the other
    half; and its error."""
    module, judges = context.module, half(1 - side)
    rows = replay_rows(context)
    others = rows[rows.fold % 2 == 1 - side]
    policy, vector = _served_features(context, others), _shown_by(others, module.half_vectors[side])
    weights = _weights(context, torch.zeros(1, dtype=torch.float64)).cpu()

    def gain(effects: Tensor) -> Tensor:
        return (mean_effects(others, policy, effects) - mean_effects(others, vector, effects))[0] @ weights

    model = _effects(context, judges).model
    left = torch.stack([gain(_effects(context, [fold for fold in judges if fold != out], model).coefficients)
                        for out in judges])
    gained = gain(module.half_effects[1 - side].cpu().double())
    module.trial_gains[side].copy_(torch.stack([gained, jackknife_error(left)]))


def gate(context: Context[Any], rng: np.random.Generator, iteration: int) -> Metrics:
    """Whether the policies of either half of the users are better than their vectors, by the respective other half."""
    module, settings = context.module, context.settings.replay
    gains, errors = module.trial_gains.unbind(1)
    gain, error = gains.mean(), errors.norm() / 2
    lower = gain - NormalDist().inv_cdf(settings.confidence) * error
    module.publishes_vector.fill_(not bool((lower > 0) & (gain >= settings.least_gain)))
    return {LOSS: -gain, GAIN: gain, GAIN_ERROR: error, GAIN_LOWER: lower,
            PUBLISHES_VECTOR: module.publishes_vector.double()}


def start_trial(module: FusionPolicyModule, side: int) -> None:
    """The policy starts at the vector of half of the users."""
    module.start_multipliers()
    module.policy.start_at(module.half_vectors[side])


def start_policy(module: FusionPolicyModule) -> None:
    """The policy starts at the vector."""
    module.start_multipliers()
    module.policy.start_at(module.vector_mean)


def with_some_steps(phase: Phase) -> Phase:
    """The phase with so many steps a pass as the settings say, spread evenly over its minibatches."""

    def every(context: Context[Any]) -> int:
        settings = context.settings
        return max(1, context.rows // (settings.minibatch_size * settings.replay.steps))

    def steps(context: Context[Any], batch: Batch, number: int) -> Iterator[Step]:
        for step in phase.steps_of(context, batch, number):
            yield step if number // every(context) % _STEPS_PER_ASCENT == 0 else replace(step, follow=None)

    return replace(phase, every=every, steps=steps)


def passes(settings: Any) -> StoppingRule:
    """All of them, because multipliers move the objective."""
    return StoppingRule(iterations=settings.replay.passes)


_ONCE = StoppingRule(iterations=1)
REPLAY: Phase = Phase(name="replay", seed=10, rule=lambda _: _ONCE, search=fit_effects)
STAGE_ONE: Phase = with_some_steps(Phase(
    name="stage_one", seed=11, rule=passes, columns=COLUMNS, networks=("auxiliaries",),
    loss=auxiliary_loss, begin=lambda module: module.start_auxiliaries_at_policy(), draw=draw_noise,
    judge=judge_auxiliaries))


def _trial(side: int, seed: int) -> Phase:
    """A policy of half of the users alone, which the other half judges when it is fitted."""
    ascent = Ascent(lambda rows: _watched(rows.fold) & (rows.fold % 2 == side),
                    lambda module: module.half_effects[side])
    return with_some_steps(Phase(
        name=f"trial_{side + 1}", seed=seed, rule=passes, columns=COLUMNS, networks=("policy",),
        loss=partial(trial_loss, side=side), begin=partial(start_trial, side=side), draw=draw_noise,
        judge=partial(judge_trial, side=side), leave=partial(judge_by_others, side=side),
        follow=ascent, finish=ascent.report))


TRIALS = (_trial(0, 12), _trial(1, 17))
GATE: Phase = Phase(name="gate", seed=13, rule=lambda _: _ONCE, search=gate)
_ASCENT = Ascent(lambda rows: _watched(rows.fold), lambda module: module.page_effects)
STAGE_TWO: Phase = with_some_steps(Phase(
    name="stage_two", seed=14, rule=passes, columns=COLUMNS, networks=("policy",),
    loss=stage_two_loss, begin=start_policy, draw=draw_noise, judge=judge_policy,
    follow=_ASCENT, finish=_ASCENT.report))
