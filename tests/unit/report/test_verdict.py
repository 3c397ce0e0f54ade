"""The verdict of a run: a table of evidence and what is said of it."""

from __future__ import annotations

import dataclasses

import pytest

from recfuse.report.data import ReportData
from recfuse.report.verdict import verdict

BASE = {"name": "logged", "users": 9, "mean": [1, 1], "estimate": [0, 0], "low": [0, 0], "high": [0, 0]}
ANSWER = {"estimator": "NCIS", "change": [.1, .2], "change_low": [.05, .1], "change_high": [.15, .3], "requests": 1_000,
          "effective_sample_size": [500.0, 500.0], "ranks_only": False, "refused": "", "warnings": []}
QUESTION = {"question": "one changed request", "unit": "request", "nobody": "", "answers": [ANSWER],
            "disagreements": [], "trend": [], "logged": [1.0, 1.0]}
NOBODY = {**QUESTION, "question": "a user over a time", "nobody": "no log answers this", "answers": []}


def data(estimate, low, high, *, name="two_stage", floors=None, blocks=(QUESTION, NOBODY)):
    """An arm of watch time and like, and a held-out log."""
    arm = {"name": name, "users": 9, "mean": [1, 1], "estimate": estimate, "low": low, "high": high}
    return ReportData(
        ab_test={"measures": ["watch_time", "like"], "level": .95, "arms": [BASE, {**arm, "name": "cem"}, arm]},
        off_policy={"behaviours": ["watch_time", "like"], "blocks": list(blocks), "advice": []},
        floors={"like": 0.0} if floors is None else floors)


@pytest.mark.parametrize(("estimate", "low", "high", "floors", "tones", "words"), [
    ([.05, .02], [.01, .01], [.09, .03], None, ("good", "good", "good"), "Worth a canary"),
    ([.05, .02], [.01, -.01], [.09, .05], None, ("good", "open", "good"), "Worth a small canary"),
    ([.05, .02], [.01, -.01], [.09, .05], {"like": -.02}, ("good", "good", "good"), "Worth a canary"),
    ([.05, -.04], [.01, -.06], [.09, -.02], None, ("good", "bad", "good"), "Do not serve it: a floor is surely broken"),
    ([.05, -.04], [.01, -.06], [.09, -.02], {"like": -.03}, ("good", "open", "good"), "Worth a small canary"),
    ([-.05, .02], [-.09, .01], [-.01, .03], None, ("bad", "good", "good"), "Do not serve it: it surely brings less"),
    ([.05, .02], [-.01, .01], [.09, .03], None, ("open", "good", "good"), "Not decided"),
    ([.05, None], [.01, None], [.09, None], None, ("good", "open", "good"), "Worth a small canary"),
])
def test_what_the_intervals_say(estimate, low, high, floors, tones, words):
    found = verdict(data(estimate, low, high, floors=floors))
    assert tuple(check.tone for check in found.checks) == tones
    assert found.words.startswith(words)


def test_the_least_sure_floor_is_named():
    found = verdict(data([.05, -.01], [.01, -.03], [.09, .05]))
    assert "The least sure is like -1.0% [-3.0, +5.0] with the floor +0.0%" in found.checks[1].words
    assert found.checks[0].words == (
        "watch_time +5.0% [+1.0, +9.0], by the A/B test in the simulator, two_stage against logged.")


def test_without_a_simulator_the_log_speaks():
    whole = data([.05, .02], [.01, .01], [.09, .03])
    found = verdict(dataclasses.replace(whole, ab_test=None))
    assert found.checks[0].words == (
        "watch_time +10.0% [+5.0, +15.0], by the held-out log, “one changed request” (NCIS).")
    assert found.tone == "good"
    # An arm that was not learned from the log says nothing of the policy.
    assert verdict(data([9, 9], [9, 9], [9, 9], name="logged_mean")).checks[0].words == found.checks[0].words


def test_a_log_that_cannot_support_it():
    refused = {**QUESTION, "answers": [{**ANSWER, "refused": "too few"}]}
    good = ([.05, .02], [.01, .01], [.09, .03])
    assert verdict(data(*good, blocks=(refused,))).checks[2].tone == "bad"
    warned = {**QUESTION, "disagreements": [{"first": "NCIS", "second": "DR", "behaviour": "like", "difference": .2,
                                             "low": .1, "high": .3}]}
    support = verdict(data(*good, blocks=(warned,))).checks[2]
    assert support.tone == "open"
    assert support.words == "It answers 1 of 1 questions. Of 1,000 requests, it is worth 500. 1 warning below."


def test_nothing_measured_gives_no_verdict():
    assert verdict(ReportData()) is None
