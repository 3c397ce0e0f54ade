"""What a user may say about fusion's networks and their advantages."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from recfuse.config import Config, from_mapping, require

Activation = Literal["relu", "tanh", "silu"]
# The budget takes seconds on one core, and about 150 MiB.
REGRESSION_COLUMNS = 768


class NetworkConfig(Config):
    """Sizes and bounds of the networks."""

    hidden: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (64, 64), description="Hidden layers of critics and policies alike have these widths; none makes them linear.")
    activation: Activation = Field("relu", description="This function stands between layers.")
    sigma: Literal["state", "free"] = Field(
        "state", description="σ depends on the state, or each policy learns one for all states (free).")
    sigma_min: float = Field(
        0.3, description="σ stays above this, in standard deviations of the logged actions.", gt=0, lt=1)
    sigma_max: float = Field(2.0, description="σ stays below this, in the same units.", gt=1)
    mean_range: float = Field(
        3.0, description="μ stays within so many standard deviations of the logged actions' mean; what lies further "
        "has no support in the log.", gt=0)
    trunk: Literal["separate", "shared"] = Field(
        "separate", description="Every behaviour has a network of its own, or those of a kind share all layers but the "
        "last.")
    action_range: tuple[float, float] | None = Field(
        None, description="Every fusion parameter is squashed into (low, high) by the tanh of a Gaussian, whose "
        "μ and σ are then bounded; nothing leaves actions unbounded.")
    arithmetic: Literal["float32", "bfloat16"] = Field(
        "float32", description="With bfloat16, products of large hidden layers on a CPU are rounded to eight bits "
        "while learning; parameters, last layers and what serves are not.")

    @model_validator(mode="after")
    def _is_range(self) -> Self:
        if self.action_range is not None:
            low, high = self.action_range
            require(low < high, "action_range", self.action_range, "numbers (low, high) with low < high, or nothing")
        return self

    @classmethod
    def from_dict(cls, mapping: Any) -> NetworkConfig:
        """Raises InvalidFieldError with the path of the first bad field."""
        return from_mapping(cls, mapping, "network")
