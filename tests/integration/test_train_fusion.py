"""The job on a real local Ray, on a logged bandit whose optimum is known."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import ranked_samples
import safetensors
import samples as toy
import staged_samples
import torch
import tyro
import yaml

from recfuse.bundle import newest_bundle, read_bundle
from recfuse.config import InvalidFieldError
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.inference import FusionActor, export_policy
from recfuse.jobs.train_fusion import main
from recfuse.learning import registry, training
from recfuse.learning.algorithm import FusionAlgorithmConfig
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.config import StageOneTest, TrainFusionConfig
from recfuse.learning.learner import FusionLearner
from recfuse.learning.options import choose_algorithm
from recfuse.learning.phases import names_of
from recfuse.learning.resume import identity_of
from recfuse.learning.run import Run
from recfuse.learning.samples import SampleSet
from recfuse.learning.settings import LearningSettings, StoppingRule
from recfuse.learning.stage_one_test import Judgement
from recfuse.learning.training import CHECKPOINT
from recfuse.logs.schema import VOCABULARY_FILE
from recfuse.runtime.outputs import claim
from recfuse.runtime.waiting import Watch

pytestmark = pytest.mark.usefixtures("local_ray")

SETTINGS = TwoStageConfig(
    network=NetworkConfig(hidden=(32,), sigma_min=0.2),
    critics=StoppingRule(iterations=10), cloning=StoppingRule(iterations=1), stage_one=StoppingRule(iterations=10),
    stage_two=StoppingRule(iterations=25), minibatch_size=256, window_rows=2048,
    critic_learning_rate=5e-3, auxiliary_learning_rate=2e-3, policy_learning_rate=5e-3,
)
TWICE = StoppingRule(iterations=2)
QUICK = SETTINGS.replace(critics=TWICE, stage_one=TWICE, stage_two=TWICE)
QUICK_RCPO = registry.adapted(QUICK, "rcpo_mixed").replace(policy=TWICE)


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    return toy.write(tmp_path_factory.mktemp("samples"), toy.bandit(), files=1)


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    return toy.write(tmp_path_factory.mktemp("few"), toy.bandit(600), files=1)


def train(samples: Path, output: Path, settings: LearningSettings):
    return main(TrainFusionConfig(samples=str(samples), output=str(output), learning=settings))


def test_the_policy_moves_to_the_known_optimum(samples, tmp_path):
    """With a small λ, towards the action that watch time prefers in each state."""
    state = toy.bandit(500, seed=9)["state"]
    best = toy.optimum(state)
    result = train(samples, tmp_path, SETTINGS.replace(multipliers={"like": 0.02}))
    mean = FusionActor.from_bundle(read_bundle(result.bundle)).act(state, explore=False).mu
    assert np.sqrt(((mean - best) ** 2).sum(1)).mean() < 0.55 * np.sqrt((best**2).sum(1)).mean()


# Interrupted within the critics, and within a policy that climbs what the critics said; with V-trace, of a policy that
# has moved since.
@pytest.mark.parametrize(("settings", "stops", "passes"), [
    (QUICK, (1, 4), 7),
    (QUICK_RCPO, (1, 3), 5),
    (QUICK.replace(targets="v_trace"), (1, 5), 7),
], ids=["two_stage", "rcpo", "v_trace"])
def test_a_run_that_was_interrupted_ends_as_if_it_had_not_been(samples, tmp_path, settings, stops, passes):
    whole = train(samples, tmp_path / "whole", settings)
    interrupted = TrainFusionConfig(samples=str(samples), output=str(tmp_path / "resumed"), learning=settings)
    for stop_after in stops:
        stop_early(interrupted, stop_after)
    resumed = main(interrupted)
    assert resumed.resumed_at == sum(stops)
    # The name of a bundle is the hash of its content: parameters and metrics are the same to the last bit.
    assert resumed.bundle.name == whole.bundle.name
    assert resumed.history.read_text() == whole.history.read_text()
    again = main(interrupted)
    assert again.resumed_at == passes
    assert again.bundle == resumed.bundle


def test_a_run_that_dies_within_a_pass_ends_as_if_it_had_not(samples, tmp_path, monkeypatch):
    """At random steps, three times; kills of the whole process are in tests/opt_in/test_learner_kills."""
    whole = train(samples, tmp_path / "whole", QUICK)
    step, left = FusionLearner._step, 0

    def dying(*arguments: Any) -> Any:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(FusionLearner, "_step", dying)
    for after in np.random.default_rng(3).integers(5, 60, 3).tolist():
        left = after
        with pytest.raises(KeyboardInterrupt):
            train(samples, tmp_path / "killed", QUICK)
    resumed = train(samples, tmp_path / "killed", QUICK)
    assert 0 < resumed.resumed_at < 7
    assert resumed.bundle.name == whole.bundle.name
    assert resumed.history.read_text() == whole.history.read_text()


def test_a_loss_that_is_no_number_ends_in_a_line_and_leaves_the_checkpoint(few, tmp_path):
    """The rate at which the policy is cloned is absurd; the phase after it finds out."""
    settings = QUICK.replace(policy_learning_rate=1e30).to_dict()
    file, output = tmp_path / "config.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump({"samples": str(few), "output": str(output), "learning": settings}))
    ended = subprocess.run([sys.executable, "-m", "jobs.train_fusion", "--config", str(file)], capture_output=True,
                           text=True, timeout=300, check=False)
    assert ended.returncode == 1, ended.stderr
    [line] = [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    assert re.search("error: training cannot go on: stage_one: .* step 1 of pass 1.*checkpoint of the pass before",
                     line)
    assert "Traceback" not in ended.stdout + ended.stderr
    with safetensors.safe_open(output / CHECKPOINT / "learner.safetensors", framework="np") as content:
        progress = json.loads(content.metadata()["progress"])
        assert all(np.isfinite(content.get_tensor(name)).all() for name in content.keys())  # noqa: SIM118
    assert [entry["phase"] for entry in progress["history"]] == ["critics", "critics", "cloning"]


def stop_early(config: TrainFusionConfig, iterations: int) -> None:
    """Runs a part of the job, as far as a killed one would have come."""
    output = Path(config.output)
    output.mkdir(exist_ok=True)
    opened = SampleSet.open(config.samples)
    learning = config.learning.resolved(opened.has_density, opened.has_candidates)
    identity = identity_of(training.JOB, learning.to_dict(), samples=opened.fingerprint)
    with Watch("test", 60) as watch, Run(learning, opened, output / CHECKPOINT, identity, watch) as run:
        for _ in range(iterations):
            run.algorithm.train()
            run.algorithm.save_checkpoint(str(output / CHECKPOINT))


@pytest.mark.parametrize("name", [name for name in registry.names() if name != "two_stage"])
def test_a_baseline_is_one_flag_away(few, tmp_path, name):
    """`jobs/train_fusion.py --algorithm NAME`; what each learns is tested in test_baselines."""
    once = {field: {"iterations": 1} for field in ("critics", "cloning", "policy", "search")
            if field in registry.find(name).model_fields}
    learning = {**once, "network": {"hidden": [32], "sigma_min": 0.2}, "minibatch_size": 256, "window_rows": 2048}
    if name in ("replay_vector", "item_value", "monotone"):  # There is no such algorithm without candidates.
        few = ranked_samples.write(tmp_path / "ranked", users=100)
    file, flags = {"samples": str(few), "output": str(tmp_path / "out"), "learning": learning}, ["--algorithm", name]
    config = tyro.cli(TrainFusionConfig, default=choose_algorithm(TrainFusionConfig, file, flags, ""), args=flags)
    result = main(config)
    assert result.metrics.keys() == set(names_of(config.learning.phases))
    bundle = read_bundle(result.bundle)
    width = bundle.manifest["vocabulary"]["state_size"]
    assert bundle.manifest["training"]["algorithm"] == name
    assert bundle.manifest["training"]["density"] == "logged"
    states = toy.bandit(5)["state"][:, :width]
    assert FusionActor.from_bundle(bundle).act(states, explore=True).action.shape == (5, toy.ACTIONS)


def test_another_configuration_starts_anew(samples, tmp_path):
    train(samples, tmp_path, QUICK)
    assert train(samples, tmp_path, QUICK.replace(seed=1)).resumed_at == 0


def test_more_passes_go_on_and_end_as_if_there_had_always_been_so_many(few, tmp_path, caplog):
    once = StoppingRule(iterations=1)
    whole = train(few, tmp_path / "whole", QUICK)
    train(few, tmp_path / "more", QUICK.replace(critics=once, stage_one=once, stage_two=once))
    with caplog.at_level("INFO", "recfuse"):
        more = train(few, tmp_path / "more", QUICK)
    assert "critics goes on after pass 1 of now 2; cloning, stage_one, stage_two, which build on it, are" in caplog.text
    assert more.resumed_at == 1
    assert more.bundle.name == whole.bundle.name
    last = train(few, tmp_path / "more", QUICK.replace(stage_two=StoppingRule(iterations=3)))
    assert last.resumed_at == 7
    assert [json.loads(line)["phase"] for line in last.history.read_text().splitlines()][-3:] == ["stage_two"] * 3
    fewer = train(few, tmp_path / "more", QUICK)
    assert (fewer.resumed_at, fewer.metrics["stage_two"]["iterations"]) == (8, 3), "what is trained stays"


def test_an_interrupted_run_ends_at_once_where_it_had_as_many_passes_as_it_now_may(few, tmp_path):
    config = TrainFusionConfig(samples=str(few), output=str(tmp_path),
                               learning=QUICK.replace(critics=StoppingRule(iterations=9)))
    stop_early(config, 3)
    result = train(few, tmp_path, QUICK)
    assert result.resumed_at == 3
    assert result.metrics["critics"]["iterations"] == 3
    assert result.metrics["stage_two"]["iterations"] == 2


def test_a_changed_configuration_is_named_and_the_earlier_checkpoint_kept(few, tmp_path, caplog):
    train(few, tmp_path, QUICK)
    with caplog.at_level("WARNING", "recfuse"):
        assert train(few, tmp_path, QUICK.replace(rho_max=3.0)).resumed_at == 0
    assert "learning.rho_max 2.0 → 3.0; it is kept as checkpoint-" in caplog.text
    assert train(few, tmp_path, QUICK).resumed_at == 7, "the first one's checkpoint is taken up again"


def test_corrected_densities_train_anew_and_their_bundle_is_the_newest(tmp_path):
    columns = toy.bandit(600)
    first = train(toy.write(tmp_path / "s", columns), tmp_path / "out", QUICK)
    corrected = {**columns, "action_logp": columns["action_logp"] - 0.5}
    second = train(toy.write(tmp_path / "s", corrected), tmp_path / "out", QUICK)
    assert second.resumed_at == 0
    assert newest_bundle(tmp_path / "out", "fusion") == second.bundle
    again = train(toy.write(tmp_path / "s", columns), tmp_path / "out", QUICK)
    assert again.bundle == first.bundle
    assert newest_bundle(tmp_path / "out", "fusion") == first.bundle


def test_actions_that_were_not_drawn_are_counted(tmp_path, caplog):
    explored = np.arange(600) % 3 > 0
    samples = toy.write(tmp_path / "s", {**toy.bandit(600), "explored": explored})
    with caplog.at_level("INFO", "recfuse"):
        result = train(samples, tmp_path / "out", QUICK)
    assert "200 actions were not drawn (explored is false); they train critics alone" in caplog.text
    assert {phase: numbers.get("not_drawn") for phase, numbers in result.metrics.items()} == {
        "critics": None, "cloning": 200, "stage_one": 200, "stage_two": 200}
    assert read_bundle(result.bundle).manifest["metrics"]["cloning"]["not_drawn"] == 200


def test_two_trainings_into_one_output_and_the_output_of_another_job_are_refused(few, tmp_path):
    with (claim(str(tmp_path / "out"), "train_fusion"),
          pytest.raises(InvalidFieldError, match=r"output: got .*; allowed: a directory that no other job is writing")):
        train(few, tmp_path / "out", QUICK)
    with claim(str(tmp_path / "other"), "simulate") as other:
        other.begin()
        other.finish()
    with pytest.raises(InvalidFieldError, match=r"output: got .*; this one was written by simulate"):
        train(few, tmp_path / "other", QUICK)
    with pytest.raises(InvalidFieldError, match=r"output: got .*; allowed: a directory"):
        train(few, few / "vocabulary.yaml", QUICK)


@pytest.mark.parametrize("name", ["a b%20#?=ü", "done=1"])
def test_paths_mean_themselves(few, tmp_path, name):
    plain = train(few, tmp_path / "plain", QUICK)
    odd = toy.write(tmp_path / name / "samples", toy.bandit(600), files=1)
    assert train(odd, tmp_path / name / "out", QUICK).bundle.name == plain.bundle.name


@pytest.mark.parametrize(("workers", "settings"), [
    (1, QUICK), (2, QUICK),
    (2, QUICK_RCPO.replace(floors={"like": 9.0}, minibatch_size=1024, network=NetworkConfig(hidden=(256, 32)))),
], ids=["1", "2", "2-rcpo-large"])
def test_the_number_of_learners_changes_not_a_bit(samples, tmp_path, workers, settings):
    local = train(samples, tmp_path / "0", settings)
    remote = train(samples, tmp_path / str(workers), settings.replace(num_learners=workers))
    mine, theirs = (read_bundle(result.bundle).tensors["policy"] for result in (local, remote))
    for name, tensor in mine.items():
        np.testing.assert_array_equal(theirs[name].numpy(), tensor.numpy(), err_msg=name)


def test_a_run_may_be_resumed_with_another_number_of_learners(samples, tmp_path):
    whole = train(samples, tmp_path / "whole", QUICK)
    config = TrainFusionConfig(samples=str(samples), output=str(tmp_path / "resumed"),
                               learning=QUICK.replace(num_learners=2))
    stop_early(config, 4)
    resumed = main(config.replace(learning=QUICK))
    assert resumed.resumed_at == 4
    mine, theirs = (read_bundle(result.bundle).tensors["policy"] for result in (whole, resumed))
    for name, tensor in mine.items():
        np.testing.assert_array_equal(theirs[name].numpy(), tensor.numpy(), err_msg=name)


def test_served_and_learned_policy_agree(samples, tmp_path):
    """Train/serve parity: the served mean is that of the learner's module within 1e-6 on 1,000 states."""
    opened = SampleSet.open(samples)
    algorithm = FusionAlgorithmConfig().learn(QUICK, opened).build_algo()
    for _ in range(7):
        algorithm.train()
    assert algorithm.finished
    state = toy.bandit(1000, seed=3)["state"]
    learner = next(iter(algorithm.learner_group.foreach_learner(lambda learner: learner))).get()
    with torch.no_grad():
        output = learner.fusion.forward_inference({"obs": torch.from_numpy(state)})["action_dist_inputs"].numpy()
    bundle = export_policy(tmp_path, algorithm.policy(), opened.vocabulary, training={}, data_fingerprint="",
                           metrics={})
    algorithm.stop()
    served = FusionActor.from_bundle(read_bundle(bundle)).act(state, explore=False)
    np.testing.assert_allclose(served.mu, output[:, : toy.ACTIONS], atol=1e-6, rtol=0)


