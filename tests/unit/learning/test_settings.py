from __future__ import annotations

import pickle
import sys

import pytest
import tyro

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.config import InvalidFieldError, from_mapping, load
from recfuse.fusion.config import NetworkConfig
from recfuse.learning import registry
from recfuse.learning.algorithms.cem import CemConfig
from recfuse.learning.algorithms.cloning import BehaviourCloningConfig
from recfuse.learning.algorithms.iql import IqlConfig
from recfuse.learning.algorithms.td3_bc import Td3BcConfig
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.config import TrainFusionConfig
from recfuse.learning.options import choose_algorithm
from recfuse.learning.phases import names_of
from recfuse.learning.settings import LearningSettings, StoppingRule
from recfuse.runtime.console import start

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
    ({"algorithm": "ppo"}, "algorithm: got 'ppo'; allowed: actor_critic, behaviour_cloning, cem, .*, two_stage"),
    ({"auxiliary": "both"}, "auxiliary: got 'both'; allowed: per_behaviour, sequential"),
    ({"density": "guessed"}, "density: got 'guessed'; allowed: auto, logged, estimated"),
    ({"targets": "retrace"}, "targets: got 'retrace'; allowed: one_step, v_trace"),
    ({"target_rate": 0.0}, r"target_rate: got 0.0; allowed: a number in \(0, 1\], or nothing"),
    ({"algorithm": "cem", "network": NetworkConfig(action_range=(0.0, 1.0))},
     r"network.action_range: got \(0.0, 1.0\); allowed: nothing, for the algorithm cem"),
    ({"algorithm": "pareto", "weights": {"like": -1.0}}, r"weights\.like: got -1.0; allowed: .*0"),
    ({"algorithm": "rcpo", "floors": {"like": float("nan")}}, r"floors\.like: got nan; allowed: .*number"),
    ({"algorithm": "rcpo", "dual_step": 0}, "dual_step: got 0; allowed: a number > 0"),
    ({"critic_learning_rate": 0}, "critic_learning_rate: got 0; allowed: a number > 0"),
    ({"rho_max": float("inf")}, "rho_max: got inf; allowed: a number > 0"),
    ({"minibatch_size": 1001, "num_learners": 2},
     r"minibatch_size: got 1001; allowed: a multiple of num_learners \(2\)"),
    ({"ess_floor": 1.5}, r"ess_floor: got 1.5; allowed: a number in \[0, 1\]"),
    ({"weight_cap": 0.5}, "weight_cap: got 0.5; allowed: a number ≥ 1, or nothing"),
    ({"multipliers": {"like": 0.0}}, r"multipliers\.like: got 0.0; allowed: .*0"),
    ({"holdout": 1.0}, r"holdout: got 1.0; allowed: a number in \[0, 1\)"),
    ({"shards": 3}, "shards: got 3; allowed: 1, 2, 4, 8"),
    ({"window_rows": 10}, r"window_rows: got 10; allowed: at least minibatch_size \(1024\)"),
    ({"threads": 0}, "threads: got 0; allowed: an integer ≥ 1"),
    ({"num_learners": -1}, "num_learners: got -1; allowed: an integer ≥ 0"),
    ({"seed": -1}, r"seed: got -1; allowed: an integer in \[0, 2.14748e\+09\)"),
    ({"algorithm": "iql", "expectile": 1.0}, r"expectile: got 1.0; allowed: a number in \(0, 1\)"),
    ({"algorithm": "iql", "temperature": 0.0}, "temperature: got 0.0; allowed: a number > 0"),
    ({"algorithm": "td3_bc", "alpha": -1.0}, "alpha: got -1.0; allowed: a number > 0"),
    ({"algorithm": "td3_bc", "delay": 0}, "delay: got 0; allowed: an integer ≥ 1"),
    ({"algorithm": "cem", "population": 1}, "population: got 1; allowed: an integer ≥ 2"),
    ({"algorithm": "cem", "spread": 0.0}, "spread: got 0.0; allowed: a number > 0"),
])
def test_bad_settings_are_named(change, message):
    with pytest.raises(InvalidFieldError, match=message):
        registry.settings(**change)
    with pytest.raises(InvalidFieldError, match=f"learning.{message}"):
        TrainFusionConfig(learning=change)


@pytest.mark.parametrize(("change", "message"), [
    ({"iterations": 0}, "iterations: got 0; allowed: an integer ≥ 1"),
    ({"iterations": 1, "change_below": -1.0}, "change_below: got -1.0; allowed: a number ≥ 0, or nothing"),
    ({"iterations": 1, "loss_below": float("nan")}, "loss_below: got nan; allowed: a number, or nothing"),
    ({"iterations": 1, "patience": 0}, "patience: got 0; allowed: an integer ≥ 1"),
])
def test_bad_rules_are_named(change, message):
    with pytest.raises(InvalidFieldError, match=message):
        StoppingRule(**change)


