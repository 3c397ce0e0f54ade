"""A fusion policy → its off-policy estimate on held-out logs, and one HTML report of all that the jobs measured."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

from recfuse.report.config import ReportConfig
from recfuse.runtime.console import start, table

if TYPE_CHECKING:
    from recfuse.report.run import ReportResult


def main(config: ReportConfig) -> ReportResult:
    """Runs the job. It needs Ray only for `--streaming`."""
    from recfuse.report.run import evaluate_and_report
    from recfuse.runtime.cluster import cluster

    with cluster() if config.streaming else nullcontext():
        result = evaluate_and_report(config)
    show(config, result)
    result.evaluation.require(config)
    return result


def show(config: ReportConfig, result: ReportResult) -> None:
    """Prints the closing tables and the path of the report."""
    evaluation = result.evaluation
    for block in evaluation.blocks:
        logged = ", ".join(f"{name} {value:.5g}" for name, value in zip(block.behaviours, block.logged, strict=True))
        title = f"{block.question.name}: {block.question.words}"
        if block.answers:
            table(f"{title}\nChange from the log (per {block.question.unit}: {logged}), {config.level:.0%} interval",
                  ["estimator", "window", "ESS", *block.behaviours], block.rows())
        else:
            print(f"\n{title}")
        for line in block.lines():
            print(line)
    for line in evaluation.lines():
        print(line)
    print(f"report: {result.page}")


def command() -> None:
    """Runs the job as the command line says."""
    main(start(ReportConfig, description=__doc__))


if __name__ == "__main__":
    command()
