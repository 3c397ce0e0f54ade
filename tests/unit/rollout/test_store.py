"""The state beside the pointer: whole at any time, and finished by whoever comes after a death."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from recfuse.bundle.pointer import Pointer, read_pointer, write_pointer
from recfuse.config import InvalidFieldError
from recfuse.rollout import store as module
from recfuse.rollout.config import Plan
from recfuse.rollout.store import AUDIT, STATE, Rollout, Row, Store

SERVED = Pointer(fusion="base", scenes="scorer", catalogue="items.parquet")


class Death(BaseException):
    """What cuts a step off, at any place."""


def rollout(state: str = "canary", stage: int = 0, number: int = 1) -> Rollout:
    row = Row(number, 1.0, "somebody", "new", f"step {number}", "why", {"like": [.1, None]})
    return Rollout("new", "base", "fusion", state, stage, 0.0, 0.0, Plan(), row)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    write_pointer(tmp_path, SERVED)
    return tmp_path


@pytest.mark.parametrize(("before", "state", "stage", "expected"), [
    (SERVED, "gate", 0, SERVED), (SERVED, "refused", 0, SERVED), (SERVED, "ended", 0, SERVED),
    (SERVED, "canary", 1, replace(SERVED, fusion_canary="new", canary_share=.05)),
    (replace(SERVED, fusion_canary="new", canary_share=.5), "promoted", 3, replace(SERVED, fusion="new")),
    (replace(SERVED, fusion_canary="new", canary_share=.5), "rolled back", 3, SERVED),
    (replace(SERVED, fusion="new"), "rolled back", 3, SERVED),
    # Another canary is somebody else's.
    (replace(SERVED, fusion_canary="other", canary_share=.1), "rolled back", 3,
     replace(SERVED, fusion_canary="other", canary_share=.1))])
def test_every_state_has_its_pointer(before, state, stage, expected) -> None:
    assert rollout(state, stage).points(before) == expected


def test_a_state_comes_back_as_it_was(models: Path) -> None:
    store = Store(models)
    with store.locked():
        settled = store.step(rollout())
    assert settled == replace(rollout(), pending=False)
    assert Store(models).read() == settled
    assert store.audit() == [rollout().row]
    assert read_pointer(models).canary_share == .01


@pytest.mark.parametrize("death", range(6))
def test_a_step_that_is_cut_off_anywhere_is_finished_once(models: Path, monkeypatch, death: int) -> None:
    """The death comes before or after one of the step's three renames, between which the audit gets its row: of the
    pending state, of the pointer, of the settled state. Whoever comes next finds the step whole, or not begun."""
    store, writes = Store(models), []
    with store.locked():
        store.step(rollout(number=1))
    real_replace = os.replace

    def dying(real):
        def call(*args):
            writes.append(real)
            if len(writes) * 2 - 1 > death:
                raise Death
            real(*args)
            if len(writes) * 2 > death:
                raise Death
        return call

    monkeypatch.setattr(os, "replace", dying(real_replace))
    with pytest.raises(Death), store.locked():
        store.step(rollout("promoted", 0, number=2))
    monkeypatch.undo()
    with store.locked():
        found = store.read()
    done = death > 0
    assert (found.state, found.pending) == (("promoted", False) if done else ("canary", False))
    assert [row.number for row in store.audit()] == ([1, 2] if done else [1])
    assert read_pointer(models).fusion == ("new" if done else "base")


def test_a_torn_line_of_the_audit_is_written_again(models: Path) -> None:
    store = Store(models)
    with store.locked():
        store.step(rollout(number=1))
    state = json.loads((models / STATE).read_text())
    second = replace(rollout("rolled back", number=2)).row
    (models / STATE).write_text(json.dumps(state | {
        "state": "rolled back", "pending": True, "row": json.loads(json.dumps(second.__dict__))}))
    with open(models / AUDIT, "ab") as file:
        file.write(b'{"number": 2, "at": 1.')
    with store.locked():
        pass
    assert [row.number for row in store.audit()] == [1, 2]
    assert store.audit()[1] == second
    assert read_pointer(models) == SERVED


def test_what_is_no_state_is_refused(models: Path, tmp_path: Path) -> None:
    (models / STATE).write_text("{}")
    with pytest.raises(InvalidFieldError, match=r"models: got '.*rollout.json'; allowed: the state of a rollout"):
        Store(models).read()
    with pytest.raises(InvalidFieldError, match=r"models: got '.*'; allowed: a directory with current.json"):
        Store(tmp_path / "none")


def test_only_one_takes_a_step(models: Path) -> None:
    """A second holder of the lock waits for the first."""
    import threading

    store, order = Store(models), []
    inside = threading.Event()

    def other() -> None:
        inside.wait()
        with Store(models).locked():
            order.append("second")

    thread = threading.Thread(target=other)
    thread.start()
    with store.locked():
        inside.set()
        thread.join(.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert (models / module._LOCK).exists()
