"""Rankings of what real users were shown, each learned from other users' real feedback.

A set is one user's rows. A ranking is fitted on the sets of some users and orders those of others; how good it is, is
the real feedback of the items that it puts first. Nothing is simulated, and nothing is weighed by a propensity: every
item of a set was shown and answered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray

from recfuse.fusion.monotone import fit_curves, knots_of
from recfuse.learning.cem import cem
from recfuse.simulation.responses import FEED

# Seconds up to 180 are what a ranking is fitted to; the scorer predicts them, and one long video does not decide.
FEEDBACK = ("watch_180", "watch", "click", "long_view", "like")
# What a value is made of, as feedback and as the prediction of it.
TARGETS = {"watch_180": "watch_time", "click": "click", "long_view": "long_view", "like": "like"}
FLOORED = ("click", "long_view")
OFFSET = 1e-3
_PENALTIES = (30.0, 100.0, 300.0, 1e3, 3e3, 1e4, 3e4, 1e5)
# Seconds that a click, and a long view, may be worth.
_WORTH = ((0.0, 10.0, 20.0, 30.0, 45.0, 60.0, 80.0, 120.0, 160.0),) * 2
# A share of a floor that is missed costs so many times that share of watch time.
_SHORTFALL = 5.0
_SPREAD = 0.7

Array = NDArray[np.float64]
Scores = Callable[["Sets"], Array]
# A ranking: sets of other users and a seed → scores of rows.
Fit = Callable[["Sets", int], Scores]


@dataclass(frozen=True)
class Sets:
    """Rows of users, those of one user side by side.

    Attributes:
        user: int64[N], 0 to U − 1, not decreasing.
        names: the predicted tasks; predictions: [N, M], of each of them; 0 where the scene lacks it.
        scene: int64[N]; scenes: how many there are.
        duration: [N], seconds.
        feedback: [N, FEEDBACK].
        size: k, how many items at the top of a set count.
    """

    user: NDArray[np.int64]
    names: tuple[str, ...]
    predictions: Array
    scene: NDArray[np.int64]
    scenes: int
    duration: Array
    feedback: Array
    size: int

    @cached_property
    def counts(self) -> NDArray[np.int64]:
        """int64[U], rows of every user."""
        return np.bincount(self.user)

    @cached_property
    def place(self) -> NDArray[np.int64]:
        """int64[N], which row of its user each is."""
        return np.arange(len(self.user)) - (np.cumsum(self.counts) - self.counts)[self.user]

    def of_users(self, chosen: NDArray[np.bool_]) -> Sets:
        """The sets of the users in the mask [U], numbered anew."""
        rows = chosen[self.user]
        return replace(self, user=(np.cumsum(chosen) - 1)[self.user[rows]], predictions=self.predictions[rows],
                       scene=self.scene[rows], duration=self.duration[rows], feedback=self.feedback[rows])

    def terms(self, names: Sequence[str]) -> Array:
        """[N, names]: what the log-sum formula weighs."""
        return np.log(self.predictions[:, [self.names.index(name) for name in names]] + OFFSET)

    def top(self, scores: Array) -> Array:
        """[U, FEEDBACK]: mean feedback of each user's first k rows by score; ties keep the rows' order."""
        order = np.lexsort((-scores, self.user))
        first = order[self.place < self.size]
        sums = np.stack([np.bincount(self.user[first], column, len(self.counts)) for column in self.feedback[first].T])
        return sums.T / np.minimum(self.counts, self.size)[:, None]

    def anyhow(self) -> Array:
        """[U, FEEDBACK]: mean feedback of k rows in random order, which is that of all rows."""
        return self.means(self.feedback)

    def means(self, values: Array) -> Array:
        """[U, k]: each user's mean of values [N, k]."""
        return np.stack([np.bincount(self.user, column) for column in values.T], 1) / self.counts[:, None]

    def centred(self, values: Array) -> Array:
        """Values [N, k] less their user's mean: only differences within a set rank it."""
        return values - self.means(values)[self.user]


def weighed(weights: dict[str, float]) -> Fit:
    """The log-sum of predictions with these weights."""
    return lambda _sets, _seed: lambda sets: sets.terms(tuple(weights)) @ np.array(list(weights.values()))


def hand_tuned(name: str) -> float:
    """The hand-tuned weight of a prediction, as of a behaviour policy."""
    return FEED.weights({}, (name,))[name]


def alone(name: str) -> Fit:
    """By one prediction."""
    return lambda _sets, _seed: lambda sets: sets.predictions[:, sets.names.index(name)]


