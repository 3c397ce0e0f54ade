"""The answers by question: what the log itself says, who answers, what disagrees, and what nobody answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np

from recfuse.evaluation.answers import OffPolicyEstimate, TrendPoint, Vector
from recfuse.evaluation.case import Case
from recfuse.evaluation.estimator import QUESTIONS, Estimator, Question

_VECTORS = ("estimate", "low", "high", "change", "change_low", "change_high", "effective_sample_size")
_NUMBERS = ("estimator", "requests", "users", "mean_ratio", "capped_share", "window", "feedback_share", "ranks_only",
            "refused")


@dataclass(frozen=True)
class Disagreement:
    """Two estimators of one question that cannot both be right.

    Attributes:
        first, second: their names; behaviour: of which.
        difference, low, high: of their relative changes, first less second, by the same draws of users.
    """

    first: str
    second: str
    behaviour: str
    difference: float
    low: float
    high: float

    def __str__(self) -> str:
        return (f"{self.first} and {self.second} disagree on {self.behaviour}: {self.difference:+.1%} "
                f"[{self.low:+.1%}, {self.high:+.1%}] of the log's mean apart")


@dataclass(frozen=True)
class Block:
    """One question and its answers.

    Attributes:
        question: see `Question`.
        logged: float64[m], the log's own mean of what is asked.
        answers: in the order of the list; where two are the same number, they are one, under both names.
        formulas: of the answers. behaviours: names of the columns.
        disagreements: between the answers.
    """

    question: Question
    logged: Vector
    answers: tuple[OffPolicyEstimate, ...]
    formulas: tuple[str, ...]
    behaviours: tuple[str, ...]
    disagreements: tuple[Disagreement, ...]

    @property
    def nobody(self) -> str:
        """Why nobody answers; "" where somebody does."""
        return "" if self.answers else self.question.nobody

    @property
    def trend(self) -> tuple[TrendPoint, ...]:
        """The changes by windows of 1, 2, … requests."""
        return next((answer.trend for answer in self.answers if answer.trend), ())

    def rows(self) -> list[list[str]]:
        """A line per estimator, as text: window, ESS, and per behaviour its change from the log with its interval; or
        why none."""
        lines = []
        for answer in self.answers:
            first = [answer.estimator, str(answer.window or ""), f"{answer.effective_sample_size[0]:,.0f}"]
            cells = [answer.refused, *[""] * (len(self.behaviours) - 1)] if answer.refused else [
                relative(answer, index) for index in range(len(self.behaviours))]
            lines.append([*first, *cells])
        return lines

    def lines(self) -> list[str]:
        """What warns of the answers, in sentences, each once."""
        found = [f"{answer.estimator}: {sentence}" for answer in self.answers for sentence in answer.warnings]
        return [*([self.nobody] if self.nobody else []), *dict.fromkeys(found), *map(str, self.disagreements)]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `metrics.json` holds them."""
        return {
            "question": self.question.name, "unit": self.question.unit, "words": self.question.words,
            "logged": _numbers(self.logged), "nobody": self.nobody,
            "answers": [_plain(answer, formula) for answer, formula in zip(self.answers, self.formulas, strict=True)],
            "trend": [{"window": point.window, "change": _numbers(point.change), "change_low": _numbers(point.low),
                       "change_high": _numbers(point.high)} for point in self.trend],
            "disagreements": [dataclasses.asdict(each) for each in self.disagreements]}


def blocks_of(case: Case, estimators: Sequence[Estimator], answers: Sequence[OffPolicyEstimate],
              behaviours: tuple[str, ...]) -> tuple[Block, ...]:
    """One block a question.

    Args:
        answers: of `estimate_all`, of some of the estimators.
    """
    by_name = {estimator.name: estimator for estimator in estimators}
    return tuple(_block(question, case, [answer for answer in answers
                                         if by_name[answer.estimator].question is question],
                        {name: each.formula for name, each in by_name.items()}, behaviours)
                 for question in QUESTIONS)


