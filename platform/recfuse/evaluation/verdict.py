"""What a test of served models says about goals and floors: promote, go on, roll back, or nothing, in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Literal

import numpy as np

from recfuse.evaluation.ab import MeasureEffect, ServedTest, span
from recfuse.stats.sequential import always_valid_p, error_for_reach
from recfuse.stats.significance import adjust

Action = Literal["promote", "go on", "roll back", "no verdict"]
_LONGEST = 365.0  # days that a forecast looks ahead


@dataclass(frozen=True)
class Verdict:
    """What to do.

    Attributes:
        action: what; words: why, one sentence; row: the measure or check that decided.
        until: when a test that goes on would find `smallest`, at the rate so far; None where it does not, or not within
            a year.
        smallest: relative effect on the row.
        kept: whether every floor that must be proven is surely kept.
    """

    action: Action
    words: str
    row: str
    until: datetime | None = None
    smallest: float | None = None
    kept: bool = False


@dataclass(frozen=True)
class _Bound:
    """A goal or a floor, and the measure that it is of."""

    kind: Literal["goal", "floor"]
    value: float
    effect: MeasureEffect

    @property
    def is_kept(self) -> bool:
        """Surely."""
        low = self.effect.low
        return low > self.value or (self.kind == "floor" and low >= self.value)

    def __str__(self) -> str:
        return (f"{self.effect.name} {span(self.effect.estimate, self.effect.low, self.effect.high)} against its "
                f"{self.kind} {self.value:+.2%}")


def decide(test: ServedTest, shares: int = 1) -> Verdict:
    """The verdict of a test.

    A floor that is broken and a goal that can no longer be reached roll back. All of them are one family (Holm), whose
    chance of error, 1 − level, is divided by `shares`, the tests that one rollout is made of. Goals and floors must
    all hold for a promotion, so that none of them needs a correction.
    """
    if failure := _failed_check(test):
        return failure
    bounds = _bounds(test)
    if not bounds:
        return Verdict("no verdict", "no goals or floors are named (targets.goals, targets.floors)", "targets")
    missed = _missed(test, bounds, (1 - test.targets.level) / shares)
    unproven = [bound for bound in bounds if not bound.is_kept and not _is_excused(test, bound)]
    kept = not any(bound.kind == "floor" for bound in unproven)
    if missed is not None:
        word = "is surely below" if missed.kind == "floor" else "surely does not reach"
        return Verdict("roll back", f"roll back: {missed}, which it {word}", missed.effect.name)
    if not unproven and test.targets.goals:
        first = next(bound for bound in bounds if bound.kind == "goal")
        return Verdict("promote", f"promote: {first}, and every floor is kept", first.effect.name, kept=True)
    if not unproven:
        return Verdict("go on", "go on: every floor is kept, and no goal is named that could promote", "targets",
                       kept=True)
    return _go_on(test, unproven, kept)


def _failed_check(test: ServedTest) -> Verdict | None:
    ratio, targets = test.ratio, test.targets
    if ratio.valid_p < targets.ratio_level:
        found = ratio.canary / (ratio.base + ratio.canary)
        return Verdict("no verdict", f"no verdict: {found:.3%} of the users are the canary's where {ratio.share:.3%} "
                       f"are expected (chi-square {ratio.chi_square:.1f}, p {ratio.p:.1g}); something loses or adds "
                       "users of one arm", "sample ratio")
    if test.strays > targets.max_strays:
        return Verdict("no verdict", f"no verdict: {test.strays:.1%} of the decisions were not made by the model of "
                       f"the user's arm, {targets.max_strays:.1%} are allowed; the canary may not be loaded everywhere",
                       "decisions by another model")
    return None


def _bounds(test: ServedTest) -> list[_Bound]:
    return [*(_Bound("goal", value, test.effect(name)) for name, value in test.targets.goals.items()),
            *(_Bound("floor", value, test.effect(name)) for name, value in test.targets.floors.items())]


def _missed(test: ServedTest, bounds: list[_Bound], error: float) -> _Bound | None:
    """The bound that the estimate is surest to be below; None where none is surely missed."""
    below = np.array([bound.effect.estimate < bound.value for bound in bounds])
    p = np.where(below, [float(always_valid_p(bound.effect.estimate - bound.value, bound.effect.error, test.spread))
                         for bound in bounds], 1.0)
    adjusted = adjust(p, "holm")
    surest = int(np.argmin(p))
    return bounds[surest] if adjusted[surest] < error else None


def _is_excused(test: ServedTest, bound: _Bound) -> bool:
    return bound.kind == "floor" and bound.effect.name in test.targets.unproven


def _go_on(test: ServedTest, unproven: list[_Bound], kept: bool) -> Verdict:
    """What takes longest decides."""
    forecasts = [(_days_more(test, bound), bound) for bound in unproven]
    days, bound = max(forecasts, key=lambda pair: pair[0])
    smallest = _smallest(test, bound)
    name, sought = bound.effect.name, f"{bound}; a difference of {smallest:.2%} to it would be seen"
    if not math.isfinite(days) or days > _LONGEST:
        return Verdict("go on", f"go on: {sought}, not within a year at today's rate", name, None, smallest, kept)
    until = datetime.fromtimestamp(test.last.timestamp(), UTC) + timedelta(days=days)
    return Verdict("go on", f"go on until about {until:%Y-%m-%d %H:%M} UTC: {sought} by then", name, until, smallest,
                   kept)


def _smallest(test: ServedTest, bound: _Bound) -> float:
    """The difference to the bound that is to be seen: the one there is, but no smaller one than the declared effect."""
    ahead = bound.effect.estimate - bound.value
    return max(ahead, test.targets.effect) if math.isfinite(ahead) else test.targets.effect


def _days_more(test: ServedTest, bound: _Bound) -> float:
    """Until the interval reaches no further than the difference; information grows with time."""
    if not math.isfinite(bound.effect.error):
        return math.inf
    wanted = error_for_reach(_smallest(test, bound), test.spread, test.targets.level)
    return max(test.days * ((bound.effect.error / wanted) ** 2 - 1), 0.0)
