"""The evaluation of a run and the report on all of it: what the job `evaluate` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from recfuse.evaluation.estimator import Estimator
from recfuse.evaluation.estimators import ESTIMATORS
from recfuse.evaluation.evaluate import EvaluateResult, evaluate
from recfuse.evaluation.files import METRICS, read_json, write_whole
from recfuse.report.collect import collect
from recfuse.report.config import ReportConfig
from recfuse.report.data import ReportData
from recfuse.report.page import write_report
from recfuse.report.truths import keep_truths
from recfuse.report.verdict import verdict

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
    data = collect(config)
    keep_verdict(config.output, data)
    return ReportResult(result, write_report(Path(config.output) / REPORT, data))


def keep_verdict(output: str, data: ReportData) -> None:
    """Writes the verdict beside the estimates, into `metrics.json`, for who lists runs."""
    path, found = Path(output) / METRICS, verdict(data)
    if found is not None:
        write_whole(path, json.dumps({**(read_json(path) or {}), "verdict": asdict(found)}, indent=1))
