"""A fusion policy → its off-policy estimate on held-out logs, and one HTML report of all that the jobs measured."""

from __future__ import annotations

from pathlib import Path

from recfuse.evaluation.evaluate import EvaluateConfig, EvaluateResult, evaluate
from recfuse.runtime.cluster import cluster, read_parquet
from recfuse.runtime.console import start, table


def main(config: EvaluateConfig) -> EvaluateResult:
    """Runs the job. It needs Ray only for `--streaming`."""
    if config.streaming:
        with cluster():
            files = [str(file) for file in sorted(Path(config.holdout).glob("*.parquet"))]
            result = evaluate(config, read_parquet(files) if files else None)
    else:
        result = evaluate(config)
    refused = f"; no estimate: {result.off_policy.refused}" if result.off_policy.refused else ""
    table(f"NCIS on {result.off_policy.requests:,} held-out requests{refused}",
          ["behaviour, per request", "log", "estimate", f"{config.level:.0%} interval", "ESS"], result.rows())
    table(f"Every estimator, difference to the log; ratios of a session go over {result.horizon} of its requests",
          ["estimator", "per", "ESS", *result.behaviours], result.estimator_rows())
    if result.separation:
        print(result.separation)
    print(f"report: {result.report}")
    return result


if __name__ == "__main__":
    main(start(EvaluateConfig, description=__doc__))
