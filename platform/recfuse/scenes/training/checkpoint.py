"""Where a training that was cut off goes on: one file, replaced after every epoch."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from recfuse.scenes.model import SceneModel
from recfuse.scenes.training.step import Stepper
from recfuse.scenes.training.stop import Best

CHECKPOINT = "checkpoint.pt"


def save_checkpoint(directory: Path, model: SceneModel, stepper: Stepper, best: Best, epoch: int, ended: bool) -> None:
    """Writes what `load_checkpoint` reads, under a temporary name first."""
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{CHECKPOINT}.{os.getpid()}"
    torch.save({"model": model.state_dict(), "best": best.parameters, "best_loss": best.loss, "waited": best.waited,
                "epoch": epoch, "ended": ended, "taken": stepper.taken,
                "optimizers": [optimizer.state_dict() for optimizer in stepper.optimizers]}, temporary)
    temporary.replace(directory / CHECKPOINT)


def load_checkpoint(directory: Path, model: SceneModel, stepper: Stepper, best: Best) -> tuple[int, bool]:
    """Epochs that an earlier attempt completed, and whether it had ended; (0, False) without a checkpoint."""
    path = directory / CHECKPOINT
    if not path.is_file():
        return 0, False
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(stepper.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    best.parameters, best.loss, best.waited = state["best"], state["best_loss"], state["waited"]
    stepper.taken = state["taken"]
    return int(state["epoch"]), bool(state["ended"])
