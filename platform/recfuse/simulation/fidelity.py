"""What ranking changes, in the world and in reality (maths 4.8).

A world whose rates are those of the log under one policy may still answer another ranking as nobody would. So a few
exposures of a user are ranked, and the feedback of the best is held against that of all of them: in the log on
exposures that the scorer never saw, in the world on as many of a pool, whose expected feedback is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recfuse.learning.cem import cem
from recfuse.logs.exposures import RESPONSE_SHARE, Exposures, row_share
from recfuse.simulation.response import marginals
from recfuse.simulation.responses import Responses
from recfuse.simulation.world import World
from recfuse.stats.intervals import of_sums, relative_change

# A set has so many exposures, or a few less where a user has no more; so many of them count as shown.
SIZE, LEAST, TOP = 7, 5, 2
# An effect is off where it differs by more than this share of the real one and by more than this many points.
SHARE, POINTS = .25, .02
_FEW = 200  # sets of a scene below which it is left out
_WORLD_SETS = 6_000
_CHANCES = 256  # quantiles that an expected watch time is the mean of


@dataclass(frozen=True)
class Sets:
    """Exposures of n sets, each of one user in one scene.

    Attributes:
        terms: float32[n, SIZE, M], what a fusion vector weighs; inside: bool[n, SIZE], false beyond a set's end.
        feedback: float64[n, SIZE, measures], counted or expected; user: int64[n].
    """

    terms: NDArray[np.float32]
    inside: NDArray[np.bool_]
    feedback: NDArray[np.float64]
    user: NDArray[np.int64]

    def of_best(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """float64[K, n, measures]: mean feedback of the TOP exposures by each of K vectors [K, M]."""
        result = []
        for vector in vectors:
            scores = np.where(self.inside, self.terms @ vector.astype(np.float32), -np.inf)
            best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
            result.append(np.take_along_axis(self.feedback, best[..., None], 1).mean(1))
        return np.stack(result)

    @property
    def of_all(self) -> NDArray[np.float64]:
        """float64[n, measures]: mean feedback of a set, what a random order gives."""
        weight = self.inside / self.inside.sum(1, keepdims=True)
        mean: NDArray[np.float64] = np.einsum("nk,nkf->nf", weight, self.feedback)
        return mean


@dataclass(frozen=True)
class Effect:
    """What a ranking changes of a measure in a scene, relative to a random order.

    Attributes:
        simulated: in the world; real: in the log, [low, high]: its 95% interval over users.
    """

    scene: str
    ranking: str
    measure: str
    simulated: float
    real: float
    low: float
    high: float

    @property
    def known(self) -> bool:
        """Whether both sides have a number."""
        return bool(np.isfinite([self.simulated, self.real, self.low, self.high]).all())

    @property
    def off(self) -> bool:
        """Further from the log than SHARE of its effect and than POINTS; an effect of the other sign, but for POINTS,
        always is."""
        return self.known and abs(self.simulated - self.real) > max(SHARE * abs(self.real), POINTS)

    @property
    def inside(self) -> bool:
        """Within the log's own interval."""
        return self.known and self.low <= self.simulated <= self.high

    def __str__(self) -> str:
        return f"{self.scene} {self.ranking} {self.measure}"


def verdict(effects: Sequence[Effect]) -> str:
    """How many effects are as in the log, and which are not, in a sentence."""
    known = [effect for effect in effects if effect.known]
    if not known:
        return f"What ranking changes cannot be compared with the log: no scene has {_FEW} sets of unseen exposures."
    off = [effect for effect in known if effect.off]
    text = (f"{len(known) - len(off)} of {len(known)} effects of a ranking within {SHARE:.0%} of the log's or "
            f"{100 * POINTS:g} points")
    beyond = [str(effect) for effect in off if not effect.inside]
    noisy = [str(effect) for effect in off if effect.inside]
    return (text + (f"; off: {'; '.join(beyond)}" if beyond else "")
            + (f"; off, but inside the log's interval: {'; '.join(noisy)}" if noisy else ""))


def measures_of(responses: Responses) -> tuple[str, ...]:
    """What rankings are compared by: the amount, the ladder and the first interaction."""
    return (*responses.amounts, *responses.ladder, *responses.interactions[:1])


def unseen(exposures: Exposures) -> NDArray[np.bool_]:
    """bool[N]: rows that no scorer was trained on: the response model's share, and the last day."""
    day = exposures.column("day")
    rows: NDArray[np.bool_] = (row_share(exposures) < RESPONSE_SHARE) | (day == day.max())
    return rows


