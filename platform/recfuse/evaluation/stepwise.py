"""Estimates whose weights sum to one over the sessions at every step, from sums per user and step."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recfuse.evaluation.answers import fit_errors
from recfuse.evaluation.sessions import Sessions
from recfuse.evaluation.support import Vector
from recfuse.stats.intervals import UserSums

_CELLS = 1 << 20  # of a block of steps, beyond which it holds a single one
Integers = NDArray[np.intp]


def stepwise_sums(sessions: Sessions, corrected: Vector, led: Vector, beyond: Vector,
                  fit_error: ArrayLike | None) -> tuple[UserSums, Callable[[Vector], Vector]]:
    """Sums per user, and the estimate from sums: `Σ_t (Σ_i corrected_{i,t−1} + Σ_i led_{i,t}) / Σ_i w_{i,t−1}`.

    A user stands in the columns of a step only while one of the user's sessions goes on. What has ended keeps its last
    weight, which is summed once, at the step after its end, and carried on from there.

    Args:
        corrected: [n, m], weighted errors of the critics, over Σ w_t; led: [n, m], their weighted values, over
            Σ w_{t−1}; beyond: [N, m], the values of what follows the last request, over Σ w_{T−1}.
        fit_error: [U', m], what other users add to the estimate; None for nothing.
    """
    width, users = corrected.shape[1], sessions.users
    blocks, steps = _blocks(*_entries(sessions, corrected, led, beyond), width + 2)
    error = fit_errors(fit_error, width)
    if len(error):
        blocks.append((np.arange(users, users + len(error)), error))

    def statistic(s: Vector) -> Vector:
        total, ended, start = np.zeros((len(s), width)), np.zeros((len(s), 1)), 0
        for number in steps:
            of_block = s[:, start:start + number * (width + 2)].reshape(len(s), number, width + 2)
            gone = ended + np.cumsum(of_block[:, :, width + 1], 1)
            total += (of_block[:, :, :width] / (of_block[:, :, width] + gone)[:, :, None]).sum(1)
            ended, start = gone[:, -1:], start + number * (width + 2)
        return total + s[:, start:] if len(error) else total

    return UserSums(users + len(error), tuple(blocks)), statistic


def _entries(sessions: Sessions, corrected: Vector, led: Vector, beyond: Vector) -> tuple[Integers, Integers, Vector]:
    """User, step in 0, …, T and values [e, m + 2] of what is summed: the numerator [m], the weight w_{t−1} of a session
    that had a request t − 1, the last weight of one that ended right before it."""
    products, steps, count = sessions.products, sessions.longest, sessions.count
    lengths = np.bincount(sessions.session, minlength=count)
    ended = np.flatnonzero(lengths < steps)
    of_row = sessions.user[sessions.session]
    none, zeros = np.zeros((len(led), 1)), np.zeros((count, 1))
    parts = [
        (of_row, sessions.step, np.hstack([led, none, none])),
        (of_row, sessions.step + 1, np.hstack([corrected, products.of_row[:, None], none])),
        (sessions.user, np.zeros(count, np.int64), np.hstack([np.zeros_like(beyond), zeros + 1, zeros])),
        (sessions.user, np.full(count, steps), np.hstack([beyond, zeros, zeros])),
        (sessions.user[ended], lengths[ended] + 1,
         np.hstack([np.zeros_like(beyond), zeros, products.final[:, None]])[ended]),
    ]
    if not beyond.any():  # then it keeps no user until the end
        del parts[3]
    user, step, values = (np.concatenate([part[index] for part in parts]) for index in range(3))
    return user, step, values


def _blocks(user: Integers, step: Integers, values: Vector, width: int) -> tuple[list[tuple[Integers, Vector]],
                                                                               list[int]]:
    """Sums per user and step in blocks of steps, each [u, steps · width] with its users; and how many steps each has.

    The more users go on, the fewer steps a block has, so that what is held is in the order of the entries.
    """
    latest = np.full(int(user.max()) + 1, -1)
    np.maximum.at(latest, user, step)
    by_latest = np.argsort(-latest, kind="stable")
    place = np.empty(len(latest), np.int64)
    place[by_latest] = np.arange(len(latest))
    order = np.argsort(step, kind="stable")
    user, step, values = place[user][order], step[order], values[order]
    steps = int(step[-1]) + 1
    going = np.searchsorted(-latest[by_latest], -np.arange(steps), side="right")
    blocks: list[tuple[Integers, Vector]] = []
    sizes, first = [], 0
    while first < steps:
        number = int(min(max(_CELLS // (int(going[first]) * width), 1), steps - first))
        start, stop = np.searchsorted(step, [first, first + number])
        cell = user[start:stop] * number + step[start:stop] - first
        cells = int(going[first]) * number
        sums: Vector = np.stack([np.bincount(cell, column, cells) for column in values[start:stop].T], 1)
        members = by_latest[:going[first]]
        sums = sums.reshape(int(going[first]), number * width)
        blocks.append((members, sums))
        sizes.append(number)
        first += number
    return blocks, sizes
