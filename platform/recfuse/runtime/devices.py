"""On which device a network computes: one field of every config that has one, and one answer. No Ray and no torch."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from recfuse.config import require

Device = Literal["auto", "cpu", "cuda"]


def device() -> Any:
    """The field `device`."""
    return Field("cpu", description=(
        "The network computes on this device; `auto` takes a GPU where every worker has one. Default sizes gain "
        "nothing by it."))


def chosen(field: str, asked: Device, gpus: float, workers: int = 1) -> Literal["cpu", "cuda"]:
    """The device that is taken.

    Args:
        field: of the config, for errors.
        gpus: how many there are; workers: how many want one.

    Raises:
        InvalidFieldError: `cuda`, and there are too few GPUs.
    """
    enough = gpus >= max(workers, 1)
    require(asked != "cuda" or enough, field, asked, f"cpu or auto, with {gpus:g} GPUs for {max(workers, 1)}")
    return "cuda" if enough and asked != "cpu" else "cpu"