@dataclass(frozen=True)
class Searched:
    """One vector of the log-sum for everybody, by the cross-entropy method.

    Attributes:
        names: predictions that it weighs; duration: and log(1 + duration).
        values: rows' worth that the top is to have, [N]; absent, the seconds that were really watched.
        floors: the seconds, less what clicks and long views miss of the hand-tuned weights' (`penalised`).
    """

    names: tuple[str, ...]
    population: int
    iterations: int
    duration: bool = False
    values: Fit | None = None
    floors: bool = False

    def __call__(self, sets: Sets, seed: int) -> Scores:
        start = [*map(hand_tuned, self.names), *([0.0] if self.duration else [])]
        worth = sets.feedback[:, :None if self.floors else 1]
        worth = worth if self.values is None else self.values(sets, seed)(sets)[:, None]
        # A set that the top takes whole says nothing of a vector.
        large = sets.counts > sets.size
        worth, sets = worth[large[sets.user]], sets.of_users(large)
        padded, floor = _Padded(sets), hand_tuned_level(sets)
        terms, columns = padded(self._terms(sets)), padded(worth)

        def objective(vectors: Array) -> Array:
            found = padded.top(terms, columns, vectors)
            return penalised(found, floor) if self.floors else found[:, 0]

        vector = cem(objective, start, _SPREAD, population=self.population, iterations=self.iterations,
                     seed=seed).vector
        return lambda others: self._terms(others) @ vector

    def _terms(self, sets: Sets) -> Array:
        more = [np.log1p(sets.duration)[:, None]] if self.duration else []
        return np.concatenate([sets.terms(self.names), *more], 1)


class _Padded:
    """Sets of at least k rows as tensors, for many vectors at once; sets of a like length in one block each."""

    def __init__(self, sets: Sets) -> None:
        self._sets = sets
        length = np.ceil(np.log2(sets.counts)).astype(np.int64)
        self._blocks = [np.flatnonzero(length == each) for each in np.unique(length)]

    def __call__(self, values: Array) -> list[torch.Tensor]:
        """Values [N, k] as float32[users of the block, R, k] each; NaN where a set is shorter."""
        sets, blocks = self._sets, list[torch.Tensor]()
        for users in self._blocks:
            rows = np.isin(sets.user, users)
            padded = torch.full((len(users), int(sets.counts[users].max()), values.shape[1]), torch.nan)
            padded[np.searchsorted(users, sets.user[rows]), sets.place[rows]] = torch.from_numpy(values[rows]).float()
            blocks.append(padded)
        return blocks

    def top(self, terms: list[torch.Tensor], columns: list[torch.Tensor], vectors: Array) -> Array:
        """[P, k]: mean over users of the first rows' columns, by every one of vectors [P, M]."""
        total = torch.zeros(len(vectors), columns[0].shape[2], dtype=torch.float64)
        for block, values in zip(terms, columns, strict=True):
            for index, vector in enumerate(torch.from_numpy(vectors).float()):
                scores = (block @ vector).nan_to_num(nan=-torch.inf)
                best = scores.topk(self._sets.size, 1).indices
                chosen = values.gather(1, best.unsqueeze(2).expand(-1, -1, values.shape[2]))
                total[index] += chosen.mean(1).double().sum(0)
        return np.asarray((total / len(self._sets.counts)).numpy())


# Columns that a value is regressed on, [N, k].
Columns = Callable[[Sets], Array]


def fused(sets: Sets) -> Array:
    """The predictions, and their logarithms."""
    return np.concatenate([sets.predictions, sets.terms(sets.names)], 1)


def by_scene(sets: Sets) -> Array:
    """The same in every scene, and apart."""
    columns = fused(sets)
    return np.concatenate([columns, *(columns * (sets.scene == scene)[:, None] for scene in range(sets.scenes))], 1)


def with_duration(sets: Sets) -> Array:
    """And how long the items are."""
    return np.concatenate([by_scene(sets), sets.duration[:, None], np.log1p(sets.duration)[:, None]], 1)


def about(sets: Sets) -> Array:
    """What a user, and what there is to rank, are like: means and spread of predictions, and how many rows."""
    seconds = sets.predictions[:, [sets.names.index("watch_time")]]
    spread = np.sqrt(np.maximum(sets.means(seconds ** 2) - sets.means(seconds) ** 2, 0))
    return np.concatenate([sets.means(sets.terms(tuple(TARGETS.values()))), np.log1p(spread),
                           np.log(sets.counts)[:, None]], 1)[sets.user]


