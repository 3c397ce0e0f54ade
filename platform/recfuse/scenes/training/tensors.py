"""Encoded rows as the network's tensors, and what it predicts of them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from recfuse.scenes.dataset import EncodedRows
from recfuse.scenes.model import SceneModel


def tensors(batch: EncodedRows) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """ids, numbers, history, scene, labels."""
    return (torch.from_numpy(batch.ids()), torch.from_numpy(batch.numbers()), torch.from_numpy(batch.history),
            torch.from_numpy(batch.scene), torch.from_numpy(batch.labels).float())


def predict_logits(model: SceneModel, rows: EncodedRows, batch: int = 8192) -> Tensor:
    """float32 [N, T] on the CPU, without gradients."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        inputs = (tensors(rows.take(np.arange(start, min(start + batch, len(rows)))))[:4]
                  for start in range(0, len(rows), batch))
        parts = [model(*moved(part, device_of(model))).cpu() for part in inputs]
    model.train(was_training)
    return torch.cat(parts) if parts else torch.zeros(0, len(model.pair_scene))


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


def moved(parts: Iterable[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    """The tensors on the device."""
    return tuple(part.to(device, non_blocking=True) for part in parts)