def test_history_has_the_curves_of_every_phase(samples, tmp_path):
    result = train(samples, tmp_path, QUICK)
    history = [json.loads(line) for line in result.history.read_text().splitlines()]
    phases = [entry["phase"] for entry in history]
    assert phases == ["critics"] * 2 + ["cloning"] + ["stage_one"] * 2 + ["stage_two"] * 2
    assert {"loss/watch_time", "explained_variance/like", "holdout_loss"} <= set(history[0])
    assert {"clipped_share/like", "ess_share/like", "entropy/like", "gain/like"} <= set(history[3])
    assert {"tau", "ess_share", "capped_share", "kl/like", "entropy"} <= set(history[-1])
    assert result.metrics["stage_two"]["stopped"] == "iteration limit"
    assert read_bundle(result.bundle).manifest["metrics"] == result.metrics


def test_a_stage_gets_the_policy_of_its_own_requests(tmp_path):
    """As if they were the whole log; and the policy for all stages is the one that there is without it."""
    whole = staged_samples.write(tmp_path / "samples", 600, {"coarse": 1, "fine": 1})
    coarse = tmp_path / "coarse"
    coarse.mkdir()
    toy.vocabulary().save(coarse / VOCABULARY_FILE)
    pq.write_table(pq.read_table(whole / "part-0.parquet").filter(pc.field("stage") == "coarse"),
                   coarse / "part-0.parquet")
    config = TrainFusionConfig(samples=str(whole), output=str(tmp_path / "out"), learning=QUICK,
                               policy_per_stage=("coarse",))
    result, plain = main(config), train(whole, tmp_path / "plain", QUICK)
    alone = read_bundle(train(coarse, tmp_path / "alone", QUICK).bundle)
    bundle, without = read_bundle(result.bundle), read_bundle(plain.bundle)
    for name, tensors in (("policy", without.tensors["policy"]), ("policy-coarse", alone.tensors["policy"])):
        assert all(torch.equal(tensor, bundle.tensors[name][key]) for key, tensor in tensors.items())
    own = bundle.manifest.pop("stages")["coarse"]
    assert own["metrics"] == alone.manifest["metrics"] == result.stages["coarse"]
    assert {**bundle.manifest, "files": 0} == {**without.manifest, "files": 0}
    again = main(config)
    assert (again.bundle, again.resumed_at) == (result.bundle, 7)