def test_the_algorithm_is_a_flag_of_the_job(monkeypatch):
    """`jobs/train_fusion.py --algorithm iql`."""
    def parse(*arguments: str) -> LearningSettings:
        default = choose_algorithm(TrainFusionConfig, {}, arguments, "")
        return tyro.cli(TrainFusionConfig, args=arguments, default=default).learning

    assert type(parse()) is TwoStageConfig
    assert type(parse("--algorithm", "iql")) is IqlConfig
    assert parse("--learning.algorithm", "cem").algorithm == "cem"
    found = parse("--algorithm=iql", "--learning.expectile", "0.9", "--learning.critics.iterations", "2",
                  "--learning.network.trunk", "shared")
    assert found == IqlConfig(expectile=0.9, critics=StoppingRule(iterations=2, change_below=1e-3, patience=3),
                              network=NetworkConfig(trunk="shared"))


def test_the_flag_goes_before_the_file():
    file = {"learning": {"algorithm": "rcpo", "seed": 3, "rho_max": 4.0}}
    found = choose_algorithm(TrainFusionConfig, file, ["--algorithm", "pareto"], "").learning
    assert (found.algorithm, found.seed, found.rho_max) == ("pareto", 3, 4.0)


def test_help_shows_the_options_of_the_algorithm_alone(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit):
        start(TrainFusionConfig, ["--algorithm", "iql", "--help"], choose=choose_algorithm)
    page = capsys.readouterr().out
    assert "--learning.expectile" in page
    assert "--learning.critics.iterations" in page
    assert "--learning.auxiliary" not in page
    assert "--learning.td3" not in page


def test_an_option_of_another_algorithm_is_refused_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    with pytest.raises(SystemExit) as exit_:
        start(TrainFusionConfig, ["--algorithm", "iql", "--learning.auxiliary", "sequential"], choose=choose_algorithm)
    assert exit_.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: learning.auxiliary: got 'sequential'; allowed: for the algorithm iql, one of ")
    assert "expectile" in line


def test_plain_values_become_the_config_of_their_algorithm():
    found = from_mapping(TrainFusionConfig, {"learning": {"algorithm": "iql", "expectile": 0.8}}).learning
    assert found == IqlConfig(expectile=0.8)
    assert TrainFusionConfig(learning={"algorithm": "td3_bc"}).learning == Td3BcConfig()
    assert from_mapping(LearningSettings, {"seed": 5}) == TwoStageConfig(seed=5)
    assert TrainFusionConfig(learning=found).to_dict()["learning"]["expectile"] == 0.8
    assert from_mapping(TrainFusionConfig, TrainFusionConfig(learning=found).to_dict()).learning == found
    with pytest.raises(InvalidFieldError, match=r"learning.auxiliary: got 'sequential'; allowed: one of .*expectile"):
        TrainFusionConfig(learning={"algorithm": "iql", "auxiliary": "sequential"})
    with pytest.raises(InvalidFieldError, match="algorithm: got 'cem'; allowed: iql"):
        IqlConfig(algorithm="cem")
    with pytest.raises(TypeError, match="abstract class LearningSettings with abstract method fits"):
        LearningSettings()


@pytest.mark.parametrize("name", registry.names())
def test_every_algorithm_says_what_it_is(name):
    """Formula and reference stand with the config; every field has a sentence; each travels as plain values and between
    processes."""
    settings = registry.settings(name)
    assert type(settings).__doc__
    for field, info in type(settings).model_fields.items():
        assert (info.description or "").endswith("."), field
    assert from_mapping(LearningSettings, settings.to_dict()) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings  # noqa: S301
    assert len(set(names_of(settings.phases))) == len(settings.phases)


def test_seeds_of_phases_are_what_they_were():
    """Another number is another order of the samples, and other bits."""
    built_in = [settings for settings in map(registry.settings, registry.names())
                if type(settings).__module__.startswith("recfuse.")]
    without = {phase.name: phase.seed for settings in built_in for phase in settings.phases
               if settings.algorithm not in ("replay_vector", "item_value", "monotone")}
    assert without == {"critics": 1, "cloning": 2, "stage_one": 3, "stage_two": 4, "policy": 5, "action_values": 6,
                       "extraction": 7, "actor": 8, "search": 9}
    replayed = [TwoStageConfig().resolved(True, True), TwoStageConfig(extraction="closed_form").resolved(True, True)]
    assert [[(phase.name, phase.seed) for phase in settings.phases[2:]] for settings in replayed] == [
        [("replay", 10), ("stage_one", 11), ("trial_1", 12), ("trial_2", 17), ("gate", 13), ("stage_two", 14)],
        [("replay", 10), ("stage_one", 11), ("multipliers", 15), ("stage_two", 16)]]


