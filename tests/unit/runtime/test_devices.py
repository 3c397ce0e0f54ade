"""One way of taking a GPU, for learner, scorer and serving."""

from __future__ import annotations

import pytest

from recfuse.config import InvalidFieldError
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.runtime.devices import chosen
from recfuse.scenes.training.config import TrainingConfig
from recfuse.serving.config import ServingConfig


@pytest.mark.parametrize(("asked", "gpus", "workers", "device"), [
    ("cpu", 8, 1, "cpu"), ("auto", 0, 1, "cpu"), ("auto", 1, 0, "cuda"), ("auto", 1, 2, "cpu"), ("cuda", 2, 2, "cuda"),
])
def test_a_gpu_for_every_worker_or_none(asked, gpus, workers, device):
    assert chosen("device", asked, gpus, workers) == device


def test_a_gpu_that_is_not_there_is_refused_in_a_line():
    with pytest.raises(InvalidFieldError, match=r"^training\.device: got 'cuda'; allowed: cpu or auto, with 1 GPUs"):
        chosen("training.device", "cuda", 1, 2)


def test_nobody_takes_a_gpu_unasked():
    assert TwoStageConfig().device == TrainingConfig().device == ServingConfig().device == "cpu"


def test_several_learners_share_no_gpu():
    assert TwoStageConfig(device="cuda", gpus_per_learner=0.5).gpus == 0.5
    assert TwoStageConfig(num_learners=2, gpus_per_learner=0.5).gpus == 0.0, "on the CPU it says nothing"
    with pytest.raises(InvalidFieldError, match=r"^gpus_per_learner: got 0\.5; allowed: 1 with several learners"):
        TwoStageConfig(num_learners=2, device="cuda", gpus_per_learner=0.5)
