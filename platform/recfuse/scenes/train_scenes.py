"""Trains the multi-scene scorer and measures it on a later day: what the job `train_scenes` runs."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recfuse.bundle import newest_bundle, read_bundle
from recfuse.config import require
from recfuse.logs.exposures import Exposures
from recfuse.runtime.cluster import cluster
from recfuse.runtime.outputs import Output, claim
from recfuse.scenes.config import SOURCES, TrainScenesConfig
from recfuse.scenes.dataset import TimeSplit, fingerprint, in_registry, scene_rows, split_by_time
from recfuse.scenes.evaluation import TestDay, details, to_json
from recfuse.scenes.features import Feature
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.registry import Registry
from recfuse.scenes.result import TrainScenesResult
from recfuse.scenes.training.fit import on_device, train
from recfuse.scenes.training.problem import Problem, prepare
from recfuse.stats.ranking import NumberMetrics, RankingMetrics
from recfuse.stats.slopes import read_slopes

logger = logging.getLogger("recfuse")
METRICS, QUARANTINE = "metrics.json", "quarantine/part-00000.parquet"


def train_scenes(config: TrainScenesConfig, exposures: Exposures, registry: Registry,
                 features: tuple[Feature, ...] = ()) -> TrainScenesResult:
    """Trains, evaluates and writes; a finished run of the same config and data is reused.

    Runs on the current Ray, or on a local one; on none where `training.workers` is 0.

    Args:
        registry, features: those of the layout, where the config declares none.
    """
    with claim(config.output, "train_scenes") as output:
        output.require_replaceable(QUARANTINE)
        result = _train(config, exposures, config.registry or registry, features)
        _keep_quarantine(output, exposures)
    return result


def _train(config: TrainScenesConfig, exposures: Exposures, registry: Registry,
           features: tuple[Feature, ...]) -> TrainScenesResult:
    start = _start(config)
    config = config.replace(features=config.features or features, share=config.training_share)
    given, exposures = exposures, scene_rows(exposures, registry)
    split, data = split_by_time(exposures, config.training_share, config.test_day), fingerprint(exposures)
    run = hashlib.sha256(repr((config, registry, data, start and start.version)).encode()).hexdigest()[:16]
    return _finished(config, run, split) or _Run(config, exposures, registry, split, start, run).finish(data, given)


def _start(config: TrainScenesConfig) -> SceneScorer | None:
    """The scorer that training goes on from; what the config says beside it is named."""
    if not config.start_from:
        return None
    start = SceneScorer.from_bundle(read_bundle(newest_bundle(config.start_from, "scenes"), "scenes"))
    asked, taken = config.model, start.model_config
    ignored = [f"model.{name}" for name in sorted(asked.model_fields_set)
               if getattr(asked, name) != getattr(taken, name)]
    features = tuple(sorted(config.features, key=lambda feature: SOURCES.index(feature.source)))
    if features and features != tuple(entry.feature for entry in start.encoder.fitted):
        ignored.append("features")
    if ignored:
        logger.warning("start_from: %s keeps its features and sizes; ignored: %s", start.version, ", ".join(ignored))
    return start


def _keep_quarantine(output: Output, exposures: Exposures) -> None:
    """The quarantined rows with their reasons, as ingest writes them; none of an earlier run stay."""
    if not exposures.quarantine.num_rows:
        output.remove(QUARANTINE)
        return
    content = pa.BufferOutputStream()
    pq.write_table(exposures.quarantine, content)
    output.replace(QUARANTINE, content.getvalue().to_pybytes())
    logger.info("quarantined exposures and their reasons: %s/%s", output.location.uri, QUARANTINE)


@dataclass(frozen=True)
class _Run:
    """One run of the job on its data."""

    config: TrainScenesConfig
    exposures: Exposures
    registry: Registry
    split: TimeSplit
    start: SceneScorer | None
    name: str

    def finish(self, data: str, given: Exposures) -> TrainScenesResult:
        """Trains, evaluates and writes bundle and metrics.

        Args:
            given: the exposures with the rows of every scene.
        """
        config, output, split = self.config, Path(self.config.output), self.split
        problem = prepare(self.exposures, split.training, self.registry, config.model, config.training,
                          config.features, self.start)
        with cluster() if config.training.workers else contextlib.nullcontext():
            training = on_device(config.training)
            scorer = train(dataclasses.replace(problem, training=training), output / "checkpoints", self.name,
                           config.wait_limit)
        # Scenes without a task that the training rows support have no predictions to judge.
        inside = in_registry(self.exposures, scorer.registry)
        day = TestDay.of_rows(self.exposures, split.test & inside, scorer.history_length)
        metrics, extra = day.metrics(day.predict(scorer)), self._details(scorer, day)
        numbers = day.number_metrics(scorer)
        slopes = TestDay.of_rows(self.exposures, split.unseen & inside, scorer.history_length).slopes(scorer)
        clean = {"by_pair": to_json(metrics), "numbers": to_json(numbers), "slopes": to_json(slopes)}
        rows = self._rows(given, inside, len(problem.rows))
        bundle = scorer.export(
            output / "bundles", training={**training.to_dict(), "share": config.share}, data_fingerprint=data,
            metrics={"test_day": split.test_day, "by_pair": clean["by_pair"]}, slopes=clean["slopes"])
        (output / METRICS).write_text(json.dumps(
            {"run": self.name, "bundle": bundle.name, **clean, "details": extra, "rows": rows}, indent=1))
        return TrainScenesResult(bundle, tuple(metrics), split.test_day, False, extra, tuple(numbers), slopes, rows)

    def _rows(self, given: Exposures, inside: NDArray[np.bool_], trained: int) -> dict[str, int]:
        """How many rows train, and why the others do not; they add up to the rows that came in."""
        exposures, split = self.exposures, self.split
        before = (exposures.column("day") < split.test_day)
        rows = {
            "train": trained, "quarantined": sum(given.account.quarantined.values()),
            "of a scene that the registry lacks": given.rows.num_rows - exposures.rows.num_rows,
            "of a scene that is left out": int((before & ~inside).sum()),
            f"of the test day {split.test_day}": int(split.test.sum()),
            "after the test day": int((~before & ~split.test).sum()),
            f"beyond the share of {self.config.training_share:g} (for a simulator)":
                int((before & inside & ~split.training).sum())}
        rows["held out for early stopping"] = int((split.training & inside).sum()) - trained
        if not self.config.training.epochs:
            rows["left alone by no epoch"], rows["train"] = rows["train"], 0
        return {reason: count for reason, count in rows.items() if count or reason == "train"}

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
            config.training.replace(workers=0), config.features)
        return train(problem, Path(config.output) / "checkpoints" / "alone" / self.name, scene)


def _finished(config: TrainScenesConfig, run: str, split: TimeSplit) -> TrainScenesResult | None:
    """The result of an earlier run of the same config on the same data, if its bundle still verifies.

    Raises:
        InvalidFieldError: the file of the metrics is something else, which is not to be written over.
    """
    path = Path(config.output) / METRICS
    require(not path.parent.is_file(), "output", config.output, "a directory")
    try:
        saved: Any = json.loads(path.read_bytes()) if path.exists() else {"run": None}
    except (OSError, ValueError):
        saved = None
    require(isinstance(saved, dict) and "run" in saved, "output", str(path),
            "no file of this name, or one that this job wrote")
    bundle = Path(config.output) / "bundles" / saved.get("bundle", "")
    if saved.get("run") != run or "slopes" not in saved or not bundle.is_dir():
        return None
    read_bundle(bundle, "scenes")
    metrics = tuple(RankingMetrics(**_values(row)) for row in saved["by_pair"])
    numbers = tuple(NumberMetrics(**_values(row)) for row in saved.get("numbers", []))
    return TrainScenesResult(bundle, metrics, split.test_day, True, saved.get("details", {}), numbers,
                             read_slopes(saved["slopes"]), saved.get("rows", {}))


def _values(row: dict[str, Any]) -> dict[str, Any]:
    return {name: float("nan") if value is None else value for name, value in row.items()}
