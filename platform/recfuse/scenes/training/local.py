"""Training in the calling process, from memory, without Ray."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from recfuse.runtime.console import Progress
from recfuse.runtime.devices import chosen
from recfuse.scenes.model import SceneModel
from recfuse.scenes.training.checkpoint import load_checkpoint, save_checkpoint
from recfuse.scenes.training.problem import Problem, untrained
from recfuse.scenes.training.step import Stepper
from recfuse.scenes.training.stop import Best
from recfuse.scenes.training.tensors import tensors

logger = logging.getLogger("recfuse")


def fit_in_process(problem: Problem, directory: Path) -> SceneModel:
    """Trains in the calling process, from memory; goes on from the checkpoint in the directory, if there is one."""
    config = problem.training
    device = chosen("training.device", config.device, torch.cuda.device_count())
    logger.info("train_scenes: trains in this process, on %s", device)
    model = untrained(problem).to(device)
    stepper, best = Stepper(model, problem, problem.steps), Best(problem)
    progress = Progress("scenes", config.epochs * len(problem.rows), "samples")
    epoch, ended = load_checkpoint(directory, model, stepper, best)
    while epoch < config.epochs and not ended:
        order = np.random.default_rng([config.seed, epoch]).permutation(len(problem.rows))
        for start in range(0, len(order), config.batch_size):
            batch = problem.rows.take(order[start: start + config.batch_size])
            progress.advance(len(batch), f"loss {stepper.step(*tensors(batch)):.4f}")
        epoch, ended = epoch + 1, best.update(model)
        save_checkpoint(directory, model, stepper, best, epoch, ended)
    progress.finish()
    model.load_state_dict(best.parameters)
    return model.cpu()