def real_sets(exposures: Exposures, terms: NDArray[np.float32], scene: str, measures: tuple[str, ...],
              seed: int = 0) -> Sets:
    """Sets of unseen exposures in a scene, of users who have at least LEAST of them.

    Args:
        terms: [N, M] of every row of the exposures. measures: columns of the exposures.
    """
    rows = np.flatnonzero(unseen(exposures) & (exposures.column("scene") == scene))
    rows = np.random.default_rng([seed, 0xF1]).permutation(rows)
    user = exposures.column("user_id")[rows]
    rows, user = (values[np.argsort(user, kind="stable")] for values in (rows, user))
    first = np.searchsorted(user, user)
    rank = np.arange(len(user)) - first
    of_user = np.searchsorted(user, user, side="right") - first
    # A user's last set may be short; below LEAST it is left out.
    kept = np.minimum(of_user - rank // SIZE * SIZE, SIZE) >= LEAST
    number = np.cumsum((rank % SIZE == 0) & kept)[kept] - 1
    place, rows = (rank % SIZE)[kept], rows[kept]
    sets = int(number.max(initial=-1)) + 1
    inside = np.zeros((sets, SIZE), bool)
    inside[number, place] = True
    of_sets = np.zeros((sets, SIZE, terms.shape[1]), np.float32)
    of_sets[number, place] = terms[rows]
    feedback = np.zeros((sets, SIZE, len(measures)))
    feedback[number, place] = np.stack([exposures.column(name)[rows] for name in measures], 1)
    users = np.zeros(sets, np.int64)
    users[number] = user[kept]
    return Sets(of_sets, inside, feedback, users)


def world_sets(world: World, scene: str, like: Sets, seed: int = 0) -> Sets:
    """Sets of a world's pools in a scene, as large as those of the log, with their expected feedback."""
    rng = np.random.default_rng([seed, 0xF2])
    entries = np.flatnonzero(world.entry_scene == world.scenes.index(scene))
    entry = np.resize(rng.permutation(entries), _WORLD_SETS)
    place = rng.random((len(entry), world.config.pool)).argpartition(SIZE - 1, axis=1)[:, :SIZE]
    terms = np.take_along_axis(world.terms[entry], place[:, None], 2).transpose(0, 2, 1)
    return Sets(terms, like.inside[rng.integers(0, len(like.inside), len(entry))],
                expected_feedback(world, entry[:, None], place), world.entry_user[entry])


def expected_feedback(world: World, entry: NDArray[np.int64], place: NDArray[np.int64]) -> NDArray[np.float64]:
    """float64[..., measures]: the mean feedback to items of pools that are looked at, as in `measures_of`."""
    logits = world.logits[entry, place].astype(np.float64)
    chance = marginals(logits, world.outcome)
    ladder = len(world.responses.ladder)
    reached = np.concatenate([np.ones_like(chance[..., :1]), chance[..., :ladder]], -1)
    shares = np.concatenate([reached[..., :-1] - reached[..., 1:], reached[..., -1:]], -1)
    means = np.zeros(shares.shape)
    for luck in (np.arange(_CHANCES) + .5) / _CHANCES:
        for outcome in range(ladder + 1):
            means[..., outcome] += world.amount(entry, place, np.asarray(outcome), np.asarray(luck)) / _CHANCES
    amounts = len(world.responses.amounts)
    amount = (shares * means).sum(-1, keepdims=True)[..., :amounts]
    return np.concatenate([amount, chance[..., :len(measures_of(world.responses)) - amounts]], -1)


def fidelity(world: World, exposures: Exposures, terms: NDArray[np.float32],
             hand_tuned: NDArray[np.float64]) -> tuple[Effect, ...]:
    """What hand-tuned weights, every column and a searched vector change, in the world and in the log.

    Args:
        exposures: that the world was built from; terms: [N, M] of every row of them.
        hand_tuned: [M].
    """
    effects: list[Effect] = []
    for scene in world.scenes:
        real = real_sets(exposures, terms, scene, measures_of(world.responses))
        if len(real.user) < _FEW or len(np.unique(real.user)) < 2:
            continue
        simulated = world_sets(world, scene, real)
        vectors = _rankings(world, simulated, real, hand_tuned)
        effects += _effects(scene, vectors, simulated, real, measures_of(world.responses))
    return tuple(effects)


def _rankings(world: World, simulated: Sets, real: Sets,
              hand_tuned: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Ranking → fusion vector [M]; a column that the scene lacks ranks nothing."""
    names = world.vocabulary.fusion_parameters
    columns = {name: np.eye(len(names))[index] for index, name in enumerate(names)
               if np.ptp(real.terms[..., index][real.inside]) > 0}
    amount, measures = world.responses.amount, measures_of(world.responses)
    primary = measures.index(world.responses.primary)
    found = cem(lambda vectors: simulated.of_best(vectors)[..., primary].mean(1), hand_tuned, .7,
                population=24, iterations=12)
    hand = {"hand-tuned": hand_tuned}
    if amount in columns:
        hand[f"hand-tuned without {amount}"] = hand_tuned * (1 - columns[amount])
    return {**hand, **columns, "CEM": found.vector}


def _effects(scene: str, vectors: Mapping[str, NDArray[np.float64]], simulated: Sets, real: Sets,
             measures: tuple[str, ...]) -> list[Effect]:
    stacked = np.stack(list(vectors.values()))
    changes = relative_change(simulated.of_best(stacked).mean(1), simulated.of_all.mean(0))
    width = len(stacked) * len(measures)
    best = real.of_best(stacked).transpose(1, 0, 2).reshape(-1, width)
    _, user = np.unique(real.user, return_inverse=True)
    per_user = np.stack([np.bincount(user, column) for column in np.concatenate([best, real.of_all], 1).T], 1)

    def relative(sums: NDArray[np.float64]) -> NDArray[np.float64]:
        return relative_change(sums[:, :width], np.tile(sums[:, width:], len(stacked)))

    interval = of_sums(per_user, relative)
    return [Effect(scene, ranking, measure, float(changes[row, column]),
                   *(float(ends[row * len(measures) + column])
                     for ends in (interval.estimate, interval.low, interval.high)))
            for row, ranking in enumerate(vectors) for column, measure in enumerate(measures)]
