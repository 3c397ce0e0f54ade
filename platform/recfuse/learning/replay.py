"""A log's replay as algorithms read it: what was shown beyond what was expected, and what came of it (maths 5)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from recfuse.behaviours import Vocabulary
from recfuse.fusion.attention import Attention, AttentionSums
from recfuse.fusion.effects import FOLDS, EffectSums
from recfuse.fusion.replay import (
    Candidates,
    antithetic_noise,
    expected_features,
    features_of_shown,
    page_features,
)
from recfuse.learning.columns import chunks, fill
from recfuse.learning.context import Context
from recfuse.learning.critics import one_step_advantages

COLUMNS = ("state", "predictions", "open", "shown", "mu", "sigma", "scene", "user")
# Requests still to come count with this discount, so that one long session is not most of the log.
STAY_DISCOUNT = 0.95


@dataclass(frozen=True)
class Layout:
    """Which targets the regression has, and which fused column predicts a behaviour itself.

    Attributes:
        long, short: positions of the behaviours of each kind.
        own: behaviour's position → the fused column of its name.
    """

    long: tuple[int, ...]
    short: tuple[int, ...]
    own: dict[int, int]

    @classmethod
    def of(cls, vocabulary: Vocabulary) -> Layout:
        """Of a vocabulary; only feedback that is not transformed has the unit of its prediction."""
        kinds = [behaviour.kind for behaviour in vocabulary.behaviours]
        own = {place: vocabulary.fusion_parameters.index(behaviour.name)
               for place, behaviour in enumerate(vocabulary.behaviours)
               if behaviour.name in vocabulary.fusion_parameters and behaviour.transform == "identity"}
        return cls(tuple(place for place, kind in enumerate(kinds) if kind == "long_term"),
                   tuple(place for place, kind in enumerate(kinds) if kind == "short_term"), own)

    @property
    def targets(self) -> int:
        """Long-term advantages, requests still to come, short-term feedback."""
        return len(self.long) + 1 + len(self.short)


@dataclass(frozen=True)
class Measured:
    """What a log says of its pages.

    Attributes:
        sums: of the regression.
        attention: of the places.
        reward: float64[m], mean of every behaviour's feedback as learners see it.
        stay: mean of the requests still to come, discounted.
    """

    sums: EffectSums
    attention: Attention
    reward: Tensor
    stay: float


@dataclass(frozen=True)
class ReplayRows:
    """Some requests of the log, in memory.

    Attributes:
        state: [n, S]; candidates: of them; mu, sigma: [n, M], of the logged policy; fold: int64[n].
        modifiers: [n, U], what effects depend on.
        base: [n, C], f of the pages that the mean of the logged policy shows: what effects are relative to.
        attention: [L], of the places of a page.
    """

    state: Tensor
    candidates: Candidates
    mu: Tensor
    sigma: Tensor
    modifiers: Tensor
    fold: Tensor
    base: Tensor
    attention: Tensor

    def __len__(self) -> int:
        return len(self.state)

    def __getitem__(self, rows: Tensor) -> ReplayRows:
        return ReplayRows(self.state[rows], self.candidates[rows], self.mu[rows], self.sigma[rows],
                          self.modifiers[rows], self.fold[rows], self.base[rows], self.attention)


def candidates_of(batch: dict[str, Tensor], vocabulary: Vocabulary) -> Candidates:
    """The candidates of a batch of samples."""
    return Candidates.of(batch["predictions"], batch["open"], vocabulary)


def fold_of(user: Tensor) -> Tensor:
    """int64[n], the fold of each row's user."""
    return user % FOLDS


def noise_of(vocabulary: Vocabulary, draws: int, seed: int) -> Tensor:
    """[draws, M] for expectations under the logged policy."""
    return antithetic_noise(draws, vocabulary.action_size, torch.Generator().manual_seed(seed))


def estimate_attention(context: Context[Any]) -> Attention:
    """The decay of attention over the places of a page, by the behaviours with a column of their own."""
    layout = Layout.of(context.vocabulary)
    behaviours, columns = list(layout.own), list(layout.own.values())
    sums: AttentionSums | None = None
    for _, chunk in chunks(context.windows) if behaviours else ():
        places = chunk["shown"].long()
        sums = sums or AttentionSums.zeros(len(behaviours), places.shape[1])
        predictions = chunk["predictions"][:, columns].float()
        shown = torch.gather(predictions, 2, places.clamp(min=0).unsqueeze(1).expand(-1, len(columns), -1))
        shown = torch.where(places.unsqueeze(1) >= 0, shown, 0.0)
        sums.add(shown, chunk["feedback"][:, behaviours], fold_of(chunk["user"]))
    return (sums or AttentionSums.zeros(1, 1)).estimate()


