"""Processes of a training run are killed: the job at random moments, and single learner workers. `-m chaos`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import samples as toy
import yaml
from processes import MARK, left_behind, marked_environment

from recfuse.bundle import newest_bundle
from recfuse.fusion.config import NetworkConfig
from recfuse.learning.algorithm import FusionAlgorithm
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.config import TrainFusionConfig
from recfuse.learning.settings import StoppingRule
from recfuse.learning.training import CHECKPOINT, HISTORY, train_fusion

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]
SETTINGS = TwoStageConfig(
    network=NetworkConfig(hidden=(64, 64)), critics=StoppingRule(iterations=6), cloning=StoppingRule(iterations=3),
    stage_one=StoppingRule(iterations=6), stage_two=StoppingRule(iterations=6), minibatch_size=64)


@pytest.fixture(scope="module")
def samples(tmp_path_factory) -> Path:
    return toy.write(tmp_path_factory.mktemp("samples"), toy.bandit(40_000), files=2)


@pytest.fixture(scope="module")
def whole(local_ray, samples, tmp_path_factory):
    """What a run that nobody disturbs ends with."""
    output = tmp_path_factory.mktemp("whole")
    return train_fusion(TrainFusionConfig(samples=str(samples), output=str(output), learning=SETTINGS))


def test_a_job_that_is_killed_again_and_again_ends_as_if_it_had_not_been(whole, samples, tmp_path, say):
    """SIGKILL at random moments of random passes; the bundle's name is the hash of its content, and the history is the
    same to the last digit."""
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump({"samples": str(samples), "output": str(tmp_path / "out"),
                                      "learning": SETTINGS.to_dict()}))
    mark, environment = marked_environment()
    rng, kills = np.random.default_rng(5), []
    checkpoint = tmp_path / "out" / CHECKPOINT / "learner.safetensors"
    for number in range(8):
        with (tmp_path / f"log-{number}.txt").open("w") as log:
            job = subprocess.Popen([sys.executable, "jobs/train_fusion.py", "--config", str(config)], cwd=ROOT,
                                   env=environment, stdout=log, stderr=subprocess.STDOUT)
            before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
            passes = int(rng.integers(1, 7))
            while job.poll() is None and passes and number < 4:
                time.sleep(0.02)
                if checkpoint.exists() and checkpoint.stat().st_mtime_ns != before:
                    before, passes = checkpoint.stat().st_mtime_ns, passes - 1
            if number < 4 and job.poll() is None:
                time.sleep(rng.uniform(0.0, 0.8))
                job.send_signal(signal.SIGKILL)
                kills.append(number)
            code = job.wait()
        left = left_behind(mark)
        say(f"run {number}: exit code {code}, {len(left)} processes of Ray outlived it by 20 s")
        end(mark)
        if code == 0:
            break
        assert code == -signal.SIGKILL, (tmp_path / f"log-{number}.txt").read_text()
    assert len(kills) >= 3
    say(f"killed {len(kills)} times")
    assert newest_bundle(tmp_path / "out", "fusion").name == whole.bundle.name
    assert (tmp_path / "out" / HISTORY).read_text() == whole.history.read_text()


def end(mark: str) -> None:
    """Ends what the killed job had started and Ray left running, found by the mark that it inherited."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)
        except OSError:  # it ended while we looked
            continue


@pytest.mark.parametrize("workers", [1, 2])
def test_a_learner_worker_that_is_killed_does_not_end_the_job(local_ray, samples, tmp_path, monkeypatch, workers, say):
    """To the last bit: with the same number of workers, sums are rounded alike."""
    settings = SETTINGS.replace(minibatch_size=1024, num_learners=workers)
    whole = train_fusion(TrainFusionConfig(samples=str(samples), output=str(tmp_path / "whole"), learning=settings))
    train, killed = FusionAlgorithm.training_step, []

    def killing(algorithm: FusionAlgorithm) -> None:
        if len(algorithm.progress.history) in (4, 12) and len(killed) < 2:
            found = algorithm.learner_group.foreach_learner(lambda learner: os.getpid())
            pid = [result.get() for result in found][-1]
            assert pid != os.getpid()
            killed.append(pid)
            threading.Timer(0.05, os.kill, (pid, signal.SIGKILL)).start()
        train(algorithm)

    monkeypatch.setattr(FusionAlgorithm, "training_step", killing)
    begin = time.monotonic()
    result = train_fusion(TrainFusionConfig(
        samples=str(samples), output=str(tmp_path / "killed"), learning=settings))
    assert len(killed) == 2
    say(f"{workers} workers, 2 kills: {time.monotonic() - begin:.0f} s")
    assert result.bundle.name == whole.bundle.name
