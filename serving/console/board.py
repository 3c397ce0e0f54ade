"""The values of the board: where a rollout stands, what its last look found, and what happened to what is served."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from recfuse.bundle.pointer import Pointer, read_pointer
from recfuse.rollout.store import UNDER_WAY, Rollout, Row, Store

_LAST = 50  # steps and events that the page shows
_STEPS_BACK = ("rolled back", "refused", "ended")


@dataclass(frozen=True)
class Measure:
    """One behaviour of a test: the base's mean per user, the canary's relative difference, and what is asked of it.
    What is None is unknown.

    Attributes:
        estimate, low, high: of the difference and its interval.
        kind: "goal", "floor" or ""; bound: the relative difference that it names.
        words: what the interval says of the bound; tone: "good", "bad" or "".
    """

    name: str
    base: float | None
    estimate: float | None
    low: float | None
    high: float | None
    kind: str = ""
    bound: float | None = None
    words: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Moment:
    """A point of the time line; tone: "back" where something was refused or taken back."""

    at: float
    who: str
    words: str
    why: str
    tone: str = ""


@dataclass(frozen=True)
class Board:
    """Attributes:
        pointer: what serves. rollout: None where there was none. audit: its steps, the newest first.
        measures: of the last look; look: of it, plain values, empty before the first.
        time_line: steps, swaps and refusals, the newest first.
        counts: what a replica counted, by a name in words.
        may: actions that the state allows; shares: that a canary may be given.
    """

    pointer: Pointer
    rollout: Rollout | None
    audit: Sequence[Row]
    measures: Sequence[Measure]
    look: Mapping[str, Any]
    time_line: Sequence[Moment]
    counts: Mapping[str, str]
    may: frozenset[str]
    shares: Sequence[float] = field(default_factory=tuple)


def read_board(models: str, policy: Mapping[str, Any], scorer: Mapping[str, Any]) -> Board:
    """The board of a models directory.

    Args:
        models: directory with a pointer.
        policy, scorer: what a replica says of itself (`FusionReplica.status`).

    Raises:
        InvalidFieldError, BundleError: the state of the rollout or the pointer cannot be read.
    """
    store = Store(models)
    pointer, rollout, audit = read_pointer(models), store.read(), store.audit()
    look = (rollout.verdict if rollout is not None else None) or {}
    events = [*policy["events"], *scorer["events"]]
    moments = [*_of_events(events[::-1]), *_of_audit(audit[::-1])]
    return Board(
        pointer=pointer, rollout=rollout, audit=audit[::-1][:_LAST], look=look,
        measures=[] if rollout is None else measures(rollout, look.get("figures", {})),
        time_line=sorted(moments, key=lambda moment: -moment.at)[:_LAST],
        counts=_counts(policy, {**policy["totals"], **scorer["totals"]}), may=frozenset(_allowed(rollout, pointer)),
        shares=() if rollout is None or rollout.state != "canary" else
        [share for share in rollout.plan.shares if share != rollout.share])


def measures(rollout: Rollout, figures: Mapping[str, Any]) -> list[Measure]:
    """The rows of a look: those with goals and floors first, in the order of the plan."""
    targets, effects = rollout.plan.targets, figures.get("effects", {})
    asked = [name for name in (*targets.goals, *targets.floors) if name in effects]
    rows = []
    for name in dict.fromkeys([*asked, *effects]):
        estimate, low, high = effects[name]
        kind = "goal" if name in targets.goals else "floor" if name in targets.floors else ""
        bound = {**targets.floors, **targets.goals}.get(name)
        words, tone = _judged(kind, bound, low, high)
        rows.append(Measure(name, figures.get("base", {}).get(name), estimate, low, high, kind, bound, words, tone))
    return rows


def _judged(kind: str, bound: float | None, low: float | None, high: float | None) -> tuple[str, str]:
    """What an interval says of a bound."""
    if bound is None:
        return "", ""
    if low is None or high is None:
        return "too little is known", ""
    if low > bound or (kind == "floor" and low >= bound):
        return ("surely reached" if kind == "goal" else "surely kept"), "good"
    if high < bound:
        return ("surely missed" if kind == "goal" else "surely broken"), "bad"
    return "open", ""


def _allowed(rollout: Rollout | None, pointer: Pointer) -> Iterator[str]:
    """What a person may decide now."""
    if rollout is None:
        return
    if rollout.state in UNDER_WAY:
        yield from ("promote", "rollback")
    if rollout.state == "canary":
        yield "share"
    if rollout.state == "promoted" and getattr(pointer, rollout.part) == rollout.candidate:
        yield "rollback"


def _of_audit(rows: Sequence[Row]) -> Iterator[Moment]:
    for row in rows:
        back = any(row.step.endswith(word) for word in _STEPS_BACK)
        yield Moment(row.at, row.who, f"{row.candidate}: {row.step}", row.why, "back" if back else "")


def _of_events(events: Sequence[Mapping[str, Any]]) -> Iterator[Moment]:
    words = {"served": "serves", "refused": "is refused", "canary": "serves a canary's users",
             "canary refused": "is refused as a canary", "no canary": "is no canary any more"}
    parts = {"fusion": "policy", "scenes": "scorer", "catalogue": "catalogue"}
    for event in (each for each in events if each["version"] or each["why"]):
        yield Moment(event["at"], "this replica",
                     f"{parts[event['part']]} {event['version']} {words[event['what']]}", event["why"],
                     "back" if "refused" in event["what"] else "")


def _counts(policy: Mapping[str, Any], totals: Mapping[str, Sequence[float]]) -> dict[str, str]:
    """What was counted since the replica began, in words."""
    def mean(name: str) -> float:
        total, number = totals.get(name, (0.0, 0))
        return total / number if number else math.nan

    lag = totals.get("recfuse_log_lag_s")
    return {
        "decisions": f"{totals.get('recfuse_decisions', (0.0, 0))[0]:,.0f}",
        "feedback events": f"{totals.get('recfuse_feedback', (0.0, 0))[0]:,.0f}",
        "refused requests": f"{totals.get('recfuse_refused', (0.0, 0))[0]:,.0f}",
        "log lag": f"{lag[0]:,.0f} s" if lag is not None else
        "none yet" if policy.get("moved") else "not moved here",
        "mean σ": _text(mean("recfuse_sigma"), "{:.3g}"),
        "unknown item ids": _text(mean("recfuse_unknown_share"), "{:.1%}"),
    }


def _text(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else "nothing yet"