def measure(context: Context[Any], draws: int, attention: Attention) -> Measured:
    """Sums of the regression of what came on what was shown, over all samples whose action was drawn."""
    layout, vocabulary = Layout.of(context.vocabulary), context.vocabulary
    sums = EffectSums.zeros(context.module.modifiers, vocabulary.action_size, layout.targets)
    noise = noise_of(vocabulary, draws, context.settings.seed).to(context.device)
    stay = residual_stay(context)
    reward = torch.zeros(len(vocabulary.behaviours), dtype=torch.float64)
    for position, chunk in chunks(context.windows):
        candidates, weights = candidates_of(chunk, vocabulary), attention.of(chunk["shown"].shape[1], noise)
        expected = expected_features(candidates, chunk["mu"], chunk["sigma"], noise, weights)
        features = features_of_shown(candidates, chunk["shown"].long(), weights) - expected
        long_term = one_step_advantages(context, chunk)[:, list(layout.long)]
        targets = torch.cat([long_term, stay[position : position + len(expected)],
                             chunk["feedback"][:, list(layout.short)]], 1)
        sums.add(features, context.module.modifiers_of(chunk["state"], chunk["scene"]), targets, fold_of(chunk["user"]))
        reward += chunk["feedback"].double().sum(0).cpu()
    return Measured(sums, attention, reward / context.rows, float(stay.mean()))


def residual_stay(context: Context[Any]) -> Tensor:
    """Requests still to come in the session, discounted, less what the state says of them, [n, 1].

    One dense target that all sparse behaviours share: each comes at its rate in every request that is still to come.
    """
    stay = fill(context.rows, 1, ((position, _stay(window)) for position, window in context.windows))
    size = context.vocabulary.state_size + 1
    gram = torch.zeros(size + 1, size + 1, dtype=torch.float64)
    policy = context.module.policy

    def design(chunk: dict[str, Tensor]) -> Tensor:
        state = (chunk["state"] - policy.state_mean) / policy.state_std
        return torch.cat([state.new_ones(len(state), 1), state], 1)

    for position, chunk in chunks(context.windows):
        rows = torch.cat([design(chunk).cpu(), stay[position : position + len(chunk["done"])]], 1).double()
        gram += rows.T @ rows
    left = gram[:size, :size] + 1e-3 * context.rows * torch.eye(size, dtype=torch.float64)
    weights = torch.linalg.solve(left, gram[:size, size:]).float()
    parts = ((position, stay[position : position + len(chunk["done"])] - design(chunk).cpu() @ weights)
             for position, chunk in chunks(context.windows))
    return fill(context.rows, 1, parts)


def _stay(window: dict[str, Tensor]) -> Tensor:
    """(1 − γ^k) / (1 − γ) for k requests that follow in the session, [n, 1]; a session is followed as far as its rows
    are neighbours."""
    goes_on = (window["done"] == 0).cpu()
    follows = torch.zeros_like(goes_on)
    follows[:-1] = goes_on[:-1] & (window["user"][:-1] == window["user"][1:]).cpu()
    follows[:-1] &= (window["next_state"][:-1] == window["state"][1:]).all(1).cpu()
    index = torch.arange(len(follows))
    ends = torch.where(follows, len(follows), index)
    # The next end at or after every row.
    next_end = ends.flip(0).cummin(0).values.flip(0)
    # A row without a successor among the rows that is not done had one that the log does not hold.
    unknown = goes_on[next_end.clamp(max=len(follows) - 1)].float()
    following = (next_end - index).float() + unknown
    return ((1 - STAY_DISCOUNT**following) / (1 - STAY_DISCOUNT)).unsqueeze(1)


def gather(context: Context[Any], count: int, attention: Attention) -> ReplayRows:
    """About so many requests, evenly spread over the log."""
    stride = max(1, context.rows // count)
    parts: dict[str, list[Tensor]] = {name: [] for name in COLUMNS}
    for position, window in context.windows:
        rows = torch.arange((-position) % stride, len(window["done"]), stride, device=window["done"].device)
        for name in COLUMNS:
            parts[name].append(window[name].index_select(0, rows))
    batch = {name: torch.cat(part) for name, part in parts.items()}
    candidates = candidates_of(batch, context.vocabulary)
    weights = attention.of(batch["shown"].shape[1], batch["mu"])
    base = page_features(candidates, batch["mu"].unsqueeze(1), weights)[:, 0]
    modifiers = context.module.modifiers_of(batch["state"], batch["scene"])
    return ReplayRows(batch["state"], candidates, batch["mu"], batch["sigma"], modifiers, fold_of(batch["user"]),
                      base, weights)
