"""The list of runs, and the report of one of them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recfuse.behaviours import Vocabulary
from recfuse.bundle.pointer import Pointer, read_pointer, write_pointer
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.serving.console.runs import differences, find_bundle, find_runs, read_page
from recfuse.serving.formats import RefusedError

SERVED = {"algorithm": "two_stage", "seed": 0, "replay": {"floor": 0.0, "floors": {}}}


@pytest.fixture
def train(tmp_path: Path, vocabulary: Vocabulary) -> Callable[..., Path]:
    """Writes a run, and a report on it where a verdict is given."""
    def write(name: str, mu: float, training: dict[str, Any], verdict: dict[str, Any] | None = None) -> Path:
        bundle = export_policy(tmp_path / "runs" / name / "fusion", FixedGaussian([mu, mu], .1), vocabulary,
                               training=training, data_fingerprint=f"data-{mu}", metrics={})
        os.utime(bundle / "manifest.json", (mu, mu))
        if verdict is not None:
            report = tmp_path / "runs" / name / "report"
            report.mkdir()
            (report / "report.html").write_text(f"<p>{name}</p>")
            (report / "metrics.json").write_text(json.dumps({"policy": bundle.name, "verdict": verdict}))
        return bundle
    return write


def test_runs_have_their_data_their_difference_and_their_verdict(
    train: Callable[..., Path], models: Path, tmp_path: Path
) -> None:
    first = train("first", 1.0, SERVED)
    second = train("deep/second", 2.0, {**SERVED, "seed": 7, "replay": {"floor": -.01, "floors": {}}},
                   {"words": "Worth a canary.", "tone": "good", "checks": []})
    train("third", 3.0, {"algorithm": "iql"})
    samples = tmp_path / "runs" / "first" / "samples"
    samples.mkdir()
    (samples / "account.json").write_text(json.dumps({"account": {"kept": 9, "rows_in": 10}}))
    (tmp_path / "runs" / "broken").mkdir()
    (tmp_path / "runs" / "broken" / "manifest.json").write_text("{")
    first.rename(models / first.name)
    write_pointer(models, Pointer(fusion=first.name))
    copy = train("first", 1.0, SERVED)
    runs = find_runs(str(tmp_path / "runs"), str(models))
    assert [run.bundle.split("/fusion/")[0] for run in runs] == ["third", "deep/second", "first"]
    third, learned, served = runs
    assert (served.state, served.data, served.fingerprint) == ("served", "9 of 10 rows", "data-1.0")
    assert served.differences == ()
    assert served.version == copy.name
    assert learned.differences == (("replay.floor", "0", "-0.01"), ("seed", "0", "7"))
    assert (learned.version, learned.report) == (second.name, "deep/second/report/report.html")
    assert learned.verdict is not None
    assert learned.verdict["words"] == "Worth a canary."
    assert (third.algorithm, third.differences, third.verdict) == ("iql", None, None)


def test_bundles_of_a_models_directory_are_no_runs(train: Callable[..., Path], models: Path, tmp_path: Path) -> None:
    bundle = train("models", 1.0, SERVED)
    write_pointer(bundle.parent, Pointer(fusion=bundle.name))
    assert find_runs(str(tmp_path / "runs"), str(models)) == []
    assert find_runs(str(tmp_path / "nowhere"), str(models)) == []
    assert read_pointer(models).fusion is not None


@pytest.mark.parametrize(("served", "own", "expected"), [
    ({}, SERVED, None), (SERVED, SERVED, ()), (SERVED, {**SERVED, "algorithm": "iql"}, None),
    (SERVED, {key: value for key, value in SERVED.items() if key != "seed"}, (("seed", "0", "–"),)),
    ({"explore": {"weights": "a:1"}}, {"explore": {"weights": "a:2"}}, (("explore.weights", "a:1", "a:2"),))])
def test_differences(served: Any, own: Any, expected: Any) -> None:
    assert differences(served, own) == expected


def test_only_reports_and_bundles_of_runs_are_read(train: Callable[..., Path], tmp_path: Path) -> None:
    bundle = train("first", 1.0, SERVED, {"words": "", "tone": "open", "checks": []})
    root = str(tmp_path / "runs")
    assert read_page(root, "first/report/report.html") == "<p>first</p>"
    (tmp_path / "report.html").write_text("secret")
    for report in ("../report.html", "first/report/metrics.json", str(tmp_path / "report.html"), "", "first/report"):
        with pytest.raises(RefusedError, match="report: got"):
            read_page(root, report)
    assert find_bundle(root, f"first/fusion/{bundle.name}").name == bundle.name
    for name in ("../models", "", "first/report", "nowhere"):
        with pytest.raises(RefusedError, match="bundle: got"):
            find_bundle(root, name)
