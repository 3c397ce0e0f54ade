from __future__ import annotations

import pytest
import tyro

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.config import InvalidFieldError, from_mapping, load
from recfuse.fusion.networks import NetworkConfig
from recfuse.learning.settings import (
    CemSettings,
    IqlSettings,
    LearningSettings,
    StoppingRule,
    Td3BcSettings,
)
from recfuse.learning.training import TrainFusionConfig

LONG, SHORT = Behaviour(name="watch_time", kind="long_term"), Behaviour(name="like", kind="short_term")
VOCABULARY = Vocabulary(behaviours=(LONG, SHORT), fusion_parameters=("a",), state_size=1)


@pytest.mark.parametrize(("rule", "losses", "reason"), [
    (StoppingRule(iterations=3), [3, 2], None),
    (StoppingRule(iterations=3), [3, 2, 1], "iteration limit"),
    (StoppingRule(iterations=9, loss_below=1.5), [3, 1], "loss below 1.5"),
    (StoppingRule(iterations=9, change_below=0.1), [3], None),
    (StoppingRule(iterations=9, change_below=0.1), [3, 2.95], "change below 0.1"),
    (StoppingRule(iterations=9, change_below=0.0), [3, 3.5], "change below 0"),
    (StoppingRule(iterations=9, change_below=0.1, patience=2), [3, 3.5], None),
    (StoppingRule(iterations=9, change_below=0.1, patience=2), [3, 3.5, 2], None),
    (StoppingRule(iterations=9, change_below=0.1, patience=2), [3, 3.5, 3.2], "change below 0.1"),
    (StoppingRule(iterations=1, loss_below=9, change_below=9), [3], "loss below 9"),
])
def test_the_first_rule_that_holds_ends_a_fit(rule, losses, reason):
    assert rule.reason_to_stop(losses) == reason


@pytest.mark.parametrize(("change", "message"), [
    ({"algorithm": "ppo"}, "algorithm: got 'ppo'; allowed: two_stage, behaviour_cloning, cem, .*, td3_bc, iql"),
    ({"auxiliary": "both"}, "auxiliary: got 'both'; allowed: per_behaviour, sequential"),
    ({"density": "guessed"}, "density: got 'guessed'; allowed: auto, logged, estimated"),
    ({"targets": "retrace"}, "targets: got 'retrace'; allowed: one_step, v_trace"),
    ({"target_rate": 0.0}, r"target_rate: got 0.0; allowed: a number in \(0, 1\], or nothing"),
    ({"algorithm": "cem", "network": NetworkConfig(action_range=(0.0, 1.0))},
     r"network.action_range: got \(0.0, 1.0\); allowed: nothing, for the algorithm cem"),
    ({"weights": {"like": -1.0}}, "weights: got {'like': -1.0}; allowed: finite numbers ≥ 0"),
    ({"floors": {"like": float("nan")}}, "floors: got {'like': nan}; allowed: finite numbers"),
    ({"dual_step": 0}, "dual_step: got 0; allowed: a finite number > 0"),
    ({"critic_learning_rate": 0}, "critic_learning_rate: got 0; allowed: a finite number > 0"),
    ({"rho_max": float("inf")}, "rho_max: got inf; allowed: a finite number > 0"),
    ({"minibatch_size": 1001, "num_learners": 2},
     r"minibatch_size: got 1001; allowed: a multiple of num_learners \(2\)"),
    ({"ess_floor": 1.5}, r"ess_floor: got 1.5; allowed: a share in \[0, 1\]"),
    ({"weight_cap": 0.5}, "weight_cap: got 0.5; allowed: a number ≥ 1, or nothing"),
    ({"multipliers": {"like": 0.0}}, "multipliers: got {'like': 0.0}; allowed: finite numbers > 0"),
    ({"holdout": 1.0}, r"holdout: got 1.0; allowed: a share in \[0, 1\)"),
    ({"shards": 3}, "shards: got 3; allowed: 1, 2, 4, 8"),
    ({"window_rows": 10}, r"window_rows: got 10; allowed: at least minibatch_size \(1024\)"),
    ({"threads": 0}, "threads: got 0; allowed: an integer ≥ 1"),
    ({"num_learners": -1}, "num_learners: got -1; allowed: an integer ≥ 0"),
    ({"seed": -1}, r"seed: got -1; allowed: an integer in \[0, 2\^31\)"),
])
def test_bad_settings_are_named(change, message):
    with pytest.raises(InvalidFieldError, match=message):
        LearningSettings(**change)


@pytest.mark.parametrize(("change", "message"), [
    ({"iterations": 0}, "iterations: got 0; allowed: an integer ≥ 1"),
    ({"iterations": 1, "change_below": -1.0}, "change_below: got -1.0; allowed: a finite number ≥ 0, or nothing"),
    ({"iterations": 1, "loss_below": float("nan")}, "loss_below: got nan; allowed: a finite number, or nothing"),
    ({"iterations": 1, "patience": 0}, "patience: got 0; allowed: an integer ≥ 1"),
])
def test_bad_rules_are_named(change, message):
    with pytest.raises(InvalidFieldError, match=message):
        StoppingRule(**change)


