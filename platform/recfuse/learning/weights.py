"""Weights of samples: exponentials of what speaks for each of them, tempered to keep an effective sample size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from recfuse.fusion import losses
from recfuse.learning.metrics import ESS_SHARE, Metric, Metrics

TAU, CAPPED_SHARE = Metric("tau"), Metric("capped_share")


class WeightConfig(Protocol):
    """The fields that decide how weights are tempered (maths 1.6)."""

    @property
    def ess_floor(self) -> float: ...

    @property
    def weight_cap(self) -> float | None: ...


@dataclass(frozen=True)
class SampleWeights:
    """Attributes:
        weight: of every sample, [n]; floor and normalisation hold over all of them.
        metrics: how far they were tempered.
    """

    weight: Tensor
    metrics: Metrics


def weights_of(exponent: Tensor, config: WeightConfig) -> SampleWeights:
    """exp(τ e) of exponents [n], with mean 1 (maths 1.6)."""
    weights = losses.target_weights(exponent, config.ess_floor, True, config.weight_cap)
    return SampleWeights(weights.weight, {TAU: weights.tau, ESS_SHARE: weights.ess_share,
                                          CAPPED_SHARE: weights.capped_share})
