"""Exposures → the multi-scene scorer: its bundle, and its metrics on the last day.

The days before the last train, in the rows of the scorer's share; the others are the simulator's response model's.
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
from recfuse.evaluation.ranking import POOLED, RankingMetrics, evaluate_scenes
from recfuse.logs.exposures import Exposures
from recfuse.logs.kuairand import read_exposures
from recfuse.scenes.dataset import TimeSplit, fingerprint, scene_rows, split_by_time
from recfuse.scenes.features import Feature
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.model import ModelConfig
from recfuse.scenes.registry import KUAIRAND, Registry
from recfuse.scenes.trainer import TrainingConfig, prepare, train

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
    """

    logs: str = "embedded"
    output: str = "runs/scenes"
    registry: Registry = KUAIRAND
    features: tuple[Feature, ...] = ()
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)


@dataclass(frozen=True)
class TrainScenesResult:
    """Result of the job: where the bundle is, the metrics of the test day, and whether it was there already."""

    bundle: Path
    metrics: tuple[RankingMetrics, ...]
    test_day: int
    reused: bool

    def pooled(self, task: str) -> RankingMetrics:
        """The metrics of a task over all scenes."""
        return next(one for one in self.metrics if one.scene == POOLED and one.task == task)


def main(config: TrainScenesConfig) -> TrainScenesResult:
    """Runs the job on the current Ray, or on a local one; a finished run of the same config and data is reused."""
    exposures = scene_rows(read_logs(config.logs), config.registry)
    split, data = split_by_time(exposures), fingerprint(exposures)
    run = hashlib.sha256(repr((config, data)).encode()).hexdigest()[:16]
    result = finished(config, run, split) or fit(config, exposures, split, data, run)
    show(result)
    return result


def read_logs(logs: str) -> Exposures:
    """The exposures of a directory, or of the embedded generator."""
    if logs == "embedded":
        from recfuse.simulation.exposures import generate

        return generate()
    return read_exposures(logs)


def fit(config: TrainScenesConfig, exposures: Exposures, split: TimeSplit, data: str, run: str) -> TrainScenesResult:
    """Trains, evaluates and writes bundle and metrics."""
    output = Path(config.output)
    problem = prepare(exposures, split.training, config.registry, config.model, config.training, config.features)
    with cluster():
        scorer = train(problem, output / "checkpoints", run)
    metrics = evaluate(scorer, exposures, split)
    clean = [to_json(one) for one in metrics]
    bundle = scorer.export(output / "bundles", training=dataclasses.asdict(config.training), data_fingerprint=data,
                           metrics={"test_day": split.test_day, "by_pair": clean})
    (output / METRICS).write_text(json.dumps({"run": run, "bundle": bundle.name, "by_pair": clean}, indent=1))
    return TrainScenesResult(bundle, tuple(metrics), split.test_day, reused=False)


def finished(config: TrainScenesConfig, run: str, split: TimeSplit) -> TrainScenesResult | None:
    """The result of an earlier run of the same config on the same data, if its bundle still verifies."""
    path = Path(config.output) / METRICS
    saved = json.loads(path.read_text()) if path.is_file() else {}
    bundle = Path(config.output) / "bundles" / saved.get("bundle", "")
    if saved.get("run") != run or not bundle.is_dir():
        return None
    read_bundle(bundle, "scenes")
    metrics = [from_json(row) for row in saved["by_pair"]]
    return TrainScenesResult(bundle, tuple(metrics), split.test_day, reused=True)


def to_json(metrics: RankingMetrics) -> dict[str, Any]:
    """Metrics as JSON values, which have no NaN."""
    return {name: None if value != value else value for name, value in dataclasses.asdict(metrics).items()}


def from_json(row: dict[str, Any]) -> RankingMetrics:
    """The inverse of `to_json`."""
    values: dict[str, Any] = {name: float("nan") if value is None else value for name, value in row.items()}
    return RankingMetrics(**values)


def evaluate(scorer: SceneScorer, exposures: Exposures, split: TimeSplit) -> list[RankingMetrics]:
    """Metrics of the test day."""
    predictions = scorer.score_exposures(exposures)
    test = exposures.filter(split.test)
    return evaluate_scenes(
        test.rows["scene"].to_numpy(zero_copy_only=False), test.column("user_id"),
        {task: test.column(task) for task in predictions},
        {task: values[split.test] for task, values in predictions.items()})


def show(result: TrainScenesResult) -> None:
    """Prints the table."""
    note = ", reused" if result.reused else ""
    table(f"Scorer on {result.test_day} ({result.bundle}{note})",
          ["scene", "task", "rows", "positives", "AUC", "GAUC", "log loss", "ECE", "pred/obs"],
          [(m.scene, m.task, f"{m.rows:,}", f"{m.positives:,}", f"{m.auc:.4f}", f"{m.gauc:.4f}", f"{m.log_loss:.4f}",
            f"{m.calibration_error:.4f}", f"{m.predicted_over_observed:.3f}") for m in result.metrics])


if __name__ == "__main__":
    main(start(TrainScenesConfig, description=__doc__))