@pytest.mark.parametrize(("kind", "change", "message"), [
    (IqlSettings, {"expectile": 1.0}, r"expectile: got 1.0; allowed: a number in \(0, 1\)"),
    (IqlSettings, {"temperature": 0.0}, "temperature: got 0.0; allowed: a finite number > 0"),
    (Td3BcSettings, {"alpha": -1.0}, "alpha: got -1.0; allowed: a finite number > 0"),
    (Td3BcSettings, {"delay": 0}, "delay: got 0; allowed: an integer ≥ 1"),
    (CemSettings, {"population": 1}, "population: got 1; allowed: an integer ≥ 2"),
    (CemSettings, {"spread": 0.0}, "spread: got 0.0; allowed: a finite number > 0"),
])
def test_bad_settings_of_a_rival_are_named(kind, change, message):
    with pytest.raises(InvalidFieldError, match=message):
        kind(**change)


def test_the_algorithm_is_a_flag_of_the_job():
    """`jobs/train_fusion.py --algorithm iql`."""
    assert tyro.cli(TrainFusionConfig, args=["--algorithm", "iql"]).learning.algorithm == "iql"
    assert tyro.cli(TrainFusionConfig, args=["--learning.algorithm", "cem"]).learning.algorithm == "cem"


def test_the_density_is_estimated_where_the_log_has_none():
    auto = LearningSettings()
    assert auto.resolved(True).density == "logged"
    assert auto.resolved(False).density == "estimated"
    assert LearningSettings(density="estimated").resolved(True).density == "estimated"
    with pytest.raises(InvalidFieldError, match="density: got 'logged'; allowed: auto or estimated, because samples l"):
        LearningSettings(density="logged").resolved(False)
    assert LearningSettings(algorithm="cem").resolved(False).phases == ("cloning", "critics", "search")
    assert LearningSettings(algorithm="iql").resolved(False).phases == ("action_values", "cloning", "extraction")


def test_with_v_trace_the_critics_follow_the_logged_policy():
    assert LearningSettings(targets="v_trace").phases == ("cloning", "critics", "stage_one", "stage_two")


def test_a_bad_field_of_a_file_is_named_with_its_path():
    with pytest.raises(InvalidFieldError, match=r"learning.critics.iterations: got 0; allowed"):
        from_mapping(TrainFusionConfig, {"learning": {"critics": {"iterations": 0}}})
    with pytest.raises(InvalidFieldError, match=r"learning.gamma"):
        from_mapping(TrainFusionConfig, {"learning": {"gamma": 1}})


def test_the_documented_file_holds_the_defaults():
    assert load(TrainFusionConfig, "jobs/config/train_fusion.yaml") == TrainFusionConfig()


def test_multipliers_override_the_vocabulary():
    behaviours = LearningSettings(multipliers={"like": 5.0}).with_multipliers(VOCABULARY).behaviours
    assert [behaviour.multiplier for behaviour in behaviours] == [1.0, 5.0]
    with pytest.raises(InvalidFieldError, match=r"multipliers.watch_time: got 1.0; allowed: short-term beh.* \(like"):
        LearningSettings(multipliers={"watch_time": 1.0}).with_multipliers(VOCABULARY)


@pytest.mark.parametrize(("algorithm", "weights", "expected"), [
    ("actor_critic", {}, (1.0, 0.0)), ("interaction_only", {}, (0.0, 1.0)), ("rcpo", {}, (1.0, 0.0)),
    ("pareto", {}, (1.0, 1.0)), ("pareto", {"watch_time": 0.2}, (0.2, 1.0)),
    ("interaction_only", {"like": 3.0}, (0.0, 3.0)),
])
def test_scalarisation_weighs_what_the_algorithm_is_for(algorithm, weights, expected):
    assert LearningSettings(algorithm=algorithm, weights=weights).scalarisation(VOCABULARY) == expected


@pytest.mark.parametrize(("change", "message"), [
    ({"floors": {"watch_time": 0.1}}, r"floors.watch_time: got 0.1; allowed: short-term behaviours \(like\)"),
    ({"weights": {"share": 1.0}}, r"weights.share: got 1.0; allowed: behaviours \(watch_time, like\)"),
    ({"algorithm": "interaction_only", "weights": {"like": 0.0}}, "weights: got {'like': 0.0}; allowed: at least one"),
])
def test_what_does_not_fit_the_vocabulary_is_named(change, message):
    with pytest.raises(InvalidFieldError, match=message):
        LearningSettings(**change).with_multipliers(VOCABULARY)


def test_two_stage_needs_a_short_term_behaviour():
    alone = Vocabulary(behaviours=(LONG,), fusion_parameters=("a",), state_size=1)
    with pytest.raises(InvalidFieldError, match="at least one short_term behaviour for the algorithm two_stage"):
        LearningSettings().with_multipliers(alone)
    LearningSettings(algorithm="behaviour_cloning").with_multipliers(alone)
