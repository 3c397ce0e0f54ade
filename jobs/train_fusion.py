"""Samples → fusion policy, by two-stage constrained actor-critic or another algorithm, exported as a bundle."""

from __future__ import annotations

from recfuse.learning.options import choose_algorithm
from recfuse.learning.training import TrainFusionConfig, TrainFusionResult, train_fusion, verdicts
from recfuse.runtime.cluster import cluster, resuming
from recfuse.runtime.console import start, table


def main(config: TrainFusionConfig) -> TrainFusionResult:
    """Runs the job on the current Ray, or on a local one."""
    with cluster():
        result = resuming(lambda: train_fusion(config))
    table(f"Fusion policy in {result.bundle}", ["phase", "passes", "last loss", "stopped by"], [
        (phase, numbers["iterations"], f"{numbers['loss']:.4f}", numbers["stopped"])
        for phase, numbers in result.metrics.items()
    ])
    for line in verdicts(result.metrics):
        print(line)
    return result


if __name__ == "__main__":
    main(start(TrainFusionConfig, description=__doc__, choose=choose_algorithm))
