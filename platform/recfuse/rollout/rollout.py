"""The steps of a candidate: gate → canary, share by share → promoted, or rolled back, at any time."""

from __future__ import annotations

import getpass
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from recfuse.behaviours import Vocabulary
from recfuse.bundle import copy_bundle, newest_bundle, read_bundle
from recfuse.bundle.pointer import Pointer, read_pointer
from recfuse.config import InvalidFieldError, require
from recfuse.evaluation.ab import ServedTest, run_ab
from recfuse.evaluation.config import AbConfig, EvaluateConfig
from recfuse.evaluation.served import NothingServedError, measure_names
from recfuse.evaluation.verdict import Verdict, decide
from recfuse.rollout.config import RolloutConfig
from recfuse.rollout.store import UNDER_WAY, Rollout, State, Store

_VERDICT, _GATE = "verdict", "gate"
Compare = Callable[[AbConfig], ServedTest]
NOTHING_SERVED = Verdict("no verdict", "no verdict: nothing that was served at this share has been collected yet",
                         "decisions")


@dataclass(frozen=True)
class Look:
    """What one look made of a rollout.

    Attributes:
        rollout: the state after it.
        verdict, test: None where no canary is under way, or, of the test, where nothing was served.
    """

    rollout: Rollout
    verdict: Verdict | None = None
    test: ServedTest | None = None


def start(config: RolloutConfig, now: float | None = None) -> Rollout:
    """Gates a candidate, and begins its canary where it passes. A call that was cut off is taken up by the same one.

    Raises:
        InvalidFieldError: another candidate is under way, the candidate is served already, there is a canary that
            nobody rolled out, or nothing is served yet.
        BundleError: the candidate does not verify.
    """
    store, who = Store(config.models), config.who or _user()
    path = copy_bundle(newest_bundle(config.candidate, config.part), store.models, config.part)
    with store.locked():
        rollout = store.read()
        if rollout is None or rollout.state != "gate" or rollout.candidate != path.name:
            rollout = store.step(_begin(config, store, path.name, who, _now(now)))
    gate, figures = _gate(config, store, rollout)
    with store.locked():
        current = store.read()
        if current is None or current.row != rollout.row:
            return current or rollout  # somebody has decided meanwhile
        return store.step(_gated(store, rollout, gate, figures, _now(now)))


def judge(models: str, now: float | None = None, compare: Compare = run_ab) -> Look:
    """One look: rolls back, goes on to the next share, promotes, or leaves all as it is.

    Raises:
        InvalidFieldError: there was no rollout yet, or its log cannot be read.
    """
    store = Store(models)
    with store.locked():
        rollout = _require(store.read(), models)
        if rollout.state != "canary":
            return Look(rollout)
        if moved := rollout.moved(read_pointer(models)):
            row = store.row(_VERDICT, _now(now), rollout.candidate, f"{rollout.words} → ended",
                            f"somebody else has changed current.json: {moved}", {})
            return Look(store.step(replace(rollout, state="ended", row=row)))
    test: ServedTest | None = None
    try:
        # It takes its time, in which somebody may decide: nothing is locked.
        test = compare(ab_config(rollout))
        verdict = decide(test, len(rollout.plan.shares))
    except NothingServedError:
        verdict = NOTHING_SERVED
    with store.locked():
        current = _require(store.read(), models)
        # Somebody may have decided meanwhile; a pointer that somebody moved is the next look's.
        if current.row != rollout.row or rollout.moved(read_pointer(models)):
            return Look(current, verdict, test)
        return Look(_follow(store, rollout, verdict, test, _now(now)), verdict, test)


def promote(config: RolloutConfig, now: float | None = None) -> Rollout:
    """Serves the candidate to everybody.

    Raises:
        InvalidFieldError: no candidate is under way.
    """
    return _decide(config, "promoted", UNDER_WAY, now)


def roll_back(config: RolloutConfig, now: float | None = None) -> Rollout:
    """Takes the candidate from everybody, also after it was promoted; the base serves again.

    Raises:
        InvalidFieldError: no candidate is under way or promoted, or another model is served since.
    """
    return _decide(config, "rolled back", (*UNDER_WAY, "promoted"), now)


def ab_config(rollout: Rollout) -> AbConfig:
    """The A/B test of the present share."""
    plan = rollout.plan
    return AbConfig(
        logs=plan.logs, part=rollout.part, base=rollout.base, canary=rollout.candidate, share=rollout.share,
        since=_iso(rollout.stage_began + plan.settle_seconds), known_until=_iso(rollout.began),
        known_days=plan.known_days, targets=plan.targets)


def next_step(rollout: Rollout, verdict: Verdict, now: float) -> tuple[State, int, str] | None:
    """Where a canary goes by a verdict: its state, its place among the shares, and why; None where it stays."""
    plan, hours = rollout.plan, (now - rollout.stage_began) / 3600
    last = rollout.stage == len(plan.shares) - 1
    if verdict.action == "roll back":
        return "rolled back", rollout.stage, verdict.words
    if last and verdict.action == "promote" and hours >= plan.stage_hours:
        return "promoted", rollout.stage, verdict.words
    if not last and verdict.action != "no verdict" and hours >= plan.stage_hours:
        share = plan.shares[rollout.stage + 1]
        if verdict.kept or share <= plan.proven_share:
            return "canary", rollout.stage + 1, f"{verdict.words}; no floor is broken after {hours:.1f} hours"
    if hours > 24 * plan.stage_days:
        return "rolled back", rollout.stage, f"{plan.stage_days:g} days at this share have not decided: {verdict.words}"
    return None


