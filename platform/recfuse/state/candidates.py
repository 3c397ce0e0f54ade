"""What a state says of the candidates (maths 5.8): one function for serving, simulation and replay."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError, require

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_TINY = 1e-12


def as_logged(predictions: NDArray[np.floating]) -> NDArray[np.float32] | None:
    """Predictions as a log keeps them, rounded to half precision; None where one of them does not fit it.

    Whoever logs candidates ranks by what this returns, so that the log gives the ranking that was shown.
    """
    with np.errstate(over="ignore"):
        rounded = predictions.astype(np.float16).astype(np.float32)
    return rounded if bool(np.isfinite(rounded).all()) else None


class CandidateEncoder:
    """Encodes candidates by `vocabulary.candidate_features`.

    Args:
        vocabulary: one with candidate features.

    Raises:
        InvalidFieldError: it has none.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        features = vocabulary.candidate_features
        if features is None:
            raise InvalidFieldError("candidate_features", None, "candidate features, to encode candidates with")
        self.size, self.parameters, self.page = vocabulary.candidate_size, vocabulary.action_size, features.page
        self._formula, self._offset = vocabulary.formula, vocabulary.offset
        self._mean = np.array(features.mean or np.zeros(self.size), np.float64)
        self._std = np.array(features.std or np.ones(self.size), np.float64)
        self._left, self._right = np.triu_indices(self.parameters, 1)

    def encode(self, predictions: NDArray[np.floating], seen: NDArray[np.bool_] | None = None,
               counts: NDArray[np.integer] | None = None) -> NDArray[np.float32]:
        """The last columns of B states, float32[B, W].

        Args:
            predictions: [B, M, N], by the vocabulary's fusion parameters, as the log keeps them.
            seen: bool[B, N], shown already in the session and not to be shown again; None for none.
            counts: int[B], how many candidates there are; those behind them are padding. None for N everywhere.

        Raises:
            InvalidFieldError: a shape, or a prediction that the formula does not take.
        """
        return self.normalised(self.raw(predictions, seen, counts))

    def normalised(self, raw: NDArray[np.float64]) -> NDArray[np.float32]:
        """(x − mean) / std of the features [B, W]."""
        encoded = ((raw - self._mean) / self._std).clip(-_FLOAT32_MAX, _FLOAT32_MAX)
        return encoded.astype(np.float32)

    def raw(self, predictions: NDArray[np.floating], seen: NDArray[np.bool_] | None = None,
            counts: NDArray[np.integer] | None = None) -> NDArray[np.float64]:
        """The features before they are normalised, float64[B, W]; for the arguments see `encode`."""
        require(predictions.ndim == 3 and predictions.shape[1] == self.parameters, "predictions", predictions.shape,
                f"an array [B, {self.parameters}, N]")
        rows, parameters, width = predictions.shape
        if counts is None and width and (seen is None or not seen.any()):
            return self._of_open(self._terms(predictions.astype(np.float64)))
        exists = np.ones((rows, width), bool) if counts is None else np.arange(width) < np.asarray(counts)[:, None]
        shown = np.zeros((rows, width), bool) if seen is None else seen & exists
        terms = self._terms(np.where(exists[:, None], predictions, 0.0).astype(np.float64))
        terms = np.where(exists[:, None], terms, 0.0)
        is_open = exists & ~shown
        count = is_open.sum(1)
        mean, spread, centred = _moments(terms, is_open, count)
        products = np.matmul(centred, centred.transpose(0, 2, 1)) / count.clip(min=1)[:, None, None]
        best = np.sort(np.where(is_open[:, None], -terms, np.inf), axis=2)[:, :, :self.page]
        known = np.isfinite(best)
        page = np.where(known, -best, 0.0).sum(2) / known.sum(2).clip(min=1)
        top = np.where(known[:, :, :1], -best[:, :, :1], 0.0)[:, :, 0] if width else np.zeros((rows, parameters))
        parts = [mean, spread, page, top, self._correlations(products, spread), np.log1p(count)[:, None],
                 _share_shown(terms, exists, shown, self.page)[:, None]]
        return np.concatenate(parts, 1)

    def _of_open(self, terms: NDArray[np.float64]) -> NDArray[np.float64]:
        """The same features where every candidate is open, as in most requests: for one of them in half the time."""
        rows, parameters, width = terms.shape
        raw = np.empty((rows, self.size))
        mean, spread, page, top = (raw[:, k * parameters:(k + 1) * parameters] for k in range(4))
        mean[:] = terms.sum(2) / width
        centred = terms - mean[:, :, None]
        products = np.matmul(centred, centred.transpose(0, 2, 1))
        products /= width
        np.sqrt(products.diagonal(0, 1, 2), out=spread)
        rest = max(0, width - self.page)
        best = np.partition(terms, rest, axis=2)[:, :, rest:]
        page[:] = best.sum(2) / (width - rest)
        best.max(2, out=top)
        raw[:, 4 * parameters:-2] = self._correlations(products, spread)
        raw[:, -2], raw[:, -1] = np.log1p(width), 0.0
        return raw

    def _correlations(self, products: NDArray[np.float64], spread: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of every two predictions, [B, M (M − 1) / 2], from covariances [B, M, M]; 0 where one of the two does not
        vary."""
        scale = spread[:, self._left] * spread[:, self._right]
        return np.divide(products[:, self._left, self._right], scale, out=np.zeros_like(scale), where=scale > _TINY)

    def _terms(self, terms: NDArray[np.float64]) -> NDArray[np.float64]:
        """What the fusion parameters weigh, float64[B, M, N], in the place of the predictions."""
        if self._formula == "linear":
            return terms
        terms += self._offset
        if terms.size and not terms.min() > 0.0:
            raise InvalidFieldError("predictions", float(terms.min() - self._offset),
                                    f"numbers > −{self._offset} (formula {self._formula})")
        return np.log(terms, out=terms)


def _moments(terms: NDArray[np.float64], is_open: NDArray[np.bool_],
             count: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation [B, M] of the open candidates, and what they differ from the mean by [B, M, N]."""
    rows = count.clip(min=1)[:, None]
    mean = np.where(is_open[:, None], terms, 0.0).sum(2) / rows
    centred = np.where(is_open[:, None], terms - mean[:, :, None], 0.0)
    return mean, np.sqrt(np.square(centred).sum(2) / rows), centred


def _share_shown(terms: NDArray[np.float64], exists: NDArray[np.bool_], shown: NDArray[np.bool_],
                 page: int) -> NDArray[np.float64]:
    """How much of the best page by each prediction, open or not, has been shown already; over all of them, [B].

    What equals the last of a page belongs to it, so that no order of the candidates matters.
    """
    result, rows = np.zeros(len(terms)), np.flatnonzero(shown.any(1))
    if not len(rows):
        return result
    terms, exists = terms[rows], exists[rows][:, None]
    ordered = np.sort(np.where(exists, -terms, np.inf), axis=2)
    last = -ordered[:, :, min(page, terms.shape[2]) - 1, None]
    best = exists & (terms >= last)
    result[rows] = (best & shown[rows][:, None]).sum((1, 2)) / best.sum((1, 2)).clip(min=1)
    return result
