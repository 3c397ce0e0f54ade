"""A small sweep on a logged bandit whose optimum is known: Ray Tune, ledger, resume, failures, report."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import samples as toy
from clusters import killing

from recfuse.bundle import read_bundle
from recfuse.config import InvalidFieldError
from recfuse.fusion.networks import NetworkConfig
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.settings import StoppingRule
from recfuse.tune import sweep, trials
from recfuse.tune.ledger import FAILED, FINISHED, JSONL, PARQUET, STOPPED
from recfuse.tune.search import SearchConfig
from recfuse.tune.settings import SweepConfig
from recfuse.tune.space import Range
from recfuse.tune.split import SplitConfig

pytestmark = pytest.mark.usefixtures("local_ray")
LEARNING = TwoStageConfig(
    network=NetworkConfig(hidden=(16,), sigma_min=0.2),
    critics=StoppingRule(iterations=3), cloning=StoppingRule(iterations=1), stage_one=StoppingRule(iterations=3),
    stage_two=StoppingRule(iterations=6), minibatch_size=256, window_rows=4096,
    critic_learning_rate=5e-3, auxiliary_learning_rate=2e-3, policy_learning_rate=5e-3)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write(tmp_path_factory.mktemp("samples"), toy.bandit(rows=9000))


def config(samples: Path, output: Path, **changes) -> SweepConfig:
    return SweepConfig(**{
        "samples": str(samples), "output": str(output), "judge": "off_policy", "learning": LEARNING,
        "search": SearchConfig(cpus=0.5), "split": SplitConfig(judge=0.3, last=0.3), "floor": {"like": -0.5},
        "space": ({"multipliers.total": [0.02, 2000.0]},), **changes})


def rows(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / JSONL).read_text().splitlines()]


def test_a_sweep_ends_with_its_frontier_and_a_rerun_repeats_nothing(samples, tmp_path, monkeypatch, capsys):
    asked = config(samples, tmp_path)
    result = sweep.main(asked)
    found = rows(tmp_path)
    assert [row["status"] for row in found] == [FINISHED] * 3
    assert {row.get("config.multipliers.total") for row in found} == {None, 0.02, 2000.0}
    flat = {"watch_time", "watch_time_low", "watch_time_high", "like_low", "ope_like", "bundle", "seconds", "passes"}
    assert all(flat <= set(row) for row in found)
    assert pq.read_table(tmp_path / PARQUET).num_rows == 3
    by = {row.get("config.multipliers.total"): row for row in found}
    assert by[0.02]["watch_time"] > by[2000.0]["watch_time"], "a small Λ goes further towards watch time"
    read_bundle(tmp_path / "bundles" / by[0.02]["bundle"], "fusion")
    assert result.report is not None
    page = result.report.read_text()
    assert page.count("data:image/svg+xml;base64,") >= 3
    assert "no other dominates" in capsys.readouterr().out

    # As after a crash: one row is lost, another one cut off in the middle of its line.
    lines = (tmp_path / JSONL).read_text().splitlines(keepends=True)
    (tmp_path / JSONL).write_text(lines[0] + lines[1][:40])
    wider = asked.replace(space=({"multipliers.total": [0.02, 2000.0, 2.0]},))
    started = []
    run_trials = trials.run_trials
    monkeypatch.setattr(trials, "run_trials", lambda *a: (started.append(len(a[3].rows)), run_trials(*a)))
    sweep.main(wider)
    again = rows(tmp_path)
    assert started == [1]
    assert len({row["key"] for row in again}) == len(again) == 4
    assert again[0] == found[0]
    kept = {row["key"]: row for row in found}
    for row in again[1:]:
        if row["key"] in kept:  # the same trial gives the same result
            assert row["watch_time"] == pytest.approx(kept[row["key"]]["watch_time"], rel=1e-6)


def test_a_trial_that_fails_is_recorded_and_does_not_end_the_sweep(samples, tmp_path, capsys):
    broken = config(samples, tmp_path, space=({"critic_learning_rate": [1e18]}, {"multipliers.total": [0.5]}))
    sweep.main(broken)
    found = {row["number"]: row for row in rows(tmp_path)}
    assert {number: row["status"] for number, row in found.items()} == {1: FINISHED, 2: FAILED, 3: FINISHED}
    assert "loss is" in found[2]["reason"], found[2]["reason"]
    assert "failed: #2" in capsys.readouterr().out


def test_a_trial_whose_process_is_killed_is_recorded_and_runs_again_when_asked(samples, tmp_path):
    asked = config(samples, tmp_path)
    raylet = ray._private.worker._global_node.all_processes["raylet"][0].process.pid
    with killing(raylet, "Trainable.train") as killed:
        sweep.main(asked)
    assert len(killed) == 1, killed
    found = {row["status"]: row for row in rows(tmp_path)}
    assert sorted(row["status"] for row in rows(tmp_path)) == [FAILED, FINISHED, FINISHED]
    assert "died" in found[FAILED]["reason"], found[FAILED]["reason"]
    sweep.main(asked.replace(retry_failed=True))
    assert [row["status"] for row in rows(tmp_path)] == [FINISHED] * 3


def test_asha_stops_what_falls_behind(samples, tmp_path):
    """The first trial reaches every rung; the second, held fast to like's policy, is below it at one of them."""
    free = LEARNING.replace(multipliers={"like": 0.02})
    halving = SearchConfig(scheduler="asha", grace=1, reduction=2, concurrent=1)
    sweep.main(config(samples, tmp_path, learning=free, space=({"multipliers.total": [2000.0]},), search=halving))
    first, second = sorted(rows(tmp_path), key=lambda row: row["number"])
    assert (first["status"], second["status"]) == (FINISHED, STOPPED)
    assert second["reason"] == "behind the others (asha)"
    assert second["final_passes"] < first["final_passes"]
    assert "watch_time" not in second, "what was stopped was not judged"