def _block(question: Question, case: Case, answers: Sequence[OffPolicyEstimate], formulas: Mapping[str, str],
           behaviours: tuple[str, ...]) -> Block:
    logged = next((answer.logged for answer in answers if not answer.refused), None)
    rows: list[tuple[OffPolicyEstimate, str]] = []
    for answer in answers:
        for place, (other, formula) in enumerate(rows):
            if _same(other, answer):
                joined = dataclasses.replace(other, estimator=f"{other.estimator} = {answer.estimator}")
                rows[place] = (joined, formula)
                break
        else:
            rows.append((answer, formulas[answer.estimator]))
    joined_answers = tuple(answer for answer, _ in rows)
    return Block(question, question.logged(case) if logged is None else logged, joined_answers,
                 tuple(formula for _, formula in rows), behaviours,
                 _disagreements(joined_answers, behaviours, case.options.level))


def _same(one: OffPolicyEstimate, other: OffPolicyEstimate) -> bool:
    """Two names of one number: they agree in the estimate, in its interval and in every draw."""
    if one.refused or other.refused or one.drawn is None or other.drawn is None or one.ranks_only != other.ranks_only:
        return False
    pairs = [(one.estimate, other.estimate), (one.low, other.low), (one.high, other.high), (one.drawn, other.drawn)]
    return all(a.shape == b.shape and np.allclose(a, b, rtol=1e-6, atol=1e-9, equal_nan=True) for a, b in pairs)


def _disagreements(answers: Sequence[OffPolicyEstimate], behaviours: tuple[str, ...],
                   level: float) -> tuple[Disagreement, ...]:
    """Of all pairs and behaviours at once: an interval is so wide that all of them hold with the level (Bonferroni)."""
    answering = [answer for answer in answers if answer.drawn is not None]
    pairs = list(combinations(answering, 2))
    if not pairs:
        return ()
    reach = NormalDist().inv_cdf(1 - (1 - level) / 2 / (len(pairs) * len(behaviours)))
    found = []
    for one, other in pairs:
        assert one.drawn is not None
        assert other.drawn is not None
        error = _spread(one.drawn, other.drawn)
        for index, name in enumerate(behaviours):
            difference = float(one.change[index] - other.change[index])
            half = reach * float(error[index]) + _allowance(one, index) + _allowance(other, index)
            if math.isfinite(half) and abs(difference) > max(half, 1e-9):
                found.append(Disagreement(one.estimator, other.estimator, name, difference, difference - half,
                                          difference + half))
    return tuple(found)


def _allowance(answer: OffPolicyEstimate, index: int) -> float:
    """By how much an answer may be off for weights that are cut or missing, relative to the log."""
    return 0.0 if answer.allowance is None else float(answer.allowance[index] / abs(answer.logged[index]))


def _spread(one: Vector, other: Vector) -> Vector:
    """Standard deviation over the draws [D, m] in which both have a value; NaN where fewer than two have."""
    with np.errstate(invalid="ignore"):
        difference = one - other
    known = np.isfinite(difference)
    count = known.sum(0)
    difference = np.where(known, difference, 0.0)
    mean = difference.sum(0) / np.maximum(count, 1)
    squares = np.where(known, difference - mean, 0.0)
    spread: Vector = np.sqrt((squares**2).sum(0) / np.maximum(count - 1, 1))
    return np.where(count > 1, spread, np.nan)


def relative(answer: OffPolicyEstimate, index: int) -> str:
    """One behaviour's change from the log with its interval, as text; the estimate where the log's mean is 0."""
    change = answer.change[index]
    if not math.isfinite(change):
        return f"{answer.estimate[index]:.3g}"
    low, high = answer.change_low[index], answer.change_high[index]
    if math.isfinite(low):
        return f"{change:+.1%} [{low:+.1%}, {high:+.1%}]"
    return f"{change:+.1%} ({'ranks only' if answer.ranks_only else 'too few events'})"


def _plain(answer: OffPolicyEstimate, formula: str) -> dict[str, Any]:
    bound, allowance = (None if values is None else _numbers(values)
                        for values in (answer.bias_bound, answer.allowance))
    plain = {key: getattr(answer, key) for key in _NUMBERS}
    return {**plain, "mean_ratio": answer.mean_ratio if math.isfinite(answer.mean_ratio) else None,
            "formula": formula, **{key: _numbers(getattr(answer, key)) for key in _VECTORS},
            "cap": answer.cap if math.isfinite(answer.cap) else None, "bias_bound": bound, "allowance": allowance,
            "warnings": list(answer.warnings)}


def _numbers(values: Vector) -> list[float | None]:
    return [float(value) if math.isfinite(value) else None for value in values]
