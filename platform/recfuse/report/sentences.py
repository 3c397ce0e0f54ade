"""The words of a run's page: what was found, in sentences, and what its terms mean."""

from __future__ import annotations

import numpy as np

from recfuse.report.data import ReportData, number, numbers
from recfuse.report.questions import findings

WORDS = {
    "fusion policy": "decides per request how much each prediction of a candidate (click, like, …) weighs in its score",
    "logged policy": "the one that was serving when the logs were written; it explores around its mean",
    "logged_mean": "the same without exploring: its row is the gain of merely not exploring",
    "cem": "one weight vector for everybody, searched in the simulator itself by the cross-entropy method",
    "scene": "a page of recommendations; a task is a behaviour that is predicted there",
    "critic": "predicts what a behaviour will still bring in a session; one per behaviour",
    "off-policy estimate": "what a policy would have brought, from the log of another one",
    "disagreement": "two estimators of one question that differ by more than chance: at least one is wrong",
    "effective sample size (ESS)": "how many requests the log is worth for that, since it holds few actions that the "
                                   "policy in question would take; too few, and no number is given",
    "interval": "what chance among users leaves open; it does not count what an estimator assumes",
    "AUC": "how often a positive is ranked above a negative; .5 is chance, 1 is perfect",
}


def summary(data: ReportData) -> list[str]:
    """What each instrument found, in a sentence; nothing of what was not measured."""
    return [*_ab_sentences(data), *findings(data), *_model_sentences(data)]


def _ab_sentences(data: ReportData) -> list[str]:
    if data.ab_test is None:
        return []
    (base, *arms), measures = data.ab_test["arms"], data.ab_test["measures"]
    sentences = []
    if aa := data.ab_test.get("aa"):
        sentences.append(f"Tested {aa['runs']} times against itself, {base['name']} seemed different in "
                         f"{np.mean(numbers(aa['false'])):.1%} of the intervals; "
                         f"{1 - data.ab_test['level']:.0%} are expected.")
    for arm in arms:
        surely = numbers(arm.get("adjusted", [None] * len(measures))) < 1 - data.ab_test["level"]
        effect, low, high = (100 * numbers(arm[key]) for key in ("estimate", "low", "high"))
        others = [f"{name} {effect[index]:+.1f}%" for index, name in enumerate(measures) if index and surely[index]]
        name = arm["name"] + ("" if arm.get("reach", 1.0) else ", which does not explore,")
        sentences.append(
            f"In the simulator {name} brought {effect[0]:+.1f}% [{low[0]:.1f}, {high[0]:.1f}] {measures[0]} per "
            f"user against {base['name']}. Sure among the other measures: {', '.join(others) or 'none'}.")
    return sentences


def _model_sentences(data: ReportData) -> list[str]:
    sentences = []
    ratios = np.array([number(simulated) / number(real) for _, _, simulated, real in data.calibration
                       if number(real) > 0])
    if len(ratios):
        sentences.append(f"The simulator is within 10% of the log in {(abs(ratios - 1) <= .1).sum()} of {len(ratios)} "
                         "measures that are not 0.")
    pooled = [f"{row['task']} {number(row['auc']):.3f}" for row in data.scorer if row["scene"] == "all"]
    if pooled:
        sentences.append(f"The scorer's AUC over all scenes on the last day: {', '.join(pooled)}.")
    return sentences