def test_optuna_takes_all_measures(samples, tmp_path):
    searched = config(
        samples, tmp_path, space=({"multipliers.total": Range(low=0.01, high=100.0, log=True),
                                   "network.hidden": [[8], [16, 16]]},),
        search=SearchConfig(searcher="optuna", samples=4, scheduler="asha", grace=1, reduction=2, concurrent=1,
                            trackers=("tensorboard",)))
    sweep.main(searched)
    found = rows(tmp_path)
    assert list((tmp_path / "tune").rglob("events.out.tfevents*")), "a tracker is one word of the config"
    assert len(found) == 4
    assert {row["status"] for row in found} <= {FINISHED, STOPPED}
    assert FINISHED in {row["status"] for row in found}
    assert len({row["config.multipliers.total"] for row in found}) == 4
    more = searched.replace(search=searched.search.replace(samples=5))
    sweep.main(more)
    assert [row["key"] for row in rows(tmp_path)[:4]] == [row["key"] for row in found]
    assert len(rows(tmp_path)) == 5


def test_a_dry_run_says_what_it_would_cost_and_runs_nothing(samples, tmp_path, capsys):
    result = sweep.main(config(samples, tmp_path, dry_run=True))
    printed = capsys.readouterr().out
    assert result.report is None
    assert not (tmp_path / JSONL).exists()
    assert "Λ=0.02" in printed
    assert "CPU hours" in printed


@pytest.mark.parametrize(("changes", "field"), [
    ({"space": ({"discounts.nobody": [0.5]},)}, "discounts.nobody"),
    ({"space": ({"no_such_field": [0.5]},)}, "no_such_field"),
    ({"floor": {"watch_time": 0.0}}, "floor.watch_time"),
    ({"objective": "nothing"}, "objective"),
    ({"judge": "ab_test"}, "simulation"),
])
def test_what_does_not_fit_is_refused_before_the_first_trial(samples, tmp_path, changes, field):
    with pytest.raises(InvalidFieldError, match=field):
        sweep.main(config(samples, tmp_path, **changes, simulation=str(tmp_path / "none")))
