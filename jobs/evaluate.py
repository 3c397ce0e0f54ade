"""A fusion policy → its off-policy estimate on held-out logs, and one HTML report of all that the jobs measured."""

from __future__ import annotations

from contextlib import nullcontext

from recfuse.report.config import ReportConfig
from recfuse.report.run import ReportResult, evaluate_and_report
from recfuse.runtime.cluster import cluster
from recfuse.runtime.console import start, table


def main(config: ReportConfig) -> ReportResult:
    """Runs the job. It needs Ray only for `--streaming`."""
    with cluster() if config.streaming else nullcontext():
        result = evaluate_and_report(config)
    show(config, result)
    result.evaluation.require(config)
    return result


def show(config: ReportConfig, result: ReportResult) -> None:
    """Prints the closing tables and the path of the report."""
    evaluation = result.evaluation
    first = evaluation.off_policy
    refused = f"; no estimate: {first.refused}" if first.refused else ""
    table(f"{first.estimator} on {first.requests:,} held-out requests{refused}",
          [f"behaviour, per {first.per}", "log", "estimate", f"{config.level:.0%} interval", "ESS"], evaluation.rows())
    table(f"Every estimator, difference to the log; ratios of a session go over {evaluation.horizon} of its requests",
          ["estimator", "per", "ESS", *evaluation.behaviours], evaluation.estimator_rows())
    for line in evaluation.lines():
        print(line)
    print(f"report: {result.page}")


if __name__ == "__main__":
    main(start(ReportConfig, description=__doc__))
