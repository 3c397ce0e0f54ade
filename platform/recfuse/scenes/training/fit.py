"""A problem becomes a scorer: in this process, or with Ray Train."""

from __future__ import annotations

from pathlib import Path

import torch

from recfuse.runtime.devices import chosen
from recfuse.runtime.limits import WAIT_LIMIT_SECONDS
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.training.config import TrainingConfig
from recfuse.scenes.training.local import fit_in_process
from recfuse.scenes.training.problem import Problem
from recfuse.scenes.training.shift import recent_shift
from recfuse.scenes.training.workers import fit_on_ray, gpus_of_nodes


def on_device(training: TrainingConfig) -> TrainingConfig:
    """The config with `device` decided: by the GPUs that this process sees, or that nodes have for workers of theirs.

    Raises:
        InvalidFieldError: it asks for a GPU that is not there.
    """
    gpus = gpus_of_nodes() if training.workers else float(torch.cuda.device_count())
    return training.replace(device=chosen("training.device", training.device, gpus, training.workers))


def train(problem: Problem, storage: str | Path, name: str = "scenes",
          wait_limit: float = WAIT_LIMIT_SECONDS) -> SceneScorer:
    """Trains, with Ray Train unless `workers` is 0.

    Args:
        storage: where checkpoints go; a training of the same name that was cut off goes on from its last epoch.
        wait_limit: seconds that workers wait for room or for each other at most.
    """
    if problem.start and not problem.training.epochs:
        return problem.start
    if problem.training.workers == 0:
        model = fit_in_process(problem, Path(storage).resolve() / name)
    else:
        model = fit_on_ray(problem, Path(storage).resolve(), name, wait_limit)
    return SceneScorer(model, problem.registry, problem.encoder, problem.positive_weight,
                       shift=recent_shift(model, problem))