@dataclass(frozen=True)
class Regressed:
    """What each target is worth by row: the scorer's own prediction, and a ridge regression of what it misses.

    Differences within a user alone are regressed. The penalty of every target is chosen out of fold by user, so that
    what the columns do not tell leaves the prediction as it is.

    Attributes:
        columns: of the regression.
        about: its coefficients of the predictions depend on these columns too.
    """

    columns: Columns
    about: Columns | None = None

    def __call__(self, sets: Sets, seed: int) -> Scores:
        design = self._design(sets)
        columns, missed = sets.centred(design(sets)), sets.centred(_realised(sets) - _predicted(sets))
        fold = np.random.default_rng([seed, 4]).integers(0, 4, len(sets.counts))[sets.user]
        error = np.zeros((len(_PENALTIES), missed.shape[1]))
        for number in range(4):
            out = fold == number
            for index, weights in enumerate(_ridges(columns[~out], missed[~out])):
                error[index] += ((missed[out] - columns[out] @ weights) ** 2).sum(0)
        every = np.stack(list(_ridges(columns, missed)))
        weights = every[error.argmin(0), :, np.arange(missed.shape[1])].T
        return lambda others: _predicted(others) + design(others) @ weights

    def _design(self, sets: Sets) -> Scores:
        """Sets → columns [N, k], normalised as in these sets."""
        parts: list[Scores] = [_normalised(self.columns, sets)]
        if self.about is not None:
            terms = _normalised(lambda others: others.terms(others.names), sets)
            place = _normalised(self.about, sets)
            parts.append(lambda others: (
                terms(others)[:, :, None] * place(others)[:, None]).reshape(len(others.user), -1))
        return lambda others: np.concatenate([part(others) for part in parts], 1)


def _normalised(columns: Columns, sets: Sets) -> Scores:
    raw = columns(sets)
    mean, scale = raw.mean(0), raw.std(0) + 1e-9
    return lambda others: (columns(others) - mean) / scale


@dataclass(frozen=True)
class Curved:
    """What each target is worth by row: a sum of monotone curves of the predictions."""

    knots: int = 8

    def __call__(self, sets: Sets, seed: int) -> Scores:
        predictions, user = torch.from_numpy(sets.predictions), torch.from_numpy(sets.user)
        x = knots_of(predictions, self.knots)
        curves = [fit_curves(predictions, target, user, x=x) for target in torch.from_numpy(_realised(sets)).T]
        return lambda others: torch.stack(
            [one(torch.from_numpy(others.predictions)).sum(1) for one in curves], 1).numpy()


@dataclass(frozen=True)
class Worth:
    """The sum of the targets' values: seconds, and, with floors, what a click and a long view are worth in seconds.

    Their worth is that with which the ranking has the most watch time while clicks and long views are not fewer than by
    the hand-tuned weights; one half of the users' values come from the other half's feedback there.
    """

    values: Fit
    floors: bool = False

    def __call__(self, sets: Sets, seed: int) -> Scores:
        worth = self._worth(sets, seed) if self.floors else np.eye(len(TARGETS))[0]
        values = self.values(sets, seed)
        return lambda others: values(others) @ worth

    def _worth(self, sets: Sets, seed: int) -> Array:
        values = crossed(self.values, sets, np.random.default_rng([seed, 2]).permutation(len(sets.counts)) % 2, seed)
        floor = hand_tuned_level(sets)
        grid = np.array([(1.0, *worth, 0.0) for worth in product(*_WORTH)])
        found = np.stack([sets.top(values @ worth).mean(0) for worth in grid])
        best: Array = grid[int(penalised(found, floor).argmax())]
        return best


def crossed(fit: Fit, sets: Sets, fold: NDArray[np.int64], seed: int) -> Array:
    """Scores [N, …] of all rows, those of a user's fold [U] fitted on the other fold."""
    parts = [(fold[sets.user] == number, fit(sets.of_users(fold != number), seed)(sets.of_users(fold == number)))
             for number in (0, 1)]
    scores = np.empty((len(sets.user), *parts[0][1].shape[1:]))
    for rows, part in parts:
        scores[rows] = part
    return scores


def penalised(found: Array, floor: Array) -> Array:
    """[P]: watch time of rankings' feedback [P, FEEDBACK], less what floored feedback is short of the floor's."""
    place = [FEEDBACK.index(name) for name in FLOORED]
    short = np.maximum(1 - found[:, place] / floor[place], 0).sum(1)
    return np.asarray(found[:, 0] * (1 - _SHORTFALL * short))


def hand_tuned_level(sets: Sets) -> Array:
    """[FEEDBACK]: what the hand-tuned weights bring without a prediction of watch time."""
    weights = {name: hand_tuned(name) for name in sets.names if name != "watch_time"}
    return np.asarray(sets.top(weighed(weights)(sets, 0)(sets)).mean(0))


def _realised(sets: Sets) -> Array:
    return sets.feedback[:, [FEEDBACK.index(name) for name in TARGETS]]


def _predicted(sets: Sets) -> Array:
    return sets.predictions[:, [sets.names.index(name) for name in TARGETS.values()]]


def _ridges(columns: Array, target: Array) -> Iterator[NDArray[np.floating]]:
    """Coefficients [k, targets] for every penalty."""
    gram, moment = columns.T @ columns, columns.T @ target
    for penalty in _PENALTIES:
        yield np.linalg.solve(gram + penalty * np.eye(len(gram)), moment)
