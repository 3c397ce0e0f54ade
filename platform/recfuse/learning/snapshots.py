"""Parameters and optimizer state as named arrays, and back; nothing is pickled."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

_MODULE = "module."
Optimizers = Mapping[str, torch.optim.Optimizer]


def take_snapshot(module: nn.Module, optimizers: Optimizers) -> dict[str, NDArray[Any]]:
    """Everything that a training goes on from, by name."""
    tensors = {f"{_MODULE}{name}": tensor for name, tensor in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{name}.{index}.{key}": tensor for key, tensor in state.items()}
    return {name: tensor.detach().cpu().numpy().copy() for name, tensor in tensors.items()}


def restore_snapshot(
    snapshot: Mapping[str, NDArray[Any]], module: nn.Module, optimizers: Optimizers, device: torch.device
) -> None:
    """Puts what `take_snapshot` gave back into networks and optimizers of the same kinds."""
    tensors = {name: torch.from_numpy(array.copy()).to(device) for name, array in snapshot.items()}
    module.load_state_dict({key.removeprefix(_MODULE): tensor for key, tensor in tensors.items()
                            if key.startswith(_MODULE)})
    for name, optimizer in optimizers.items():
        prefix = f"optimizer.{name}."
        states: dict[int, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            if key.startswith(prefix):
                index, field = key.removeprefix(prefix).split(".", 1)
                states.setdefault(int(index), {})[field] = tensor
        optimizer.load_state_dict({**optimizer.state_dict(), "state": states})
