"""What the jobs of a run left in their directories, as the report shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recfuse.config import require
from recfuse.evaluation.files import METRICS, read_json, read_json_lines
from recfuse.report.config import ReportConfig
from recfuse.report.data import ReportData

_ACCOUNT, _HISTORY = "account.json", "history.jsonl"


def collect(config: ReportConfig) -> ReportData:
    """The metrics of every job's output; those of the evaluation itself lie where the report will.

    Raises:
        InvalidFieldError: a file is no JSON, or that of the latencies has none.
    """
    simulation = read_json(Path(config.simulation) / METRICS) or {}
    evaluation = read_json(Path(config.output) / METRICS) or {}
    off_policy = evaluation.get("off_policy")
    subject = {"policy": evaluation["policy"]} if "policy" in evaluation else {}
    subject["held-out logs"] = config.holdout
    if "account_words" in evaluation:
        subject["held-out rows"] = evaluation["account_words"]
    if evaluation.get("notes"):
        subject["left out"] = "; ".join(evaluation["notes"])
    if off_policy and off_policy.get("separation"):
        subject["kept apart"] = off_policy["separation"]
    tested = read_json(Path(config.ab_test) / METRICS)
    if tested and all("reach" in arm for arm in tested["arms"]):
        still = [arm["name"] for arm in tested["arms"] if not arm["reach"]]
        subject["A/B policies"] = "all explore, as when serving" + (f", but {', '.join(still)}" if still else "")
    if "exposures" in simulation:
        subject["exposures"] = simulation["exposures"]
    return ReportData(
        account=(read_json(Path(config.samples) / _ACCOUNT) or {}).get("account"),
        history=read_json_lines(Path(config.fusion) / _HISTORY),
        ab_test=tested, off_policy=off_policy,
        scorer=(read_json(Path(config.scenes) / METRICS) or {}).get("by_pair", ()),
        response=simulation.get("response"), calibration=simulation.get("calibration", ()),
        serving=_latencies(Path(config.serving)), weights=evaluation.get("weights"),
        segments=evaluation.get("segments", ()), floors=evaluation.get("floors", {}), subject=subject)


def _latencies(path: Path) -> Any:
    """Times of requests as a JSON file has them; None where there is no file."""
    content = read_json(path)
    times = content.get("latency_ms", []) if isinstance(content, dict) else None
    good = isinstance(times, list) and all(type(time) in (int, float) for time in times)
    require(content is None or good, "serving", str(path), "a JSON object whose latency_ms is a list of numbers")
    return content
