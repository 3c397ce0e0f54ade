"""What a trial does, in this process; what judges say; users that do not meet."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
import samples as toy

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.bundle import read_bundle
from recfuse.config import InvalidFieldError
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.inference import FusionActor, export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.settings import StoppingRule
from recfuse.scenes.config import ModelConfig
from recfuse.scenes.dataset import scene_rows
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.registry import KUAIRAND
from recfuse.scenes.training.config import TrainingConfig
from recfuse.simulation.arms import Arm
from recfuse.tune.fusion import FusionStudy, fusion_study
from recfuse.tune.judges import SimulatorJudge, flat
from recfuse.tune.scenes import ScenesStudy
from recfuse.tune.settings import ScenesConfig, SplitConfig, SweepConfig
from recfuse.tune.split import GROUPS, JUDGE, LAST, LEARN, groups_of
from recfuse.tune.studies import BUNDLE, DONE, Study
from tests.unit.simulation import worlds

TWO = StoppingRule(iterations=2)
LEARNING = TwoStageConfig(network=NetworkConfig(hidden=(8,)), critics=TWO, cloning=TWO, stage_one=TWO, stage_two=TWO)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> FusionStudy:
    directory = tmp_path_factory.mktemp("study")
    toy.write(directory / "samples", toy.bandit(3000))
    config = SweepConfig(samples=str(directory / "samples"), output=str(directory), judge="off_policy",
                         learning=LEARNING, space=({"multipliers.total": [1.0]},))
    return fusion_study(config)[0]


def run(study: Study, assignment: dict) -> dict:
    trial, report = study.begin(assignment), {}
    while not report.get(DONE):
        report = trial.step()
    trial.close()
    return report


def test_a_trial_trains_judges_and_leaves_its_policy(study):
    first, again = run(study, {"multipliers.total": 0.1}), run(study, {"multipliers.total": 0.1})
    assert first == again, "a trial's seed is the config's"
    assert first["passes"] == 8
    assert study.limit({}) == 8 * study.samples.rows
    assert first["explained_like"] > 0
    assert first["watch_time_low"] <= first["watch_time"] <= first["watch_time_high"]
    manifest = read_bundle(study.bundles / first[BUNDLE], "fusion").manifest
    assert manifest["training"]["multipliers"] == {"like": 0.1}


def test_trials_share_the_samples_and_read_no_file(study, tmp_path):
    learn = study.bundles.parent / "split" / LEARN
    elsewhere = learn.rename(tmp_path / "elsewhere")
    try:
        assert run(study, {"multipliers.total": 0.1})["passes"] == 8
    finally:
        elsewhere.rename(learn)


def test_the_algorithm_may_be_a_choice(study):
    settings, _ = study.configure({"algorithm": "iql", "expectile": 0.9})
    assert (settings.algorithm, settings.expectile, settings.network) == ("iql", 0.9, LEARNING.network)
    assert study.value({"algorithm": "iql"}, "algorithm") == "iql"
    with pytest.raises(InvalidFieldError, match="multipliers"):
        study.configure({"algorithm": "iql", "multipliers.total": 3.0})


def test_choices_reach_vocabulary_and_settings(study):
    settings, vocabulary = study.configure(
        {"discounts.short_term": 0.95, "multipliers.like": 3.0, "network.hidden": "[4, 4]"})
    assert [one.discount for one in vocabulary.behaviours] == [0.5, 0.95]
    assert settings.multipliers == {"like": 3.0}
    assert settings.network.hidden == (4, 4)
    assert LEARNING.network.hidden == (8,)
    with pytest.raises(InvalidFieldError, match="no_such"):
        study.check({"no_such": 1})


def test_a_field_has_a_value_whether_a_trial_chose_it_or_not(study):
    chosen = {"discounts.short_term": 0.95, "multipliers.total": 2.0, "network.hidden": "[4, 4]"}
    fields = ("discounts.short_term", "discounts.like", "discounts.watch_time", "multipliers.like", "multipliers.total",
              "network.hidden")
    assert [study.value(chosen, name) for name in fields] == [0.95, 0.95, 0.5, 2.0, 2.0, [4, 4]]
    assert [study.value({}, name) for name in fields] == [0.0, 0.0, 0.5, 1.0, 1.0, [8]]
    both = dataclasses.replace(study, samples=dataclasses.replace(study.samples, vocabulary=Vocabulary(
        behaviours=(*study.samples.vocabulary.behaviours, Behaviour(name="share", kind="short_term", multiplier=3.0)),
        fusion_parameters=("first", "second"), state_size=3)))
    assert both.value({"discounts.like": 0.95}, "discounts.short_term") == "mixed"
    assert both.value({}, "multipliers.total") == 4.0


def test_who_trains_does_not_judge(study):
    users = [set(ds.dataset(sorted(path.glob("*.parquet"))).to_table()["user_id"].to_pylist())
             for path in (study.bundles.parent / "split" / name for name in (LEARN, JUDGE, LAST))]
    assert all(users)
    assert users[0].isdisjoint(users[1] | users[2])
    assert users[1].isdisjoint(users[2])
    assert set(study.judge.log.user_id) == users[1]
    assert study.samples.rows == len(study.columns["done"])


def actor(tmp_path: Path, mu: list[float], vocabulary: Vocabulary) -> FusionActor:
    bundle = export_policy(tmp_path, FixedGaussian(mu, 0.5), vocabulary, training={}, data_fingerprint="", metrics={})
    return FusionActor.from_bundle(read_bundle(bundle, "fusion"))


def test_the_simulator_judges_with_the_same_luck_on_users_that_did_not_train(tmp_path):
    world, split = worlds.world(), SplitConfig(judge=0.3, last=0.3)
    logged = FixedGaussian([0.5, 0.5, 1, 1, 1, 1], 0.5)
    judges = [SimulatorJudge.of(world, Arm("logged", logged, explore=True), GROUPS.index(group), split, 300, 1, 0.95)
              for group in (JUDGE, LAST)]
    theirs = [set(judge.persons % world.users) for judge in judges]
    assert theirs[0].isdisjoint(theirs[1])
    group = groups_of(world.user_ids.astype(str), split)
    assert all((group[list(users)] == place).all() for users, place in zip(theirs, (1, 2), strict=True))
    same = judges[0](actor(tmp_path, logged.mu.tolist(), world.vocabulary))
    assert all(worth == (0.0, 0.0, 0.0) for worth in same.values()), "the same policy, the same luck: no difference"
    # Exploration costs: the mean of the base is not the base.
    mean = dataclasses.replace(judges[0], explore=False)(actor(tmp_path, logged.mu.tolist(), world.vocabulary))
    assert mean["watch_time"].estimate != 0.0
    other = judges[0](actor(tmp_path, [-2, -2, 0, 0, 0, 0], world.vocabulary))
    assert other["watch_time"].high < 0
    columns = flat(other, "x_")
    assert columns["x_watch_time_low"] == other["watch_time"].low
    assert np.isfinite(list(columns.values())).all()


def test_a_trial_of_the_scorer_is_judged_by_users_that_did_not_train(tmp_path):
    exposures, split = scene_rows(worlds.exposures()[0], KUAIRAND), SplitConfig(judge=0.4, last=0.2)
    base = ScenesConfig(
        model=ModelConfig(experts=2, expert_layers=(8,), tower_layers=(), embedding_size=4, history_length=0),
        training=TrainingConfig(minimum_positives=1))
    study = ScenesStudy(base=base, registry=KUAIRAND, exposures=exposures, group=ScenesStudy.deal(exposures, split),
                        bundles=tmp_path, objective="click", guarded=("long_view",), fingerprint="f")
    users = exposures.column("user_id")
    assert set(users[study.group == 0]).isdisjoint(users[study.group == 1])
    report = run(study, {"model.experts": 3, "training.strategy": "sqrt"})
    assert 0.4 < report["click_low"] < report["click"] < report["click_high"] < 1
    manifest = read_bundle(tmp_path / report[BUNDLE], "scenes").manifest
    assert manifest["training"]["strategy"] == "sqrt"
    scorer = SceneScorer.from_bundle(read_bundle(tmp_path / report[BUNDLE], "scenes"))
    assert study.judge(scorer, LAST)["click"].estimate != report["click"]
    with pytest.raises(InvalidFieldError, match="strategy"):
        study.check({"training.strategy": "no such"})
