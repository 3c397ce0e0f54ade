"""Which cap, and which window of ratios: the most certain one that those of less bias do not contradict."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from recfuse.evaluation.answers import EstimateOptions, OffPolicyEstimate, Part, TrendPoint, conclude_all
from recfuse.evaluation.support import Ratios, Vector

# Caps that compete where none is declared, how many ratios a product has at most, and how far estimates may part.
CAPS = (5.0, 10.0, 20.0, 50.0, 100.0, math.inf)
LONGEST_WINDOW = 3
MOST_APART = 1 / 6
PartOf = Callable[[Ratios, int], Part]
Integers = NDArray[np.int64]


def slope(candidates: Sequence[OffPolicyEstimate]) -> int:
    """The place of the chosen one of candidates with intervals, which stand in the order of falling bias (maths 4.9).

    From the last one on, whose bias is the least and whose interval the widest, each narrower one before it is taken as
    long as it lies within MOST_APART of half its own interval of all that were taken before. Where it lies further off,
    its bias may be such that its interval holds the truth less than nine times in ten.

    References:
        Su, Srinath & Krishnamurthy, "Adaptive Estimator Selection for Off-Policy Evaluation", ICML 2020 (SLOPE), whose
        intervals need only meet: their choice has the least error, but its own interval need not hold the truth.
    """
    low, high, middle = (np.stack(ends) for ends in zip(*(_interval(one) for one in candidates), strict=True))
    half = (high - low) / 2
    width = np.nanmean(np.where(np.isfinite(half), half, 0.0), 1)
    taken = [len(candidates) - 1]
    for place in range(len(candidates) - 2, -1, -1):
        if width[place] >= width[taken[-1]]:
            continue  # more bias and no narrower: of no use to anybody
        if (np.abs(middle[place] - middle[taken]) > MOST_APART * half[place]).any():
            break
        taken.append(place)
    return taken[-1]


def _interval(answer: OffPolicyEstimate) -> tuple[Vector, Vector, Vector]:
    """Ends and estimate, relative to the log where that is known."""
    known = np.isfinite(answer.change_low)
    return (np.where(known, answer.change_low, answer.low), np.where(known, answer.change_high, answer.high),
            np.where(known, answer.change, answer.estimate))


def choose_cap(part_of: Callable[[Ratios], Part], log_ratio: Vector, caps: Sequence[float],
               options: EstimateOptions) -> OffPolicyEstimate:
    """The answer by the cap that `pick` takes; where the log supports none, one with its reason."""
    return pick(conclude_all([part_of(Ratios(log_ratio, cap)) for cap in reached(caps, log_ratio)], options), options)


def pick(answers: Sequence[OffPolicyEstimate], options: EstimateOptions) -> OffPolicyEstimate:
    """Of answers in the order of their caps the first that is not refused, where intervals allow for what a cap hides;
    the last where they do not. Where all are refused, the one that is nearest to an answer.

    A cap of few large weights makes the bootstrap's intervals hold; what it hides is known up to what the largest
    weights bring. A choice by estimates or widths would take what is narrow by luck.
    """
    alive = [answer for answer in answers if not answer.refused]
    if alive:
        return alive[0] if alive[0].allowance is not None else alive[-1]
    large = [answer for answer in answers if answer.ess[0] >= options.min_ess] or answers[:1]
    return min(large, key=lambda answer: abs(answer.mean_ratio - 1))


def reached(caps: Sequence[float], log_ratio: Vector) -> list[float]:
    """The caps that cut a ratio, and the first one beyond them, which cuts none."""
    largest = float(log_ratio.max(initial=-math.inf))
    cutting = [cap for cap in caps if math.log(cap) < largest]
    return [*cutting, *[cap for cap in caps if math.log(cap) >= largest][-1:]]


def window_logs(log_ratio: Vector, session: Integers, step: Integers,
                longest: int = LONGEST_WINDOW) -> Iterator[Vector]:
    """log of the product of the last k ratios of the session, float64[n], for k = 1, 2, …; a session that has had fewer
    requests gives those that it has. It ends with the first k that has every session's whole past.

    References:
        maths 4.5; Hu & Wager, "Off-Policy Evaluation in Partially Observed Markov Decision Processes under Sequential
        Ignorability", Annals of Statistics 51, 2023.
    """
    order = np.lexsort((step, session))
    ordered, place, total = log_ratio[order], step[order], np.zeros(len(order))
    for back in range(min(longest, int(step.max(initial=0)) + 1)):
        earlier = np.zeros(len(order))
        earlier[back:] = ordered[:len(order) - back]
        total = total + np.where(place >= back, earlier, 0.0)
        products = np.empty(len(order))
        products[order] = total
        yield products


def choose_window(part_of: PartOf, logs: Sequence[Vector], caps: Sequence[float],
                  options: EstimateOptions) -> OffPolicyEstimate:
    """The answer by the window that SLOPE takes, each with the largest cap that it supports, and the trend over all.

    Args:
        part_of: of products of ratios, and how many each has.
        logs: of `window_logs`.
    """
    parts = [(window, part_of(Ratios(log, cap), window)) for window, log in enumerate(logs, 1)
             for cap in reached(caps, log)]
    answers = conclude_all([part for _, part in parts], options)
    by_window = [pick([answer for (of, _), answer in zip(parts, answers, strict=True) if of == window], options)
                 for window in range(1, len(logs) + 1)]
    supported: list[OffPolicyEstimate] = []
    for answer in by_window:
        if answer.refused:
            break
        supported.append(answer)
    if not supported:
        return by_window[0]
    if len(supported) == 1 < len(by_window):
        # One ratio says what a changed request brings, and nothing of the states that follow.
        return by_window[1]
    first = min(len(supported) - 1, 1)
    chosen = supported[first + slope(supported[first:])].with_trend(
        *(TrendPoint(number, one.change, one.change_low, one.change_high) for number, one in enumerate(supported, 1)))
    return chosen.warned(*_shift(supported))


def _shift(supported: Sequence[OffPolicyEstimate]) -> list[str]:
    """What the step from one ratio to two says of the states, by the first behaviour."""
    if len(supported) < 2:
        return []
    one, two = supported[:2]
    low, high, moved = float(one.change_low[0]), float(one.change_high[0]), float(two.change[0])
    if not (moved < low or moved > high):
        return []
    return [f"states shift under this policy: with the last 2 requests weighed the change is {moved:+.1%}, outside of "
            f"[{low:+.1%}, {high:+.1%}], which it is with one; what a single changed request brings will not last"]
