"""How the scorer is fitted."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recfuse.config import Config, require
from recfuse.runtime.devices import Device, device
from recfuse.scenes.registry import PositiveNumber


class TrainingConfig(Config):
    """How the scorer is fitted (maths 3.2 to 3.4)."""

    epochs: int = Field(1, ge=0, description=(
        "Training passes so often over the rows; 0 leaves the model that it starts from as it is."))
    batch_size: int = Field(512, ge=1, description="A step takes so many rows, over all workers.")
    # Adagrad's accumulator starts at zero: with any larger start, ids that come a few times in an epoch hardly move.
    embedding_rate: float = Field(0.05, gt=0, description="The embedding table is fitted by Adagrad at this rate.")
    dense_rate: float = Field(1e-3, gt=0, description="Everything else is fitted by Adam at this rate.")
    final_rate: float = Field(1.0, gt=0, le=1, description=(
        "Both rates fall linearly to this share of themselves; the last steps then average over more rows."))
    strategy: Literal["balanced", "sqrt", "uniform", "manual"] = Field("uniform", description=(
        "Positives and tasks are weighed by this strategy (maths 3.3)."))
    largest_positive_weight: float | None = Field(3.0, ge=1, description=(
        "The weight p_t of positives is at most this; without a value it is not bounded."))
    positive_weight: dict[str, PositiveNumber] = Field(default_factory=dict, description=(
        "With `manual`, these are the p_t by task (`order`) or by pair (`cart/order`, which goes before)."))
    task_weight: dict[str, PositiveNumber] = Field(default_factory=dict, description=(
        "With `manual`, these are the ω_t, by task or by pair likewise; a pair without one has 1."))
    minimum_positives: int = Field(20, ge=1, description=(
        "An optional pair with fewer positives in training is left out."))
    patience: int = Field(0, ge=0, description=(
        "Training stops after so many epochs without a lower loss on its last day, which then is held out; "
        "0 trains every epoch on every day."))
    calibration_days: int = Field(1, ge=0, description=(
        "The predictions are shifted to the rates of so many last training days; 0 shifts nothing."))
    seed: int = Field(0, ge=0, description="It decides the initial weights and the order of rows.")
    workers: int = Field(1, ge=0, description=(
        "Ray Train has so many workers; 0 trains in the calling process, without Ray."))
    device: Device = device()
    # More threads than there are idle cores are far slower than one: they spin.
    threads: int = Field(1, ge=1, description="Each worker's torch has so many threads; idle cores are the limit.")
    bfloat16: bool | None = Field(None, description=(
        "Matmuls compute in bfloat16; without a value, where the processor has instructions for it."))

    @model_validator(mode="after")
    def _weights_are_manual(self) -> TrainingConfig:
        given = bool(self.positive_weight or self.task_weight)
        require(given <= (self.strategy == "manual"), "strategy", self.strategy, "manual, with weights of one's own")
        return self
