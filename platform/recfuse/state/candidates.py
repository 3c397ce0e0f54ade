"""What a state says of the candidates (maths 5.8): one function for serving, simulation and replay."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError, require

_FLOAT32_MAX = float(np.finfo(np.float32).max)
_TINY = 1e-12
# Features of so many candidates are computed at a time.
_AT_ONCE = 1 << 14


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
        self._vocabulary, self._offset = vocabulary, vocabulary.offset
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
        rows, _, width = predictions.shape
        # So few that what is computed of them stays in the cache.
        at_once = max(1, _AT_ONCE // max(1, width))
        if rows <= at_once:
            return self._of_some(predictions, seen, counts)
        result = np.empty((rows, self.size))
        for start in range(0, rows, at_once):
            some = slice(start, start + at_once)
            result[some] = self._of_some(predictions[some], None if seen is None else seen[some],
                                         None if counts is None else np.asarray(counts)[some])
        return result

    def _of_some(self, predictions: NDArray[np.floating], seen: NDArray[np.bool_] | None,
                 counts: NDArray[np.integer] | None) -> NDArray[np.float64]:
        """The same, at once."""
        rows, _, width = predictions.shape
        if counts is None and width:
            terms = self._terms(predictions.astype(np.float64))
            if seen is None or not seen.any():
                return self._of_open(terms)
            untouched = ~seen.any(1)
            if not untouched.any():
                return self._of_masked(terms, np.ones_like(seen), seen)
            result, some = np.empty((rows, self.size)), ~untouched
            result[untouched] = self._of_open(terms[untouched])
            result[some] = self._of_masked(terms[some], np.ones_like(seen[some]), seen[some])
            return result
        exists = np.ones((rows, width), bool) if counts is None else np.arange(width) < np.asarray(counts)[:, None]
        terms = self._terms(np.where(exists[:, None], predictions, 0.0).astype(np.float64))
        return self._of_masked(terms, exists, np.zeros((rows, width), bool) if seen is None else seen & exists)

    def _of_masked(self, terms: NDArray[np.float64], exists: NDArray[np.bool_],
                   shown: NDArray[np.bool_]) -> NDArray[np.float64]:
        """The features where some candidates are padding, or shown already."""
        is_open = exists & ~shown
        count = is_open.sum(1)
        weight, some = is_open[:, None].astype(np.float64), count.clip(min=1)[:, None]
        mean = np.matmul(terms, weight.transpose(0, 2, 1))[:, :, 0] / some
        centred = terms - mean[:, :, None]
        centred *= weight
        products = np.matmul(centred, centred.transpose(0, 2, 1)) / some[:, :, None]
        spread = np.sqrt(products.diagonal(0, 1, 2))
        best = np.where(is_open[:, None], terms, -np.inf)
        best.sort(axis=2)
        best = best[:, :, -self.page:]
        known = np.where(best > -np.inf, best, 0.0)
        page = known.sum(2) / count.clip(1, self.page)[:, None]
        top = known[:, :, -1] if terms.shape[2] else np.zeros(page.shape)
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
        if self._vocabulary.formula == "linear":
            return self._vocabulary.curved(terms)
        terms += self._offset
        if terms.size and not terms.min() > 0.0:
            raise InvalidFieldError("predictions", float(terms.min() - self._offset),
                                    f"numbers > −{self._offset} (formula {self._vocabulary.formula})")
        return np.log(terms, out=terms)


def _share_shown(terms: NDArray[np.float64], exists: NDArray[np.bool_], shown: NDArray[np.bool_],
                 page: int) -> NDArray[np.float64]:
    """How much of the best page by each prediction, open or not, has been shown already; over all of them, [B].

    What equals the last of a page belongs to it, so that no order of the candidates matters.
    """
    result, rows = np.zeros(len(terms)), np.flatnonzero(shown.any(1))
    if not len(rows):
        return result
    if len(rows) < len(terms):
        terms, exists, shown = terms[rows], exists[rows], shown[rows]
    exists = exists[:, None]
    ordered = np.where(exists, terms, -np.inf)
    ordered.sort(axis=2)
    best = exists & (terms >= ordered[:, :, -min(page, terms.shape[2]), None])
    of_best = np.count_nonzero(best, axis=(1, 2)).clip(min=1)
    result[rows] = np.count_nonzero(best & shown[:, None], axis=(1, 2)) / of_best
    return result