def _begin(config: RolloutConfig, store: Store, candidate: str, who: str, now: float) -> Rollout:
    before, pointer = store.read(), read_pointer(store.models)
    under_way = before is not None and before.state in UNDER_WAY
    require(not under_way, "candidate", config.candidate,
            f"none while {before.candidate if before else ''} is under way; roll it back, or wait")
    base = getattr(pointer, config.part)
    if base is None:
        raise InvalidFieldError("models", config.models, f"a directory that serves a model of kind {config.part}")
    require(base != candidate, "candidate", candidate, "another model than the served one")
    canaries = [name for name in (pointer.fusion_canary, pointer.scenes_canary) if name is not None]
    require(not canaries, "models", f"canary {', '.join(canaries)} in current.json", "no canary but a rollout's")
    _check_targets(config, store, pointer)
    row = store.row(who, now, candidate, "candidate → gate", config.reason or "a candidate", {"base": base})
    return Rollout(candidate, base, config.part, "gate", 0, now, now, config.plan, row)


def _check_targets(config: RolloutConfig, store: Store, pointer: Pointer) -> None:
    """Refuses targets that no log of the served policy has."""
    targets = config.plan.targets
    require(bool(targets.goals), "plan.targets.goals", {}, "at least one goal, which promotes")
    if pointer.fusion is not None:
        vocabulary = Vocabulary.from_dict(read_bundle(store.models / pointer.fusion, "fusion").manifest["vocabulary"])
        measures = measure_names(vocabulary.behaviour_names)
        strangers = [name for name in targets.names if name not in measures]
        require(not strangers, "plan.targets", strangers, f"names of measures: {', '.join(measures)}")


def _gate(config: RolloutConfig, store: Store, rollout: Rollout) -> tuple[str | None, dict[str, Any]]:
    """Why the gate is not passed, None where it is; and its figures."""
    from recfuse.evaluation.evaluate import evaluate
    from recfuse.evaluation.gate import gate_policy, gate_scorer, to_figures

    candidate, base = (read_bundle(store.models / name, rollout.part) for name in (rollout.candidate, rollout.base))
    if rollout.part == "scenes":
        gate = gate_scorer(candidate, base)
    else:
        with tempfile.TemporaryDirectory() as output:
            evaluation = None if not config.holdout else evaluate(EvaluateConfig(
                fusion=str(candidate.path), holdout=config.holdout, samples=config.samples, output=output,
                level=rollout.plan.targets.level))
        gate = gate_policy(candidate, base, evaluation, rollout.plan.targets)
    return (None if gate.failure is None else gate.words), to_figures(gate)


def _gated(store: Store, rollout: Rollout, failure: str | None, figures: dict[str, Any], now: float) -> Rollout:
    pointer = read_pointer(store.models)
    served, canaries = getattr(pointer, rollout.part), (pointer.fusion_canary, pointer.scenes_canary)
    if served != rollout.base or any(canaries):
        failure = f"current.json has changed during the gate: it serves {served}, canaries {canaries}"
    if failure is not None:
        row = store.row(_GATE, now, rollout.candidate, "gate → refused", failure, figures)
        return replace(rollout, state="refused", row=row)
    begun = replace(rollout, state="canary", stage=0, began=now, stage_began=now)
    row = store.row(_GATE, now, rollout.candidate, f"gate → {begun.words}", "the gate is passed", figures)
    return replace(begun, row=row)


def _follow(store: Store, rollout: Rollout, verdict: Verdict, test: ServedTest | None, now: float) -> Rollout:
    """Takes the step that the verdict asks for, or keeps the verdict."""
    figures = _figures(test)
    look = {"at": now, "action": verdict.action, "words": verdict.words, "row": verdict.row,
            "until": None if verdict.until is None else verdict.until.isoformat(), "smallest": verdict.smallest,
            "figures": figures}
    step = next_step(rollout, verdict, now)
    if step is None:
        return store.note(rollout, look)
    state, stage, why = step
    after = replace(rollout, state=state, stage=stage, stage_began=now, verdict=look)
    row = store.row(_VERDICT, now, rollout.candidate, f"{rollout.words} → {after.words}", why, figures)
    return store.step(replace(after, row=row))


def _decide(config: RolloutConfig, state: State, allowed: tuple[State, ...], now: float | None) -> Rollout:
    store = Store(config.models)
    with store.locked():
        rollout = _require(store.read(), config.models)
        require(rollout.state in allowed, "action", config.action,
                f"this where a candidate is {' or '.join(allowed)}; {rollout.candidate} is {rollout.state}")
        served = getattr(read_pointer(config.models), rollout.part)
        require(rollout.state != "promoted" or served == rollout.candidate, "action", config.action,
                f"this while {rollout.candidate} is served; {served} is")
        after = replace(rollout, state=state)
        row = store.row(config.who or _user(), _now(now), rollout.candidate, f"{rollout.words} → {after.words}",
                        config.reason, (rollout.verdict or {}).get("figures", {}))
        return store.step(replace(after, row=row))


def _figures(test: ServedTest | None) -> dict[str, Any]:
    """What an audit keeps of a look; numbers that are none become null."""
    if test is None:
        return {}
    effects = {each.name: [_number(each.estimate), _number(each.low), _number(each.high)] for each in test.effects}
    base = {each.name: _number(each.base) for each in test.effects}
    return {"users": [test.ratio.base, test.ratio.canary], "sample_ratio_p": test.ratio.p, "days": test.days,
            "decisions": test.decisions, "effects": effects, "base": base}


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _require(rollout: Rollout | None, models: str) -> Rollout:
    if rollout is None:
        raise InvalidFieldError("models", models, "a directory with a rollout; `recfuse rollout start` begins one")
    return rollout


def _now(now: float | None) -> float:
    return time.time() if now is None else now


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a user without a name, in a container
        return "unknown"
