"""How far weights may be drawn around today's ones: the largest σ that changes no more than a share of the page.

σ of a fusion parameter is inverse to the spread of what it weighs, so that every parameter moves the scores alike: in
units of the scores' own spread under today's weights, by the *reach* c (maths 6.10).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recfuse.behaviours import Vocabulary
from recfuse.config import require

_LEAST, _MOST, _STEPS = 1e-4, 10.0, 40
_AT_ONCE = 1 << 22
Vector = NDArray[np.float64]


@dataclass(frozen=True)
class PageChange:
    """What drawing the weights changes, over requests and draws.

    Attributes:
        share: of the page's items that are not on the page of the weights without exploration.
        error: standard error of the share, of the requests and the draws.
        first: share of requests whose first item is another one.
        correlation: of the ranks of all candidates (Spearman), the mean over requests.
    """

    share: float
    error: float
    first: float
    correlation: float


@dataclass(frozen=True)
class Exploration:
    """A choice of σ.

    Attributes:
        sigma: float64[M].
        reach: c of it; change: what it does to the page.
        bounded: whether the bound on the page decided; where it did not, no σ that was tried changes so much.
    """

    sigma: Vector
    reach: float
    change: PageChange
    bounded: bool


class Pages:
    """The pages of logged candidates, and what other weights make of them.

    Args:
        predictions: [R, M, N], by the vocabulary's fusion parameters; is_open: bool[R, N], which may be shown.
        vocabulary: says the formula.
        weights: float64[M], today's.
        top: places of a page.
        draws: of the weights a request; seed: of the draws, which are the same for every σ.

    Raises:
        InvalidFieldError: weights of another number, none that is not 0, or predictions that the formula does not take.
    """

    def __init__(self, predictions: NDArray[np.floating], is_open: NDArray[np.bool_], vocabulary: Vocabulary,
                 weights: Vector, top: int, draws: int, seed: int) -> None:
        requests, parameters, _ = predictions.shape
        require(weights.shape == (parameters,), "weights", weights.tolist(), f"{parameters} numbers")
        require(bool(np.isfinite(weights).all() and weights.any()), "weights", weights.tolist(),
                "finite numbers, one of which is not 0")
        self._terms, self._open, self._weights = _terms(predictions, is_open, vocabulary), is_open, weights
        self._places = np.minimum(top, is_open.sum(1))
        self._normal = np.random.default_rng(seed).standard_normal((requests, draws, parameters))
        self.spread = _spread(self._terms, is_open)
        self._ranks = _ranks(np.einsum("m,rmn->rn", weights, self._terms), is_open)

    def sigma(self, reach: float) -> Vector:
        """float64[M], the deviations of this reach. A prediction that is the same for all candidates moves nothing; its
        σ is that of a spread of one over the weights' length."""
        length = float(np.linalg.norm(self._weights * self.spread))
        known = self.spread > 0
        scale = np.full(len(self.spread), float(np.linalg.norm(self._weights)) / np.sqrt(len(self.spread)))
        # Where no weighed prediction tells candidates apart, there is no page to change, and the weights alone count.
        if length > 0:
            scale[known] = length / self.spread[known]
        return reach * scale / np.sqrt(known.sum() or 1)

    def change(self, sigma: Vector) -> PageChange:
        """What drawing from N(weights, σ²) changes."""
        requests, draws, _ = self._normal.shape
        changed, first, correlation = np.zeros(requests), np.zeros(requests), np.zeros(requests)
        at_once = max(1, _AT_ONCE // (draws * self._terms.shape[2]))
        for start in range(0, requests, at_once):
            some = slice(start, start + at_once)
            drawn = self._weights + sigma * self._normal[some]
            scores = np.matmul(drawn, self._terms[some])
            ranks = _ranks(scores, np.broadcast_to(self._open[some, None], scores.shape))
            before, places = self._ranks[some, None], self._places[some, None, None]
            here = self._open[some, None]
            stayed = ((ranks < places) & (before < places) & here).sum(2) / places[..., 0]
            changed[some] = 1 - stayed.mean(1)
            first[some] = 1 - ((ranks == 0) & (before == 0) & here).any(2).mean(1)
            correlation[some] = _spearman(ranks, before, here).mean(1)
        return PageChange(float(changed.mean()), float(changed.std() / np.sqrt(requests)), float(first.mean()),
                          float(correlation.mean()))


def widest(pages: Pages, change: float) -> Exploration:
    """The σ of the largest reach whose expected change of the page is at most `change`, by bisection."""
    low, high = _LEAST, _MOST
    most = pages.change(pages.sigma(high))
    if most.share <= change:
        return Exploration(pages.sigma(high), high, most, bounded=False)
    for _ in range(_STEPS):
        middle = float(np.sqrt(low * high))
        if pages.change(pages.sigma(middle)).share <= change:
            low = middle
        else:
            high = middle
        if high / low < 1.001:
            break
    return Exploration(pages.sigma(low), low, pages.change(pages.sigma(low)), bounded=True)


def _terms(predictions: NDArray[np.floating], is_open: NDArray[np.bool_], vocabulary: Vocabulary) -> Vector:
    """What the weights multiply (maths 2), 0 where there is no candidate."""
    if vocabulary.formula == "linear":
        terms = vocabulary.curved(predictions)
    else:
        shifted = np.where(is_open[:, None], predictions.astype(np.float64), 0.0) + vocabulary.offset
        require(bool((shifted > 0).all()), "candidates", float(predictions.min()),
                f"predictions > −{vocabulary.offset} (formula {vocabulary.formula})")
        terms = np.log(shifted)
    return np.where(is_open[:, None], terms, 0.0)


def _spread(terms: Vector, is_open: NDArray[np.bool_]) -> Vector:
    """float64[M]: root of the mean variance within a request."""
    count = is_open.sum(1)
    mean = terms.sum(2) / count[:, None]
    square = np.where(is_open[:, None], (terms - mean[..., None])**2, 0.0).sum(2) / count[:, None]
    spread: Vector = np.sqrt(square.mean(0))
    # What rounding alone leaves is no spread.
    return np.where(spread > 1e-9 * np.abs(terms).max((0, 2)), spread, 0.0)


def _ranks(scores: Vector, is_open: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Place of every candidate, 0 the best; ties keep their order, and those that are not open come last."""
    order = np.argsort(np.where(is_open, -scores, np.inf), axis=-1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.broadcast_to(np.arange(order.shape[-1]), order.shape), -1)
    return ranks


def _spearman(ranks: NDArray[np.int64], other: NDArray[np.int64], is_open: NDArray[np.bool_]) -> Vector:
    """[R, D], of the open candidates; 1 where there is one alone."""
    count = is_open.sum(-1).astype(np.float64)
    squares = np.where(is_open, (ranks - other).astype(np.float64)**2, 0.0).sum(-1)
    return 1 - 6 * squares / np.maximum(count * (count**2 - 1), 1.0)
