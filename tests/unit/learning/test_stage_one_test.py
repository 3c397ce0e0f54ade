"""Rounds of stage one: which multipliers each has, what is judged in it, and when there is no other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import samples as toy

from recfuse.bundle import read_bundle
from recfuse.config import InvalidFieldError
from recfuse.fusion.networks import GaussianPolicies
from recfuse.learning import registry
from recfuse.learning.algorithm import FusionAlgorithmConfig, Progress
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.config import StageOneTest, TrainFusionConfig
from recfuse.learning.resume import identity_of
from recfuse.learning.samples import SampleSet
from recfuse.learning.settings import LearningSettings
from recfuse.learning.stage_one_test import Judgement, StageOneError, StageOneGate, check_test, identity_of_test

SHORT = ("like", "share")


@dataclass
class Fitted:
    """What the gate asks of an algorithm whose stage one is fitted: its module, untrained, without Ray."""

    settings: LearningSettings
    samples: SampleSet
    progress: Progress = field(default_factory=lambda: Progress(history=[
        {"phase": name, "iteration": 0, "loss": 0.0} for name in ("critics", "cloning", "stage_one")]))

    def auxiliaries(self) -> GaussianPolicies:
        return FusionAlgorithmConfig().learn(self.settings, self.samples).build_module().auxiliaries


def fitted(multipliers: Mapping[str, float] | None = None, **settings: Any) -> Fitted:
    columns, of = toy.bandit(50), toy.vocabulary()
    behaviours = (*of.behaviours, of.behaviours[1].replace(name="share"))
    columns["feedback"] = np.hstack([columns["feedback"], columns["feedback"][:, 1:]])
    chosen = TwoStageConfig(multipliers=dict(multipliers or {}), **settings).resolved(True)
    return Fitted(chosen, SampleSet.of(columns, of.replace(behaviours=behaviours), "toy"))


def gate(root: Path, below: list[tuple[str, ...]], rounds: int = 3, asked: list[Path] | None = None) -> StageOneGate:
    """One whose judge finds these behaviours below their floors, round by round."""
    outcomes = iter(below)

    def judge(bundle: Path, floors: Mapping[str, float]) -> Judgement:
        (asked if asked is not None else []).append(bundle)
        return Judgement(dict.fromkeys(floors, (-0.1, -0.2, 0.0)), next(outcomes), True, "said so")

    (root / "checkpoint").mkdir(exist_ok=True)
    return StageOneGate(StageOneTest(judge="simulated", rounds=rounds, factor=3.0), judge, root / "checkpoint", root)


def test_the_multiplier_of_what_is_below_its_floor_rises(tmp_path):
    asked: list[Path] = []
    rounds = gate(tmp_path, [("like",), ("share",), ()], asked=asked)
    assert rounds.pass_(fitted({"like": 2.0})) == {"like": 6.0, "share": 3.0}
    assert [dict(each.multipliers) for each in rounds.rounds] == [
        {"like": 2.0, "share": 1.0}, {"like": 6.0, "share": 1.0}, {"like": 6.0, "share": 3.0}]
    shares = [read_bundle(bundle).manifest["network"]["shares"] for bundle in asked]
    assert shares == [pytest.approx(each) for each in ([2 / 3, 1 / 3], [6 / 7, 1 / 7], [2 / 3, 1 / 3])]
    assert (rounds.summary()["iterations"], rounds.summary()["loss"]) == (3, .1)


def test_what_was_judged_is_not_judged_again(tmp_path):
    assert gate(tmp_path, [("like",), ()]).pass_(fitted()) == {"like": 3.0, "share": 1.0}
    again = gate(tmp_path, [])  # asking it would be the end of its outcomes
    assert again.pass_(fitted()) == {"like": 3.0, "share": 1.0}
    assert len(again.rounds) == 2
    more = fitted()
    more.progress.history.append({"phase": "stage_one", "iteration": 1, "loss": 0.0})
    assert gate(tmp_path, [()]).pass_(more) == {"like": 1.0, "share": 1.0}, "another stage one is judged anew"


@pytest.mark.parametrize(("below", "rounds", "settings", "message"), [
    ([("like",), ("like",)], 2, {}, r"like below the floor after 2 rounds, with λ like 3, share 1 \(said so\)"),
    ([SHORT], 9, {}, "like, share below the floor whatever λ are"),
    ([("like",)], 9, {"auxiliary": "sequential"}, "like below the floor whatever λ are"),
])
def test_where_no_round_is_left_stage_two_does_not_begin(tmp_path, below, rounds, settings, message):
    for outcomes in (below, []):
        with pytest.raises(StageOneError, match=message):
            gate(tmp_path, outcomes, rounds).pass_(fitted(**settings))


def test_more_rounds_go_on_where_fewer_ended(tmp_path):
    with pytest.raises(StageOneError):
        gate(tmp_path, [("like",)], rounds=1).pass_(fitted())
    assert gate(tmp_path, [()], rounds=2).pass_(fitted()) == {"like": 3.0, "share": 1.0}


def test_a_test_that_goes_on_is_told_and_kept_open(tmp_path):
    (tmp_path / "checkpoint").mkdir()
    waiting = StageOneGate(StageOneTest(judge="served"), lambda bundle, floors: Judgement({}, (), False, "wait"),
                           tmp_path / "checkpoint", tmp_path)
    with pytest.raises(StageOneError, match=r"fusion-\w+ is not judged yet: wait; stage two begins in a later call"):
        waiting.pass_(fitted())
    assert gate(tmp_path, [()]).pass_(fitted()) == {"like": 1.0, "share": 1.0}


@pytest.mark.parametrize(("settings", "floors", "message"), [
    (registry.settings("cem"), {}, "none, but for the algorithm two_stage"),
    (TwoStageConfig(advantage="replay"), {}, "none on replay under floors"),
    (TwoStageConfig(), {"watch_time": 0.0}, r"stage_one_test.floors.watch_time: got 0.0; allowed: short-term"),
])
def test_what_is_not_held_to_stage_one_by_multipliers_is_refused(settings, floors, message):
    with pytest.raises(InvalidFieldError, match=message):
        check_test(StageOneTest(judge="simulated", floors=floors), settings, toy.vocabulary())


def test_floors_are_those_named_or_zero():
    settings = TwoStageConfig(advantage="sampled")
    assert check_test(StageOneTest(), settings, toy.vocabulary()) == {"like": 0.0}
    named = StageOneTest(floors={"like": -.02})
    assert check_test(named, settings, toy.vocabulary()) == {"like": -.02}
    closed = TwoStageConfig(advantage="replay", extraction="closed_form")
    assert check_test(named, closed, toy.vocabulary()) == {"like": -.02}


def test_without_a_test_a_run_is_the_same_as_before():
    assert identity_of_test(StageOneTest(rounds=7)) == {}
    plain, judged = (identity_of("train_fusion", {}, **identity_of_test(StageOneTest(judge=judge)))
                     for judge in ("none", "simulated"))
    assert plain.key == identity_of("train_fusion", {}).key != judged.key


def test_a_test_is_of_one_policy_for_all_stages():
    with pytest.raises(InvalidFieldError, match=r"stage_one_test.judge: got 'served'; allowed: none with policy_per"):
        TrainFusionConfig(policy_per_stage=("mix",), stage_one_test=StageOneTest(judge="served"))
