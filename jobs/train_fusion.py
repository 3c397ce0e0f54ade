"""Samples → fusion policy, by two-stage constrained actor-critic or another algorithm, exported as a bundle."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from recfuse.learning.config import TrainFusionConfig
from recfuse.learning.options import choose_algorithm
from recfuse.runtime.console import start, table

if TYPE_CHECKING:
    from recfuse.learning.training import TrainFusionResult

_COLUMNS = ["phase", "passes", "last loss", "stopped by"]


def main(config: TrainFusionConfig) -> TrainFusionResult:
    """Runs the job on the current Ray, or on a local one."""
    from recfuse.learning.training import train_fusion, verdicts
    from recfuse.runtime.cluster import cluster, resuming

    judge = None
    if config.stage_one_test.judge != "none":
        from recfuse.jobs._stage_one import judge_of

        judge = judge_of(config.stage_one_test)
    with cluster():
        result = resuming(lambda: train_fusion(config, judge))
    table(f"Fusion policy in {result.bundle}", _COLUMNS, _rows(result.metrics))
    for line in verdicts(result.metrics):
        print(line)
    for stage, metrics in result.stages.items():
        table(f"Its policy of the stage {stage}", _COLUMNS, _rows(metrics))
        for line in verdicts(metrics):
            print(line)
    return result


def _rows(metrics: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, int, str, str]]:
    return [(phase, numbers["iterations"], f"{numbers['loss']:.4f}", numbers["stopped"])
            for phase, numbers in metrics.items()]


def command() -> None:
    """Runs the job as the command line says."""
    main(start(TrainFusionConfig, description=__doc__, choose=choose_algorithm))


if __name__ == "__main__":
    command()
