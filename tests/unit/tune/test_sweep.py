"""What surrounds the trials: where samples come from, floors, the config files."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace

import pytest

from recfuse.config import InvalidFieldError, load
from recfuse.jobs import _flow, demo
from recfuse.runtime.placement import Node
from recfuse.tune import samples, search, sweep
from recfuse.tune.conclusion import silent
from recfuse.tune.scenes import scenes_study
from recfuse.tune.search import planned
from recfuse.tune.settings import SearchConfig, SweepConfig

CONFIGS = Path(sweep.__file__).parent / "config"
SPACE = ({"multipliers.total": [1.0]},)


def test_absent_samples_are_made_as_the_demo_makes_them(tmp_path, monkeypatch):
    """Same configs, so that the demo takes up what the sweep made, and the sweep what the demo made."""
    class EnoughError(BaseException):  # as an interrupt, of which the demo makes no line
        pass

    seen: list = []

    def main_of(made: SimpleNamespace):
        return lambda config, *source: seen.append(config) or made

    def stop(config):
        seen.append(config)
        raise EnoughError

    def steps(run) -> list:
        seen.clear()
        with pytest.raises(EnoughError):
            run()
        return list(seen)

    for steps_of, name in ((_flow.train_scenes, "main"), (samples, "train_scenes")):
        monkeypatch.setattr(steps_of, name, main_of(SimpleNamespace(bundle="b", headline="", reused=False)))
    for steps_of, name in ((_flow.simulate, "main"), (samples, "simulate")):
        monkeypatch.setattr(steps_of, name, main_of(SimpleNamespace(logs="l", requests=1, reused=False)))
    for steps_of, name in ((_flow.ingest, "main"), (samples, "ingest")):
        monkeypatch.setattr(steps_of, name, stop)
    monkeypatch.setattr("recfuse.runtime.cluster.cluster", contextlib.nullcontext)  # starts no Ray
    out = str(tmp_path / "demo")
    ours = steps(lambda: samples.make_samples(out))
    theirs = steps(lambda: demo.main(demo.DemoConfig(output=out)))
    assert len(ours) == 3
    assert ours == theirs


def test_the_demo_refuses_a_foreign_file_before_it_starts(tmp_path):
    (tmp_path / "serving.json").write_text("mine")
    with pytest.raises(InvalidFieldError, match=r"output: got .*serving.json'; allowed: .*demo did not write"):
        demo.main(demo.DemoConfig(output=str(tmp_path)))
    assert (tmp_path / "serving.json").read_text() == "mine"


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("*.yaml")), ids=lambda file: file.stem)
def test_the_configs_that_come_with_it_are_good(file):
    config = load(SweepConfig, file)
    assert config.space
    planned(config.space, config.search)


def test_the_demo_sweeps_both_discounts_and_five_decades_of_lambda():
    trials = planned(load(SweepConfig, CONFIGS / "fusion.yaml").space, SearchConfig())
    totals = sorted({one["multipliers.total"] for one in trials if "multipliers.total" in one})
    assert totals[-1] / totals[0] == pytest.approx(1e5)
    assert {one["discounts.short_term"] for one in trials if "discounts.short_term" in one} == {0.0, 0.95}


def test_optuna_takes_one_block():
    with pytest.raises(InvalidFieldError, match="one block"):
        planned([{"a": [1]}, {"b": [1]}], SearchConfig(searcher="optuna"))


def test_trials_are_counted_node_by_node(monkeypatch):
    """Two nodes of three CPUs hold two trials of two CPUs, not three."""
    found = tuple(Node(f"10.0.0.{number}", str(number), {"CPU": 3.0}, {"CPU": 3.0}) for number in (1, 2))
    monkeypatch.setattr(search, "nodes", lambda: found)
    monkeypatch.setattr(search.ray_compat, "may_grow", lambda: False)
    assert search.at_once(SearchConfig(cpus=2)) == 2
    assert search.at_once(SearchConfig(cpus=0.5)) == 12
    with pytest.raises(InvalidFieldError, match=r"^search.cpus: got 4\.0; allowed: what one node has; nodes: 10"):
        search.at_once(SearchConfig(cpus=4))
    with pytest.raises(InvalidFieldError, match=r"^search.gpus: got 1\.0; allowed: what one node has"):
        search.at_once(SearchConfig(gpus=1))
    monkeypatch.setattr(search.ray_compat, "may_grow", lambda: True)
    assert search.at_once(SearchConfig(cpus=4)) == 1, "a node may come"


def test_a_trial_that_its_node_cut_off_is_told_from_one_that_failed():
    died = "Traceback\nray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.\n"
    assert search.is_lost(f"{died}The actor died because its node has died. Node Id: 1\n")
    assert not search.is_lost(f"{died}The actor is dead because its worker process has died.\n")


def test_a_scorers_trial_has_nothing_for_a_scheduler():
    with pytest.raises(InvalidFieldError, match=r"search\.scheduler"):
        scenes_study(SweepConfig(learner="scenes", space=SPACE, search=SearchConfig(scheduler="asha")))


def test_behaviours_of_which_no_trial_learned_anything_are_named():
    found = [{"explained_like": 0.0, "explained_follow": 0.0}, {"explained_like": 0.01, "explained_follow": 0.0}, {}]
    assert silent(found, ["like", "follow", "hate"]) == ["follow"]
    assert silent([], ["like"]) == []
