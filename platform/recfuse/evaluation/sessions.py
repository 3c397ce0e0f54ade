"""Logged sessions and the weights of their requests, as the estimators of `sequential` take them.

Nothing here grows with the number of sessions times the longest: one that goes on for thousands of requests costs as
much as they do.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from recfuse.config import require
from recfuse.evaluation.support import Ratios, Vector, feedback_array
from recfuse.stats.intervals import user_codes


@dataclass(frozen=True)
class Products:
    """Capped products of ratios. A session that has ended keeps its last weight.

    Attributes:
        of_row: float64[n], w_t of every request.
        final: float64[N], of every session after its last request.
        total, squares: float64[T], Σw and Σw² of all sessions after each number of requests; capped: how many of them
            the cap cuts.
    """

    of_row: Vector
    final: Vector
    total: Vector
    squares: Vector
    capped: Vector

    @property
    def mean(self) -> Vector:
        """Over the sessions, [T]."""
        return self.total / len(self.final)

    @property
    def sizes(self) -> Vector:
        """Effective numbers of sessions, [T]."""
        with np.errstate(invalid="ignore"):
            return np.divide(self.total**2, self.squares, out=np.zeros_like(self.total), where=self.squares > 0)


@dataclass(frozen=True)
class Sessions:
    """Logged sessions, as the estimators of this module take them.

    Attributes:
        ratios: of the n requests.
        feedback: float64[n, m].
        discount: float64[m], γ per behaviour, in [0, 1].
        session: int64[n], 0..N − 1; step: int64[n], the request's place within its session, from 0.
        user: int64[N], 0..U − 1, of each session; users: U, some of whom may have none.
    """

    ratios: Ratios
    feedback: Vector
    discount: Vector
    session: NDArray[np.int64]
    step: NDArray[np.int64]
    user: NDArray[np.int64]
    users: int

    @classmethod
    def of(cls, log_prob: ArrayLike, behaviour_log_prob: ArrayLike, feedback: ArrayLike, discount: ArrayLike,
           cap: float, session_id: ArrayLike, user_id: ArrayLike) -> Sessions:
        """Sessions from rows in the order of time; the rows of different sessions may be mixed.

        Args:
            log_prob, behaviour_log_prob, feedback, user_id: as of `recfuse.evaluation.ope.ncis`.
            discount: one number, or [m].
            cap: of the products of ratios.
            session_id: [n]; a session belongs to the user of its first row.

        Raises:
            InvalidFieldError: a shape that does not fit or a value that is not allowed.
        """
        ratios = Ratios.of(log_prob, behaviour_log_prob, cap)
        rows = len(ratios.log)
        values = feedback_array(feedback, rows)
        gamma = np.broadcast_to(np.asarray(discount, np.float64), values.shape[1:]).copy()
        require(bool(((gamma >= 0) & (gamma <= 1)).all()), "discount", gamma.tolist(), "numbers in [0, 1]")
        code, _ = pd.factorize(np.asarray(session_id))
        require(len(code) == rows, "session_id", len(code), f"{rows} ids, one a row")
        require(bool((code >= 0).all()), "session_id", None, "ids other than null")
        session = code.astype(np.int64)
        user, users = user_codes(user_id, rows)
        order = np.argsort(session, kind="stable")
        starts = np.searchsorted(session[order], np.arange(session.max() + 1))
        step = np.empty(rows, np.int64)
        step[order] = np.arange(rows) - starts[session[order]]
        return cls(ratios, values, gamma, session, step, user[order][starts], users)

    @property
    def count(self) -> int:
        """N"""
        return len(self.user)

    @cached_property
    def last(self) -> NDArray[np.bool_]:
        """bool[n]: the session ends with the request."""
        lengths = np.bincount(self.session, minlength=self.count)
        return np.asarray(self.step == lengths[self.session] - 1, bool)

    def covered(self, horizon: int) -> Vector:
        """[m]: the share of the logged feedback, by size, that lies within the first requests of every session."""
        size = np.abs(self.discounts() * self.feedback)
        total, within = size.sum(0), size[self.step < horizon].sum(0)
        return np.divide(within, total, out=np.ones_like(total), where=total > 0)

    @property
    def longest(self) -> int:
        """Requests of the longest session."""
        return int(self.step.max()) + 1

    def within(self, horizon: int | None) -> Sessions:
        """The first requests of every session; all where None."""
        if horizon is None or horizon >= self.longest:
            return self
        require(horizon >= 1, "horizon", horizon, "an integer ≥ 1")
        kept = self.step < horizon
        return dataclasses.replace(self, ratios=Ratios(self.ratios.log[kept], self.ratios.cap),
                                   feedback=self.feedback[kept], session=self.session[kept], step=self.step[kept])

    @cached_property
    def products(self) -> Products:
        """The sessions' weights, step by step over the sessions that still go on."""
        lengths = np.bincount(self.session, minlength=self.count)
        by_length = np.argsort(-lengths, kind="stable")  # so that those that go on are always the first ones
        place = np.empty(self.count, np.int64)
        place[by_length] = np.arange(self.count)
        order = np.lexsort((place[self.session], self.step))
        alive = np.searchsorted(-lengths[by_length], -np.arange(self.longest), side="left")
        running, weight, of_row = np.zeros(self.count), np.ones(self.count), np.empty(len(self.step))
        sums = np.zeros((3, self.longest))
        start, going, ended = 0, self.count, np.zeros(3)
        for step, number in enumerate(alive):
            ended = ended + self._moments(weight[number:going])
            rows = order[start:start + number]
            running[:number] += self.ratios.log[rows]
            with np.errstate(over="ignore"):
                weight[:number] = np.exp(np.minimum(running[:number], self.ratios.limit))
            of_row[rows] = weight[:number]
            sums[:, step] = ended + self._moments(weight[:number])
            start, going = start + number, number
        final = np.empty(self.count)
        final[by_length] = weight
        return Products(of_row, final, *sums)

    def _moments(self, weight: Vector) -> Vector:
        """Σw, Σw² and how many the cap cuts."""
        with np.errstate(over="ignore"):
            return np.array([weight.sum(), (weight**2).sum(), (weight >= self.ratios.cap).sum()], np.float64)

    def discounts(self) -> Vector:
        """γ_j^t, [n, m]."""
        powers: Vector = self.discount[None] ** self.step[:, None]
        return powers
