"""A test of critics by the log itself: what one deviation does to the rest of a session, by ratios and by critics."""

from __future__ import annotations

import dataclasses

import numpy as np

from recfuse.evaluation.answers import Vector, conclude
from recfuse.evaluation.case import Case
from recfuse.evaluation.ope import ratio_part
from recfuse.evaluation.sessions import Sessions


def failure(case: Case) -> str:
    """In which way the critics of the logged policy fail, in a sentence; "" where they do not, or where no ratio is
    known.

    Requests are weighed by one ratio, so that all later requests stay the logged policy's. What comes after them is
    then moved by `E_ρ G − E G`, and by critics that are right as much: `E_ρ q − E q` (maths 4.10). Of m behaviours each
    is tested at 1 − (1 − level) / m.
    """
    if not case.explore or not case.in_sessions.any():
        return ""
    rows, sessions = case.in_sessions, case.sessions
    gone, width = returns(sessions), case.log.feedback.shape[1]
    of_log = case.users[rows]
    both = np.hstack([gone, case.logged_values[0][rows]])
    part = ratio_part(sessions.ratios, both, np.ones(len(both)), of_log, case.options)

    def moved(s: Vector) -> Vector:
        weighed, plain = part.statistic(s), s[:, 2 * width + 1:-1] / s[:, -1:]
        effect = (weighed - plain) / np.abs(np.tile(plain[:, :width], 2))
        return np.hstack([effect[:, width:] - effect[:, :width], effect])

    strict = case.options.replace(level=1 - (1 - case.options.level) / width)
    evidence = part.evidence
    if evidence.refused:
        return ""
    of_all = dataclasses.replace(evidence, logged=np.zeros(3 * width), bias_bound=None, hidden=None, events=None)
    found = conclude(of_all, part.sums, moved, strict)
    wrong = np.flatnonzero((found.low[:width] > 0) | (found.high[:width] < 0))
    if not len(wrong):
        return ""
    first = int(wrong[0])
    difference, by_ratios, by_critics = (float(found.estimate[first + place * width]) for place in range(3))
    return (f"the critics fail the test on the return to go: one deviation moves what follows by {by_ratios:+.1%} by "
            f"ratios and by {by_critics:+.1%} by the critics, {difference:+.1%} "
            f"[{found.low[first]:+.1%}, {found.high[first]:+.1%}] apart")


def returns(sessions: Sessions) -> Vector:
    """What a session brings from every request on, discounted to it, float64[n, m]."""
    order = np.lexsort((sessions.step, sessions.session))
    found, step = sessions.feedback[order], sessions.step[order]
    goes_on = np.append(step[1:] > 0, False)
    by_step = np.argsort(step, kind="stable")
    bounds = np.searchsorted(step[by_step], np.arange(sessions.longest + 1))
    for number in range(sessions.longest - 2, -1, -1):
        here = by_step[bounds[number]:bounds[number + 1]]
        here = here[goes_on[here]]
        found[here] += sessions.discount * found[here + 1]
    result = np.empty_like(found)
    result[order] = found
    return result
