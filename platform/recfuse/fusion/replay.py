"""Replay: what another fusion vector would have shown to the same request (maths 5).

A log that keeps its candidates says for every vector which page it would have ranked, exactly and without a model. What
a page holds is the sum of its items' columns, weighted by the attention that its places get.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from recfuse.behaviours import Formula, Vocabulary
from recfuse.config import require

_CLOSED = float("-inf")
# Scores of so many (request, vector, candidate) are in memory at a time.
_SCORES = 1 << 23


@dataclass(frozen=True)
class Candidates:
    """What n requests had to rank, padded to N candidates.

    Attributes:
        columns: float[n, N, C], what a page is summed over; the first M are the fused predictions.
        terms: float[n, N, M], what the fusion parameters weigh: log(prediction + b), or the prediction.
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
        columns = predictions.transpose(1, 2).float().contiguous()
        terms = terms_of(columns, vocabulary.formula, vocabulary.offset)
        # Padding may hold anything; a page never shows it, but NaN times zero would.
        terms = torch.where(is_open.unsqueeze(2), terms, 0.0)
        columns = columns if extra is None else torch.cat([columns, extra.float()], 2)
        return cls(torch.where(is_open.unsqueeze(2), columns, 0.0), terms, is_open)

    def __len__(self) -> int:
        return len(self.open)

    def __getitem__(self, rows: slice | Tensor) -> Candidates:
        """Those of some requests."""
        return Candidates(self.columns[rows], self.terms[rows], self.open[rows])

    def with_columns(self, columns: Tensor) -> Candidates:
        """The same candidates, summed over other columns [n, N, C]."""
        return replace(self, columns=columns)


def terms_of(predictions: Tensor, formula: Formula, offset: float) -> Tensor:
    """What the fusion parameters weigh (maths 2): the formulas `log_sum` and `power` order alike."""
    return predictions if formula == "linear" else (predictions + offset).clamp(min=1e-30).log()


def attention_of(decay: float, page: int, like: Tensor) -> Tensor:
    """v_l = decay^(l − 1), [L] (maths 5.0)."""
    return torch.full((), decay, dtype=like.dtype, device=like.device) ** torch.arange(page, device=like.device)


def scores_of(candidates: Candidates, actions: Tensor) -> Tensor:
    """[n, K, N] scores; −∞ where a candidate is not open.

    Args:
        actions: [n, K, M], or [K, M] for the same vectors in every request.
    """
    if actions.ndim == 2:
        scores = (candidates.terms @ actions.T).transpose(1, 2)
    else:
        scores = torch.bmm(actions, candidates.terms.transpose(1, 2))
    return scores.masked_fill(~candidates.open.unsqueeze(1), _CLOSED)


def pages(candidates: Candidates, actions: Tensor, page: int) -> Tensor:
    """The places of each vector's page, int64[n, K, L]: positions of candidates, best first.

    Equal scores keep no order here. Where fewer than L candidates are open, the last places hold closed ones, whose
    columns are 0.
    """
    scores = scores_of(candidates, actions)
    return scores.topk(min(page, scores.shape[2]), dim=2).indices


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
    scores = scores_of(candidates, actions)
    is_open = candidates.open.unsqueeze(1)
    finite = torch.where(is_open, scores, 0.0)
    count = is_open.sum(2, keepdim=True).clamp(min=1)
    mean = finite.sum(2, keepdim=True) / count
    variance = torch.where(is_open, finite - mean, 0.0).square().sum(2, keepdim=True) / count
    # In these units a longer vector ranks no sharper, as it ranks no differently.
    scale = (variance + 1e-12).sqrt() * temperature
    logits = ((finite - mean) / scale).masked_fill(~is_open, _CLOSED)
    weights = torch.zeros_like(finite)
    for place in attention:
        share = logits.softmax(2)
        # A request may have no open candidate at all, or fewer than places.
        share = torch.where(torch.isfinite(share), share, 0.0)
        weights = weights + place * share
        # Divided by the temperature too, or what was taken would only tie with the next best.
        logits = logits + torch.log1p(-share.clamp(max=1 - 1e-6)) / temperature
    return torch.bmm(weights, candidates.columns)
