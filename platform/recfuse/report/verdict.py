"""The verdict of a run: what it brings, whether the floors are kept, and whether the log can say so."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from recfuse.report.data import Plain, ReportData, number
from recfuse.report.questions import alarms, answering, blocks, certain

Tone = Literal["good", "bad", "open"]
# In the simulator these are no policies that were learned from the log.
PEERS = ("logged", "logged_mean", "cem")


@dataclass(frozen=True)
class Check:
    """One question of the verdict, its answer in a sentence, and whether that speaks for the policy."""

    question: str
    words: str
    tone: Tone


@dataclass(frozen=True)
class Verdict:
    """Attributes:
        words: the verdict, a sentence; tone: for or against the policy, or neither; checks: what it rests on.
    """

    words: str
    tone: Tone
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class Change:
    """Relative change of a behaviour, with the interval's ends; NaN where nobody knows."""

    name: str
    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.name} {100 * self.estimate:+.1f}% [{100 * self.low:+.1f}, {100 * self.high:+.1f}]"


def verdict(data: ReportData) -> Verdict | None:
    """The verdict; None where nothing was measured.

    The simulator's A/B test leads where there is one, because it alone has whole lives under the policy; otherwise the
    widest question that the held-out log answers.
    """
    source, changes = evidence(data)
    if not changes and not blocks(data):
        return None
    checks = (_gain(source, changes), _floors(data, changes), _support(data))
    tones = [check.tone for check in checks]
    if "bad" in tones[:2]:
        reason = "a floor is surely broken" if tones[1] == "bad" else "it surely brings less"
        return Verdict(f"Do not serve it: {reason}.", "bad", checks)
    if tones == ["good", "good", "good"]:
        return Verdict("Worth a canary: it surely brings more, and every floor is kept.", "good", checks)
    if tones[0] == "good":
        weak = "not every floor is surely kept" if tones[1] == "open" else "the held-out log alone cannot confirm it"
        return Verdict(f"Worth a small canary: it surely brings more, but {weak}.", "open", checks)
    return Verdict("Not decided: nothing measured here says surely that it brings more.", "open", checks)


def evidence(data: ReportData) -> tuple[str, list[Change]]:
    """What the verdict rests on: its source in words, and the changes of behaviours, the long-term one first."""
    if data.ab_test is not None and (arm := learned_arm(data.ab_test)) is not None:
        base = data.ab_test["arms"][0]["name"]
        return f"A/B test in the simulator, {arm['name']} against {base}", list(_changes(
            data.ab_test["measures"], arm, "estimate", "low", "high"))
    for block in reversed(blocks(data)):
        if answers := certain(block):
            return f"held-out log, “{block['question']}” ({answers[0]['estimator']})", list(_changes(
                (data.off_policy or {})["behaviours"], answers[0], "change", "change_low", "change_high"))
    return "", []


def learned_arm(test: Plain) -> Plain | None:
    """The first arm of a simulated test that was learned from the log."""
    return next((arm for arm in test["arms"][1:] if arm["name"] not in PEERS), None)


def _changes(names: list[str], values: Plain, *keys: str) -> Iterator[Change]:
    for place, name in enumerate(names):
        yield Change(name, *(number(values[key][place]) for key in keys))


def _gain(source: str, changes: list[Change]) -> Check:
    question = "Does it bring more?"
    if not changes:
        return Check(question, "No estimate answers this.", "open")
    first = changes[0]
    tone: Tone = "good" if first.low > 0 else "bad" if first.high < 0 else "open"
    return Check(question, f"{first}, by the {source}.", tone)


def _floors(data: ReportData, changes: list[Change]) -> Check:
    """Floors are those that the policy was trained with; without any, nothing short-term may fall."""
    question, known = "Are the floors kept?", {change.name: change for change in changes}
    floors = {name: floor for name, floor in data.floors.items() if name in known and math.isfinite(known[name].low)}
    if not floors:
        return Check(question, "No floor is declared for what was measured.", "open")
    broken = [name for name, floor in floors.items() if known[name].high < floor]
    unsure = [name for name, floor in floors.items() if known[name].low < floor and name not in broken]
    if broken:
        return Check(question, f"Surely broken: {'; '.join(_against(known[name], floors[name]) for name in broken)}.",
                     "bad")
    kept = len(floors) - len(unsure)
    if not unsure:
        return Check(question, f"All {kept} are surely kept.", "good")
    worst = min(unsure, key=lambda name: known[name].low - floors[name])
    return Check(question, f"None is surely broken, {kept} of {len(floors)} are surely kept. The least sure is "
                           f"{_against(known[worst], floors[worst])}.", "open")


def _against(change: Change, floor: float) -> str:
    return f"{change} with the floor {100 * floor:+.1f}%"


def _support(data: ReportData) -> Check:
    """Whether the held-out log has enough of what the policy does."""
    question, asked = "Can the log support it?", [block for block in blocks(data) if not block["nobody"]]
    if not asked:
        return Check(question, "No held-out log was asked; `recfuse evaluate` does.", "open")
    answered = [block["question"] for block in asked if certain(block)]
    first = next(iter(answering(asked[0])), None)
    size = "" if first is None else (f" Of {first['requests']:,} requests, it is worth "
                                     f"{number(first['effective_sample_size'][0]):,.0f}.")
    warnings = len(alarms(data))
    contradicted = f" {warnings} warning{'s' if warnings > 1 else ''} below." if warnings else ""
    words = f"It answers {len(answered)} of {len(asked)} questions.{size}{contradicted}"
    return Check(question, words, "good" if len(answered) == len(asked) and not warnings else
                 "open" if answered else "bad")
