"""Cycles: every step once, whatever is cut off; a refusal ends the way to a candidate, not the cycle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recfuse.config import InvalidFieldError
from recfuse.rollout.config import LoopConfig
from recfuse.rollout.cycle import STATE, Cycles, Step


class Death(BaseException):
    """What cuts a step off."""


def cycles(directory: Path, calls: list[str], dies: str = "", refuses: str = "", wants: bool = True,
           keep: int = 5) -> Cycles:
    def step(name: str, makes: bool) -> Step:
        def run(place: Path) -> str:
            calls.append(f"{place.name} {name}")
            if name == refuses:
                raise InvalidFieldError("logs", 0, "at least one good row")
            (place / name).touch()
            if name == dies:
                raise Death
            return f"{name} is done"
        return Step(name, run, makes)

    return Cycles(directory, [step("collect", False), step("train", True), step("start", True),
                              step("verdict", False)], lambda: wants, keep)


@pytest.mark.parametrize("dies", ["collect", "train", "start", "verdict"])
def test_a_death_in_any_step_repeats_that_step_alone(tmp_path: Path, dies: str) -> None:
    calls: list[str] = []
    with pytest.raises(Death):
        cycles(tmp_path, calls, dies).run(now=5.0)
    names = ["collect", "train", "start", "verdict"]
    before = [call.split()[1] for call in calls]
    assert before == names[:names.index(dies) + 1]
    # Meanwhile a candidate is under way; what was begun is finished all the same.
    cycle = cycles(tmp_path, calls, wants=False).run(now=99.0)
    assert [call.split()[1] for call in calls[len(before):]] == names[names.index(dies):]
    assert (cycle.number, cycle.began, cycle.finished) == (1, 5.0, True)
    assert cycle.done == {name: f"{name} is done" for name in names}


def test_without_a_wish_no_candidate_is_made(tmp_path: Path) -> None:
    calls: list[str] = []
    cycle = cycles(tmp_path, calls, wants=False).run()
    assert list(cycle.done) == ["collect", "verdict"]
    assert cycles(tmp_path, calls).run().number == 2


def test_a_refusal_ends_the_way_to_a_candidate(tmp_path: Path) -> None:
    cycle = cycles(tmp_path, [], refuses="train").run()
    assert list(cycle.done) == ["collect", "train", "verdict"]
    assert cycle.done["train"] == "refused: logs: got 0; allowed: at least one good row"
    # What refuses before leaves the way open.
    assert list(cycles(tmp_path, [], refuses="collect").run().done) == ["collect", "train", "start", "verdict"]


def test_cycles_begin_apart(tmp_path: Path) -> None:
    waits: list[float] = []
    found = list(cycles(tmp_path, []).every(3_600, 3, waits.append))
    assert [cycle.number for cycle in found] == [1, 2, 3]
    assert len(waits) == 2
    assert all(3_590 < wait <= 3_600 for wait in waits)


def test_old_cycles_are_forgotten_and_nothing_else(tmp_path: Path) -> None:
    mine = ["cycle-00002-copy", "cycle-1", "cycle-notes"]
    for name in mine:
        (tmp_path / name).mkdir()
    of = cycles(tmp_path, [], keep=2)
    for _ in range(4):
        of.run()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        ["cycle-00003", "cycle-00004", *mine, STATE])


def test_a_directory_that_has_a_cycles_name_before_it_begins_is_refused_untouched(tmp_path: Path) -> None:
    of = cycles(tmp_path, [], keep=1)
    of.run()
    (tmp_path / "cycle-00002").mkdir()
    (tmp_path / "cycle-00002" / "mine.txt").write_text("mine")
    for _ in range(2):
        with pytest.raises(InvalidFieldError, match=r"output: got '.*cycle-00002'; allowed: nothing of this name"):
            of.run()
    assert (tmp_path / "cycle-00002" / "mine.txt").read_text() == "mine"


def test_a_broken_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / STATE).write_text(json.dumps({"number": 1}))
    with pytest.raises(InvalidFieldError, match=r"output: got '.*loop.json'; allowed: the state of a loop"):
        cycles(tmp_path, []).run()


@pytest.mark.parametrize(("every", "seconds"), [("90s", 90), ("1.5m", 90), ("1h", 3_600), ("2d", 172_800)])
def test_times(every: str, seconds: float) -> None:
    assert LoopConfig(every=every).seconds == seconds


def test_a_bad_time_is_refused() -> None:
    with pytest.raises(InvalidFieldError, match="every: got 'hourly'"):
        LoopConfig(every="hourly")
