"""Replay: what other fusion weights would have shown to the same request (maths 5).

A log that keeps its candidates says for every vector which page it would have ranked, exactly and without a model. What
a page holds is the sum of its items' columns, weighted by the attention that its places get.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recfuse.behaviours import Vocabulary
from recfuse.config import require
from recfuse.fusion.monotone import MonotoneCurves
from recfuse.fusion.relaxation import relaxed_places

_CLOSED, _FAR = float("-inf"), -1e38
# Scores of so many (request, vector, candidate) are in memory at a time.
_SCORES = 1 << 23
# So many of them are sorted at a time, to stay in the cache.
_SORTED = 1 << 18
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Candidates:
    """What n requests had to rank, padded to N candidates.

    Attributes:
        columns: float[n, N, C], what a page is summed over; the first M are the fused predictions.
        terms: float[n, N, M], what the fusion parameters weigh: log(prediction + b), or the prediction, or its
            curve.
        open: bool[n, N], which of them could be shown.
    """

    columns: Tensor
    terms: Tensor
    open: Tensor

    @classmethod
    def of(cls, predictions: Tensor, is_open: Tensor, vocabulary: Vocabulary,
           extra: Tensor | None = None) -> Candidates:
        """Candidates from predictions as the log keeps them.

        Args:
            predictions: [n, M, N], of any float type.
            is_open: bool[n, N].
            extra: [n, N, k], further columns; none of them is fused.

        Raises:
            InvalidFieldError: shapes that do not fit.
        """
        parameters = vocabulary.action_size
        require(predictions.ndim == 3 and predictions.shape[1] == parameters, "predictions", tuple(predictions.shape),
                f"a tensor [n, {parameters}, N]")
        require(is_open.shape == predictions.shape[::2], "open", tuple(is_open.shape), "a tensor [n, N]")
        # Padding may hold anything; a page never shows it, but NaN times zero would.
        known = _only_open(predictions, is_open).float()
        columns = known.transpose(1, 2)
        if extra is not None:
            columns = torch.cat([columns, torch.where(is_open.unsqueeze(2), extra.float(), 0.0)], 2)
        terms = terms_of(known, vocabulary) * is_open.unsqueeze(1)
        return cls(columns, terms.transpose(1, 2), is_open)

    def __len__(self) -> int:
        return len(self.open)

    def __getitem__(self, rows: slice | Tensor) -> Candidates:
        """Those of some requests."""
        return Candidates(self.columns[rows], self.terms[rows], self.open[rows])

    def with_columns(self, columns: Tensor) -> Candidates:
        """The same candidates, summed over other columns [n, N, C]."""
        return replace(self, columns=columns)


def terms_of(predictions: Tensor, vocabulary: Vocabulary) -> Tensor:
    """What the fusion parameters weigh (maths 2), of predictions [n, M, N]: `log_sum` and `power` order alike."""
    if vocabulary.formula != "linear":
        return (predictions + vocabulary.offset).clamp_(min=1e-30).log_()
    if vocabulary.curves is None:
        return predictions
    curves = MonotoneCurves.of(vocabulary.curves).to(predictions.device)
    return curves(predictions.transpose(1, 2)).to(predictions.dtype).transpose(1, 2)


def _only_open(predictions: Tensor, is_open: Tensor) -> Tensor:
    """Predictions [n, M, N], 0 where a candidate is not open: bits are masked, a sixth of the time of `torch.where`."""
    bits = _BITS[predictions.element_size()]
    mask = is_open.to(bits).neg_().unsqueeze(1)
    return predictions.view(bits).bitwise_and(mask).view(predictions.dtype)


def attention_of(decay: float, page: int, like: Tensor) -> Tensor:
    """v_l = decay^(l − 1), [L] (maths 5.0)."""
    return torch.full((), decay, dtype=like.dtype, device=like.device) ** torch.arange(page, device=like.device)


def scores_of(candidates: Candidates, actions: Tensor) -> Tensor:
    """[n, K, N] scores; −∞ where a candidate is not open.

    Args:
        actions: [n, K, M], or [K, M] for the same vectors in every request.
    """
    return _unmasked(candidates, actions).masked_fill(~candidates.open.unsqueeze(1), _CLOSED)


def _unmasked(candidates: Candidates, actions: Tensor) -> Tensor:
    each = actions.expand(len(candidates), *actions.shape[-2:])
    return torch.bmm(each, candidates.terms.transpose(1, 2))


def pages(candidates: Candidates, actions: Tensor, page: int) -> Tensor:
    """The places of each vector's page, int64[n, K, L]: positions of candidates, best first.

    Equal scores keep no order here. Where fewer than L candidates are open, the last places hold closed ones, whose
    columns are 0.
    """
    width = candidates.open.shape[1]
    page = min(page, width)
    if candidates.terms.device.type != "cpu" or candidates.terms.dtype != torch.float32:
        return scores_of(candidates, actions).topk(page, dim=2).indices
    rows, at_once = len(candidates), max(1, _SORTED // max(1, actions.shape[-2] * width))
    best = torch.empty(rows, actions.shape[-2], page, dtype=torch.int64)
    for start in range(0, rows, at_once):
        some = slice(start, start + at_once)
        best[some] = _sorted_places(candidates[some], actions if actions.ndim == 2 else actions[some], page)
    return best


def _sorted_places(candidates: Candidates, actions: Tensor, page: int) -> Tensor:
    """The same by numpy's sort, which is vectorised and takes a quarter of the time of torch's `topk`.

    It gives no positions. A score in single precision leaves 29 bits of a double free, and these hold its position.
    """
    width = candidates.open.shape[1]
    scores = _unmasked(candidates, actions).detach().double()
    scores += torch.where(candidates.open, 0.0, _FAR).double().unsqueeze(1)
    keys = scores.view(torch.int64)
    keys |= torch.arange(width)
    scores.cpu().numpy().sort(axis=2)
    return keys[:, :, width - page :].flip(2) & ((1 << (width - 1).bit_length()) - 1)


def page_features(candidates: Candidates, actions: Tensor, attention: Tensor) -> Tensor:
    """f_k(s, a) = Σ_l v_l c_k(r_l(P, a)), [n, K, C] (maths 5.1), for K vectors a request.

    Args:
        actions: [n, K, M] or [K, M].
        attention: [L], of the page's places; 0 where a request has fewer open candidates.
    """
    rows, width = len(candidates), candidates.open.shape[1]
    vectors = actions.shape[-2]
    at_once = max(1, _SCORES // max(1, vectors * width))
    if rows > at_once:
        parts = [page_features(candidates[start : start + at_once],
                               actions if actions.ndim == 2 else actions[start : start + at_once], attention)
                 for start in range(0, rows, at_once)]
        return torch.cat(parts) if parts else candidates.columns.new_zeros(0, vectors, candidates.columns.shape[2])
    best = pages(candidates, actions, len(attention))
    # A row for each request and place in one table of columns: one gather instead of one per column.
    table = candidates.columns.reshape(rows * width, -1)
    places = (best + width * torch.arange(rows, device=best.device).view(-1, 1, 1)).reshape(-1, best.shape[2])
    weights = attention[: best.shape[2]].expand(len(places), -1)
    sums = torch.nn.functional.embedding_bag(places, table, per_sample_weights=weights, mode="sum")
    return sums.reshape(rows, vectors, -1)


def features_of_shown(candidates: Candidates, shown: Tensor, attention: Tensor) -> Tensor:
    """f of the page that was shown, [n, C].

    Args:
        shown: int64[n, L'], positions, best place first; −1 where there was no more to show. Places beyond the
            attention's L count nothing.
    """
    places = shown[:, : len(attention)]
    weight = torch.where(places >= 0, attention[: places.shape[1]], 0.0)
    columns = torch.gather(candidates.columns, 1, places.clamp(min=0).unsqueeze(2).expand(-1, -1,
                                                                                      candidates.columns.shape[2]))
    return (columns * weight.unsqueeze(2)).sum(1)


def antithetic_noise(draws: int, actions: int, generator: torch.Generator, rows: int | None = None) -> Tensor:
    """Standard normal numbers in pairs that sum to 0, [draws, M], or [rows, draws, M]; `draws` is even."""
    require(draws >= 2 and draws % 2 == 0, "draws", draws, "an even number ≥ 2")
    shape = (draws // 2, actions) if rows is None else (rows, draws // 2, actions)
    half = torch.randn(shape, generator=generator)
    return torch.cat([half, -half], -2)


def expected_features(candidates: Candidates, mu: Tensor, sigma: Tensor, noise: Tensor, attention: Tensor) -> Tensor:
    """E f(s, a′) under N(mu, sigma²), [n, C], by the mean over draws (maths 5.2).

    Args:
        mu, sigma: [n, M]; noise: [D, M] or [n, D, M], of `antithetic_noise`.
    """
    actions = mu.unsqueeze(1) + sigma.unsqueeze(1) * noise
    return page_features(candidates, actions, attention).mean(1)


def relaxed_features(candidates: Candidates, actions: Tensor, attention: Tensor, temperature: float) -> Tensor:
    """f of the page that successive softmaxes fill, [n, K, C] (maths 5.4); differentiable in the actions.

    Every place takes a mixture of the candidates: a softmax of the scores at the temperature, over what earlier places
    have left of each. As the temperature goes to 0 it becomes the page itself (Plötz and Roth, "Neural Nearest
    Neighbors Networks", NeurIPS 2018).

    Args:
        actions: [n, K, M]; attention: [L].
        temperature: τ > 0, in units of the scores' standard deviation among the open candidates of the request.
    """
    places = relaxed_places(_unmasked(candidates, actions), candidates.open, attention, temperature)
    return torch.bmm(places, candidates.columns)
