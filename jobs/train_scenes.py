"""Exposures → the multi-scene scorer: its bundle, and its metrics on the last day.

The days before the test day train, in the rows of the scorer's share; the others are the simulator's response model's.
Hyper-parameters are chosen with `--test-day` on an earlier day, never on the last one.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recfuse.bundle import read_bundle
from recfuse.cluster import cluster
from recfuse.console import start, table
from recfuse.errors import require
from recfuse.evaluation.ranking import POOLED, RankingMetrics
from recfuse.evaluation.scorer import Details, TestDay, details, to_json
from recfuse.logs.exposures import Exposures
from recfuse.scenes.dataset import TimeSplit, fingerprint, scene_rows, split_by_time
from recfuse.scenes.features import Feature
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.model import ModelConfig
from recfuse.scenes.registry import KUAIRAND, Registry
from recfuse.scenes.trainer import TrainingConfig, prepare, train
from recfuse.simulation.simulate import load_exposures

METRICS = "metrics.json"


@dataclass(frozen=True, kw_only=True)
class TrainScenesConfig:
    """Config of the job.

    Attributes:
        logs: a directory with KuaiRand files, or `embedded` for the generator.
        output: gets `bundles/`, `metrics.json` and the checkpoints.
        registry: scenes and their tasks.
        features: declared features; empty takes every column of users and items.
        model: sizes.
        training: how it is fitted.
        test_day: yyyymmdd to test on, with training on the days before it; absent, the last day.
        intervals: draws of the bootstrap over users, for intervals, figures before correction, and the experts' health;
            0 leaves them out.
        transfer: trains every scene alone too, for the verdict on negative transfer (needs `intervals`).
    """

    logs: str = "embedded"
    output: str = "runs/scenes"
    registry: Registry = KUAIRAND
    features: tuple[Feature, ...] = ()
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    test_day: int | None = None
    intervals: int = 0
    transfer: bool = False

    def __post_init__(self) -> None:
        require(self.intervals >= 0, "intervals", self.intervals, "an integer ≥ 0")
        require(not self.transfer or self.intervals > 0, "intervals", self.intervals, "an integer ≥ 1 with transfer")


@dataclass(frozen=True)
class TrainScenesResult:
    """Result of the job: where the bundle is, the metrics of the test day, and whether it was there already."""

    bundle: Path
    metrics: tuple[RankingMetrics, ...]
    test_day: int
    reused: bool
    details: dict[str, Any] = field(default_factory=dict)

    def pooled(self, task: str) -> RankingMetrics:
        """The metrics of a task over all scenes."""
        return next(one for one in self.metrics if one.scene == POOLED and one.task == task)


def main(config: TrainScenesConfig) -> TrainScenesResult:
    """Runs the job on the current Ray, or on a local one; a finished run of the same config and data is reused."""
    exposures = scene_rows(load_exposures(config.logs), config.registry)
    split, data = split_by_time(exposures, test_day=config.test_day), fingerprint(exposures)
    run = hashlib.sha256(repr((config, data)).encode()).hexdigest()[:16]
    result = finished(config, run, split) or fit(config, exposures, split, data, run)
    show(result)
    show_details(result)
    return result


def fit(config: TrainScenesConfig, exposures: Exposures, split: TimeSplit, data: str, run: str) -> TrainScenesResult:
    """Trains, evaluates and writes bundle and metrics."""
    output = Path(config.output)
    problem = prepare(exposures, split.training, config.registry, config.model, config.training, config.features)
    with cluster():
        scorer = train(problem, output / "checkpoints", run)
        day = TestDay.of(exposures, split, scorer.history_length)
        metrics = day.metrics(day.predict(scorer))
        more = detail(config, scorer, day, exposures, split, output / "checkpoints" / "alone" / run)
    clean = to_json(metrics)
    bundle = scorer.export(output / "bundles", training=dataclasses.asdict(config.training), data_fingerprint=data,
                           metrics={"test_day": split.test_day, "by_pair": clean})
    (output / METRICS).write_text(json.dumps(
        {"run": run, "bundle": bundle.name, "by_pair": clean, "details": more}, indent=1))
    return TrainScenesResult(bundle, tuple(metrics), split.test_day, reused=False, details=more)


def detail(config: TrainScenesConfig, scorer: SceneScorer, day: TestDay, exposures: Exposures, split: TimeSplit,
           checkpoints: Path) -> dict[str, Any]:
    """The details that the config asks for, as JSON values."""
    def alone(scene: str) -> SceneScorer:
        registry = config.registry.only(scene)
        inside = exposures.rows["scene"].to_numpy(zero_copy_only=False) == scene
        problem = prepare(exposures.filter(inside), split.training[inside], registry, config.model,
                          dataclasses.replace(config.training, workers=0), config.features)
        return train(problem, checkpoints, scene)

    if not config.intervals:
        return {}
    values: Details = details(scorer, day, config.intervals, alone if config.transfer else None)
    result: dict[str, Any] = to_json(values)
    return result


def finished(config: TrainScenesConfig, run: str, split: TimeSplit) -> TrainScenesResult | None:
    """The result of an earlier run of the same config on the same data, if its bundle still verifies."""
    path = Path(config.output) / METRICS
    saved = json.loads(path.read_text()) if path.is_file() else {}
    bundle = Path(config.output) / "bundles" / saved.get("bundle", "")
    if saved.get("run") != run or not bundle.is_dir():
        return None
    read_bundle(bundle, "scenes")
    metrics = [from_json(row) for row in saved["by_pair"]]
    return TrainScenesResult(bundle, tuple(metrics), split.test_day, reused=True, details=saved.get("details", {}))


def from_json(row: dict[str, Any]) -> RankingMetrics:
    """Metrics from their JSON values."""
    values: dict[str, Any] = {name: float("nan") if value is None else value for name, value in row.items()}
    return RankingMetrics(**values)


def show(result: TrainScenesResult) -> None:
    """Prints the table."""
    note = ", reused" if result.reused else ""
    table(f"Scorer on {result.test_day} ({result.bundle}{note})",
          ["scene", "task", "rows", "positives", "AUC", "GAUC", "log loss", "ECE", "pred/obs"],
          [(m.scene, m.task, f"{m.rows:,}", f"{m.positives:,}", f"{m.auc:.4f}", f"{m.gauc:.4f}", f"{m.log_loss:.4f}",
            f"{m.calibration_error:.4f}", f"{m.predicted_over_observed:.3f}") for m in result.metrics])


def show_details(result: TrainScenesResult) -> None:
    """Prints what the config asked for beyond the metrics."""
    found = result.details
    if not found:
        return
    names = ("auc", "gauc", "log_loss", "calibration_error", "predicted_over_observed")
    table("95% intervals over users", ["scene", "task", "AUC", "GAUC", "log loss", "ECE", "pred/obs"],
          [(m.scene, m.task, *(span(one[name]) for name in names))
           for m, one in zip(result.metrics, found["intervals"], strict=True)])
    table("Before the correction by −log p", ["scene", "task", "AUC", "GAUC", "log loss", "ECE", "pred/obs"],
          [(raw["scene"], raw["task"], *(number(raw[name]) for name in names)) for raw in found["uncorrected"]])
    if found["transfer"]:
        table("Joint training against that scene alone, AUC", ["scene", "task", "positives", "joint", "alone",
                                                               "difference", "95%", "verdict"],
              [(one["scene"], one["task"], one["positives"], number(one["joint"]), number(one["alone"]),
                number(one["difference"]["difference"]), span([one["difference"]["low"], one["difference"]["high"]]),
                one["verdict"]) for one in found["transfer"]])
    if found["experts"]:
        table("Gates: mean share of each expert", ["scene", "task", "shares", "entropy / log K"],
              [(one["scene"], one["task"], " ".join(f"{share:.2f}" for share in one["use"]), number(one["entropy"]))
               for one in found["experts"]])


def number(value: float | None) -> str:
    """Four digits, or a dash."""
    return "–" if value is None else f"{value:.4f}"


def span(bounds: list[float | None]) -> str:
    """An interval in three digits."""
    return "–" if None in bounds else f"{bounds[0]:.3f}..{bounds[1]:.3f}"


if __name__ == "__main__":
    main(start(TrainScenesConfig, description=__doc__))