def three_behaviours(directory: Path) -> Path:
    """The bandit with another short-term behaviour, which wants what `like` does not."""
    columns, of = toy.bandit(600), toy.vocabulary()
    like = columns["feedback"][:, 1:]
    behaviours = (*of.behaviours, of.behaviours[1].replace(name="share"))
    return toy.write(directory, {**columns, "feedback": np.hstack([columns["feedback"], -like])},
                     of.replace(behaviours=behaviours), files=1)


def test_stage_one_is_judged_until_its_floors_are_kept(tmp_path):
    """Once a round, also where the process dies within one; stage two is that of the multipliers in the end."""
    samples, asked = three_behaviours(tmp_path / "samples"), []

    def judge(bundle: Path, floors: Mapping[str, float]) -> Judgement:
        """`like` is below its floor until its λ is 4."""
        asked.append(read_bundle(bundle, "fusion"))
        if len(asked) == 2:
            raise KeyboardInterrupt
        multiplier = asked[-1].manifest["training"]["multipliers"]["like"]
        assert floors == {"like": 0.0, "share": 0.0}
        below = ("like",) if multiplier < 4 else ()
        return Judgement({"like": (multiplier - 4, -9.0, 9.0)}, below, True, f"λ is {multiplier:g}")

    test = StageOneTest(judge="simulated", rounds=3)
    config = TrainFusionConfig(samples=str(samples), output=str(tmp_path / "out"), learning=QUICK, stage_one_test=test)
    with pytest.raises(KeyboardInterrupt):
        training.train_fusion(config, judge)
    result = training.train_fusion(config, judge)
    assert result.resumed_at == 5, "critics, cloning and stage one"
    assert [each.manifest["training"]["multipliers"]["like"] for each in asked] == [1, 2, 2, 4]
    assert [each.manifest["network"]["shares"][0] for each in asked] == pytest.approx([1 / 2, 2 / 3, 2 / 3, 4 / 5])
    said = read_bundle(result.bundle).manifest
    assert said["training"]["multipliers"] == {"like": 4.0, "share": 1.0}
    assert [each["below"] for each in said["metrics"]["stage_one_test"]["rounds"]] == [["like"], ["like"], []]
    assert (result.metrics["stage_one_test"]["iterations"], result.metrics["stage_one_test"]["stopped"]) == (
        3, "λ is 4")
    plain = train(samples, tmp_path / "plain", QUICK.replace(multipliers={"like": 4.0}))
    for name, tensor in read_bundle(plain.bundle).tensors["policy"].items():
        assert torch.equal(tensor, read_bundle(result.bundle).tensors["policy"][name])
    again = training.train_fusion(config, judge)
    assert (len(asked), again.bundle) == (4, result.bundle)


def test_bad_input_ends_before_anything_is_written(samples, tmp_path):
    with pytest.raises(InvalidFieldError, match=r"multipliers.share: got 1.0; allowed: short-term behaviours"):
        train(samples, tmp_path / "out", QUICK.replace(multipliers={"share": 1.0}))
    with pytest.raises(InvalidFieldError, match=r"samples: got .*; allowed: a directory that exists"):
        train(tmp_path / "none", tmp_path / "out", QUICK)
