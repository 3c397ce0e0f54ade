"""Trains the multi-scene scorer and measures it on a later day: what the job `train_scenes` runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from recfuse.bundle import newest_bundle, read_bundle
from recfuse.config import require
from recfuse.logs.exposures import RESPONSE_SHARE, Exposures
from recfuse.logs.orders import Orphan
from recfuse.runtime.cluster import cluster
from recfuse.scenes.dataset import TimeSplit, fingerprint, scene_rows, split_by_time
from recfuse.scenes.evaluation import TestDay, details, to_json
from recfuse.scenes.features import Feature
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.model import ModelConfig
from recfuse.scenes.registry import Registry
from recfuse.scenes.trainer import Problem, TrainingConfig, prepare, train
from recfuse.stats.ranking import POOLED, NumberMetrics, RankingMetrics

METRICS = "metrics.json"
_FIGURES = ("auc", "gauc", "log_loss", "calibration_error", "predicted_over_observed")


@dataclass(frozen=True, kw_only=True)
class TrainScenesConfig:
    """Config of the job.

    Attributes:
        logs: a directory of exposures, for `native` also a URI; `embedded` or `shop` for a generator.
        layout: of the directory's files.
        orphan: what to do with an order without its click: leave its row out, or add the click.
        output: gets `bundles/`, `metrics.json` and the checkpoints.
        registry: scenes and their tasks; absent, those that the source is known for.
        features: declared features; empty takes every column of users and items.
        model: sizes.
        training: how it is fitted.
        start_from: a scenes bundle, or a directory that holds one, to go on from: its features stay as they are, a
            scene with `like` starts as a copy of that scene, a scene that the registry lacks is retired.
        share: of the rows that train, those with `row_share` ≥ this; the others are the simulator's response model's.
        test_day: yyyymmdd to test on, with training on the days before it; absent, the last day.
        intervals: draws of the bootstrap over users, for intervals, figures before correction, and the experts' health;
            0 leaves them out.
        transfer: trains every scene alone too, for the verdict on negative transfer (needs `intervals`).
    """

    logs: str = "embedded"
    layout: Literal["kuairand", "native", "aliexpress", "ali_ccp"] = "kuairand"
    orphan: Orphan = "quarantine"
    output: str = "runs/scenes"
    registry: Registry | None = None
    features: tuple[Feature, ...] = ()
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    start_from: str = ""
    share: float = RESPONSE_SHARE
    test_day: int | None = None
    intervals: int = 200
    transfer: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.share < 1, "share", self.share, "a number in [0, 1)")
        require(self.intervals >= 0, "intervals", self.intervals, "an integer ≥ 0")
        require(not self.transfer or self.intervals > 0, "intervals", self.intervals, "an integer ≥ 1 with transfer")


@dataclass(frozen=True)
class TrainScenesResult:
    """Result of the job: where the bundle is, the metrics of the test day, and whether it was there already.

    Attributes:
        metrics: of every (scene, task) with 0/1 labels, then pooled; numbers: of those that are numbers.
        details: JSON values of recfuse.scenes.evaluation.Details; empty where they were not asked for.
    """

    bundle: Path
    metrics: tuple[RankingMetrics, ...]
    test_day: int
    reused: bool
    details: dict[str, Any] = field(default_factory=dict)
    numbers: tuple[NumberMetrics, ...] = ()

    def pooled(self, task: str) -> RankingMetrics:
        """The metrics of a task over all scenes."""
        return next(one for one in self.metrics if one.scene == POOLED and one.task == task)

    def tables(self) -> list[tuple[str, list[str], list[tuple[str, ...]]]]:
        """(title, columns, lines as text): the metrics, and what the config asked for beyond them."""
        note = ", reused" if self.reused else ""
        names = ["AUC", "GAUC", "log loss", "ECE", "pred/obs"]
        found = [(f"Scorer on {self.test_day} ({self.bundle}{note})", ["scene", "task", "rows", "positives", *names],
                  [(m.scene, m.task, f"{m.rows:,}", f"{m.positives:,}",
                    *(_number(to_json(getattr(m, name))) for name in _FIGURES)) for m in self.metrics])]
        if self.numbers:
            found.append(("Predicted means of numbers",
                          ["scene", "task", "rows", "mean", "pred/obs", "MAE", "RMSE", "rank correlation"],
                          [(m.scene, m.task, f"{m.rows:,}", *(_number(to_json(value)) for value in (
                              m.mean, m.predicted_over_observed, m.mean_absolute_error, m.root_mean_squared_error,
                              m.rank_correlation))) for m in self.numbers]))
        return found + (self._more_tables(names) if self.details else [])

    def _more_tables(self, names: list[str]) -> list[tuple[str, list[str], list[tuple[str, ...]]]]:
        found = self.details
        tables = [
            ("95% intervals over users", ["scene", "task", *names],
             [(m.scene, m.task, *(_span(one[name]) for name in _FIGURES))
              for m, one in zip(self.metrics, found["intervals"], strict=True)]),
            ("Before the correction by −log p, with 95% intervals over users", ["scene", "task", *names],
             [(raw["scene"], raw["task"], *(f"{_number(raw[name])} {_span(one[name])}" for name in _FIGURES))
              for raw, one in zip(found["uncorrected"], found["uncorrected_intervals"], strict=True)])]
        if found["transfer"]:
            tables.append((
                "Joint training against that scene alone, AUC",
                ["scene", "task", "positives", "joint", "alone", "difference", "95%", "verdict"],
                [(one["scene"], one["task"], f"{one['positives']:,}", _number(one["joint"]), _number(one["alone"]),
                  _number(one["difference"]["difference"]),
                  _span([one["difference"]["low"], one["difference"]["high"]]), one["verdict"])
                 for one in found["transfer"]]))
        if found["experts"]:
            tables.append(("Gates: mean share of each expert", ["scene", "task", "shares", "entropy / log K"],
                           [(one["scene"], one["task"], " ".join(f"{share:.2f}" for share in one["use"]),
                             _number(one["entropy"])) for one in found["experts"]]))
        return tables


def train_scenes(config: TrainScenesConfig, exposures: Exposures, registry: Registry,
                 features: tuple[Feature, ...] = ()) -> TrainScenesResult:
    """Trains, evaluates and writes; a finished run of the same config and data is reused.

    Runs on the current Ray, or on a local one; on none where `training.workers` is 0.

    Args:
        registry, features: of the source, where the config declares none.
    """
    registry = config.registry or registry
    config = dataclasses.replace(config, features=config.features or features)
    exposures = scene_rows(exposures, registry)
    split, data = split_by_time(exposures, config.share, config.test_day), fingerprint(exposures)
    start = _start(config)
    run = hashlib.sha256(repr((config, registry, data, start and start.version)).encode()).hexdigest()[:16]
    return _finished(config, run, split) or _Run(config, exposures, registry, split, start, run).finish(data)


def _start(config: TrainScenesConfig) -> SceneScorer | None:
    if not config.start_from:
        return None
    return SceneScorer.from_bundle(read_bundle(newest_bundle(config.start_from, "scenes"), "scenes"))


@dataclass(frozen=True)
class _Run:
    """One run of the job on its data."""

    config: TrainScenesConfig
    exposures: Exposures
    registry: Registry
    split: TimeSplit
    start: SceneScorer | None
    name: str

    def finish(self, data: str) -> TrainScenesResult:
        """Trains, evaluates and writes bundle and metrics."""
        config, output, split = self.config, Path(self.config.output), self.split
        problem = prepare(self.exposures, split.training, self.registry, config.model, config.training,
                          config.features, self.start)
        if config.training.workers:
            with cluster():
                scorer = train(problem, output / "checkpoints", self.name)
        else:
            scorer = train(problem, output / "checkpoints", self.name)
        day = TestDay.of(self.exposures, split, scorer.history_length)
        metrics, more = day.metrics(day.predict(scorer)), self._details(scorer, day)
        numbers = day.number_metrics(scorer)
        clean = to_json(metrics)
        bundle = scorer.export(output / "bundles", training=dataclasses.asdict(config.training), data_fingerprint=data,
                               metrics={"test_day": split.test_day, "by_pair": clean})
        (output / METRICS).write_text(json.dumps(
            {"run": self.name, "bundle": bundle.name, "by_pair": clean, "numbers": to_json(numbers), "details": more},
            indent=1))
        return TrainScenesResult(bundle, tuple(metrics), split.test_day, False, more, tuple(numbers))

    def _details(self, scorer: SceneScorer, day: TestDay) -> dict[str, Any]:
        """The details that the config asks for, as JSON values."""
        config = self.config
        if not config.intervals:
            return {}
        result: dict[str, Any] = to_json(details(scorer, day, config.intervals,
                                                 self._alone if config.transfer else None))
        return result

    def _alone(self, scene: str) -> SceneScorer:
        """The scorer of one scene, trained on its own rows."""
        config = self.config
        inside = self.exposures.rows["scene"].to_numpy(zero_copy_only=False) == scene
        problem: Problem = prepare(
            self.exposures.filter(inside), self.split.training[inside], self.registry.only(scene), config.model,
            dataclasses.replace(config.training, workers=0), config.features)
        return train(problem, Path(config.output) / "checkpoints" / "alone" / self.name, scene)


def _finished(config: TrainScenesConfig, run: str, split: TimeSplit) -> TrainScenesResult | None:
    """The result of an earlier run of the same config on the same data, if its bundle still verifies."""
    path = Path(config.output) / METRICS
    saved = json.loads(path.read_text()) if path.is_file() else {}
    bundle = Path(config.output) / "bundles" / saved.get("bundle", "")
    if saved.get("run") != run or not bundle.is_dir():
        return None
    read_bundle(bundle, "scenes")
    metrics = tuple(RankingMetrics(**_values(row)) for row in saved["by_pair"])
    numbers = tuple(NumberMetrics(**_values(row)) for row in saved.get("numbers", []))
    return TrainScenesResult(bundle, metrics, split.test_day, True, saved.get("details", {}), numbers)


def _values(row: dict[str, Any]) -> dict[str, Any]:
    return {name: float("nan") if value is None else value for name, value in row.items()}


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def _span(bounds: list[float | None]) -> str:
    return "–" if None in bounds else f"{bounds[0]:.3f}..{bounds[1]:.3f}"
