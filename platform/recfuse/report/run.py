"""The evaluation of a run and the report on all of it: what the job `evaluate` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recfuse.evaluation.estimator import Estimator
from recfuse.evaluation.estimators import ESTIMATORS
from recfuse.evaluation.evaluate import EvaluateResult, evaluate
from recfuse.report.collect import collect
from recfuse.report.config import ReportConfig
from recfuse.report.page import write_report
from recfuse.report.truths import keep_truths

REPORT = "report.html"


@dataclass(frozen=True)
class ReportResult:
    """Attributes:
        evaluation: what was estimated of the policy.
        page: the HTML file.
    """

    evaluation: EvaluateResult
    page: Path


def evaluate_and_report(config: ReportConfig, estimators: Sequence[Estimator] = ESTIMATORS) -> ReportResult:
    """Estimates the policy's value, collects what the other jobs measured, and writes the page.

    Args:
        estimators: as of `recfuse.evaluation.evaluate.evaluate`.

    Raises:
        InvalidFieldError: bad logs, held-out rows that the policy was trained on, or a file that is no JSON.
    """
    result = evaluate(config, estimators)
    keep_truths(config)
    return ReportResult(result, write_report(Path(config.output) / REPORT, collect(config)))