def test_an_adapted_config_keeps_what_both_have():
    source = TwoStageConfig(seed=4, ess_floor=0.5, multipliers={"like": 2.0}, target_rate=0.1)
    assert registry.adapted(source, "iql") == IqlConfig(seed=4, ess_floor=0.5, target_rate=0.1)
    assert registry.adapted(TwoStageConfig(), "iql").target_rate == 0.005


def test_the_density_is_estimated_where_the_log_has_none():
    auto = TwoStageConfig()
    assert auto.resolved(True).density == "logged"
    assert auto.resolved(False).density == "estimated"
    assert TwoStageConfig(density="estimated").resolved(True).density == "estimated"
    with pytest.raises(InvalidFieldError, match="density: got 'logged'; allowed: auto or estimated, because samples l"):
        TwoStageConfig(density="logged").resolved(False)
    assert names_of(CemConfig().resolved(False).phases) == ("cloning", "critics", "search")
    assert names_of(IqlConfig().resolved(False).phases) == ("action_values", "cloning", "extraction")


def test_with_v_trace_the_critics_follow_the_logged_policy():
    assert names_of(TwoStageConfig(targets="v_trace").phases) == ("cloning", "critics", "stage_one", "stage_two")


def test_a_bad_field_of_a_file_is_named_with_its_path():
    with pytest.raises(InvalidFieldError, match=r"learning.critics.iterations: got 0; allowed"):
        from_mapping(TrainFusionConfig, {"learning": {"critics": {"iterations": 0}}})
    with pytest.raises(InvalidFieldError, match=r"learning.gamma"):
        from_mapping(TrainFusionConfig, {"learning": {"gamma": 1}})


def test_the_documented_file_holds_the_defaults():
    assert load(TrainFusionConfig, "jobs/config/train_fusion.yaml") == TrainFusionConfig()


def test_multipliers_override_the_vocabulary():
    behaviours = TwoStageConfig(multipliers={"like": 5.0}).apply_to(VOCABULARY).behaviours
    assert [behaviour.multiplier for behaviour in behaviours] == [1.0, 5.0]
    with pytest.raises(InvalidFieldError, match=r"multipliers.watch_time: got 1.0; allowed: short-term beh.* \(like"):
        TwoStageConfig(multipliers={"watch_time": 1.0}).apply_to(VOCABULARY)


@pytest.mark.parametrize(("algorithm", "options", "expected"), [
    ("actor_critic", {}, (1.0, 0.0)), ("interaction_only", {}, (0.0, 1.0)), ("rcpo", {}, (1.0, 0.0)),
    ("pareto", {}, (1.0, 1.0)), ("pareto", {"weights": {"watch_time": 0.2}}, (0.2, 1.0)),
    ("interaction_only", {"weights": {"like": 3.0}}, (0.0, 3.0)),
])
def test_scalarisation_weighs_what_the_algorithm_is_for(algorithm, options, expected):
    assert registry.settings(algorithm, **options).scalarisation(VOCABULARY) == expected


@pytest.mark.parametrize(("change", "message"), [
    ({"algorithm": "rcpo", "floors": {"watch_time": 0.1}},
     r"floors.watch_time: got 0.1; allowed: short-term behaviours \(like\)"),
    ({"algorithm": "pareto", "weights": {"share": 1.0}},
     r"weights.share: got 1.0; allowed: behaviours \(watch_time, like\)"),
    ({"algorithm": "interaction_only", "weights": {"like": 0.0}},
     "weights: got {'like': 0.0}; allowed: at least one"),
])
def test_what_does_not_fit_the_vocabulary_is_named(change, message):
    with pytest.raises(InvalidFieldError, match=message):
        registry.settings(**change).apply_to(VOCABULARY)


def test_two_stage_needs_a_short_term_behaviour():
    alone = Vocabulary(behaviours=(LONG,), fusion_parameters=("a",), state_size=1)
    with pytest.raises(InvalidFieldError, match="at least one short_term behaviour for the algorithm two_stage"):
        TwoStageConfig().apply_to(alone)
    BehaviourCloningConfig().apply_to(alone)
