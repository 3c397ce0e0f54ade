"""A training run from samples to a bundle: progress lines, checkpoints, resume, history, export."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import ray.exceptions
from pydantic import Field

from recfuse.config import Config, InvalidFieldError
from recfuse.fusion.inference import export_policy
from recfuse.learning import registry
from recfuse.learning.algorithm import FusionAlgorithm, FusionAlgorithmConfig
from recfuse.learning.samples import SampleSet
from recfuse.learning.settings import LearningSettings
from recfuse.runtime import ray_compat
from recfuse.runtime.console import Progress

logger = logging.getLogger("recfuse")
CHECKPOINT, HISTORY, METRICS = "checkpoint", "history.jsonl", "metrics.json"
# How often a run survives the loss of its learners.
RESTARTS = 3


class TrainFusionConfig(Config):
    """From samples to a policy."""

    samples: str = Field("runs/samples", description="This directory holds samples, as the ingest job writes them.")
    output: str = Field(
        "runs/fusion", description="This directory gets the bundle, the metrics, the history and the checkpoint.")
    learning: LearningSettings = Field(
        default_factory=registry.settings, description="Algorithm, networks, rates and stopping rules are these.")


@dataclass(frozen=True)
class TrainFusionResult:
    """Attributes:
        bundle: directory of the exported policy.
        metrics: per phase: the numbers of its last iteration, how many there were, and why it stopped.
        history: JSON lines, one per iteration: phase, iteration, metrics.
        resumed_at: iterations that an interrupted run had done before.
    """

    bundle: Path
    metrics: dict[str, Any]
    history: Path
    resumed_at: int


def train_fusion(config: TrainFusionConfig) -> TrainFusionResult:
    """Trains on the current Ray and exports the policy. A rerun goes on after the last complete iteration; so does the
    run itself, where learner workers die.

    Raises:
        InvalidFieldError: bad samples, or settings that do not fit them.
    """
    samples = SampleSet.open(config.samples, config.learning.network.action_range)
    config = config.replace(learning=config.learning.resolved(samples.has_density))
    logger.info("train_fusion: %s samples, state %d, %d fusion parameters, behaviours %s", f"{samples.rows:,}",
                samples.vocabulary.state_size, samples.vocabulary.action_size,
                ", ".join(samples.vocabulary.behaviour_names))
    output = Path(config.output)
    output.mkdir(parents=True, exist_ok=True)
    with ray_compat.quiet(), _Run(config, samples) as run:
        run.finish()
        algorithm = run.algorithm
        metrics, history = summary(algorithm), algorithm.progress.history
        bundle = export_policy(output, algorithm.policy(), samples.vocabulary, training=config.learning.to_dict(),
                               data_fingerprint=samples.fingerprint, metrics=metrics)
    _write(output / HISTORY, "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in history))
    _write(output / METRICS, json.dumps(metrics, indent=1))
    logger.info("train_fusion: wrote %s", bundle)
    return TrainFusionResult(bundle, metrics, output / HISTORY, run.resumed_at)


class _Run:
    """Learners that go on from the checkpoint, and are started anew where they are lost.

    Attributes:
        algorithm: as it stands.
        resumed_at: iterations that were done before.
    """

    def __init__(self, config: TrainFusionConfig, samples: SampleSet) -> None:
        self._config, self._samples, self._checkpoint = config, samples, Path(config.output) / CHECKPOINT
        self._setup = FusionAlgorithmConfig().learn(config.learning, samples)
        self.algorithm = self._setup.build_algo()

    def __enter__(self) -> Self:
        try:
            self.resumed_at = _resume(self.algorithm, self._checkpoint, self._config, self._samples)
        except BaseException:
            self.algorithm.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.algorithm.stop()

    def finish(self) -> None:
        """Runs what is left of every phase."""
        for attempt in itertools.count(1):
            try:
                _run(self.algorithm, self._checkpoint)
                return
            except ray.exceptions.RayError as error:
                if attempt > RESTARTS or isinstance(error, InvalidFieldError):
                    raise
                logger.warning("train_fusion: a learner was lost (%s); starting the learners anew from the last "
                               "complete iteration", type(error).__name__)
                with contextlib.suppress(ray.exceptions.RayError):
                    self.algorithm.stop()
                self.algorithm = self._setup.copy(copy_frozen=False).build_algo()
                _resume(self.algorithm, self._checkpoint, self._config, self._samples)


def summary(algorithm: FusionAlgorithm) -> dict[str, Any]:
    """Per phase: the numbers of its last iteration, how many there were, and why it stopped."""
    phases: dict[str, Any] = {}
    for entry in algorithm.progress.history:
        numbers = {name: value for name, value in entry.items() if name not in ("phase", "iteration")}
        phases[entry["phase"]] = {**numbers, "iterations": entry["iteration"] + 1,
                                  "stopped": algorithm.progress.stopped.get(entry["phase"], "")}
    return phases


def _resume(algorithm: FusionAlgorithm, checkpoint: Path, config: TrainFusionConfig, samples: SampleSet) -> int:
    """Loads the checkpoint of the same run, if there is one; a checkpoint of another run is left to be overwritten."""
    run = checkpoint / "run"
    if run.exists() and run.read_text() == _identity(config, samples) and algorithm.has_checkpoint(checkpoint):
        algorithm.load_checkpoint(str(checkpoint))
        logger.info("train_fusion: resuming after %d iterations", len(algorithm.progress.history))
        return len(algorithm.progress.history)
    checkpoint.mkdir(parents=True, exist_ok=True)
    algorithm.discard_checkpoint(checkpoint)
    _write(run, _identity(config, samples))
    return 0


def _identity(config: TrainFusionConfig, samples: SampleSet) -> str:
    """Names a run by all that its result depends on; how many workers compute it is not part of that."""
    settings = config.learning.resolved(samples.has_density).to_dict()
    for name in ("num_learners", "gpus_per_learner", "threads", "memory_mib"):
        del settings[name]
    text = json.dumps([settings, samples.fingerprint], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _run(algorithm: FusionAlgorithm, checkpoint: Path) -> None:
    while not algorithm.finished:
        phase = algorithm.phase
        limit = phase.rule(algorithm.settings).iterations
        progress = Progress(f"train_fusion {phase.name}", limit, "passes")
        progress.advance(len(algorithm.progress.losses))
        while not algorithm.finished and algorithm.phase.name == phase.name:
            algorithm.train()
            algorithm.save_checkpoint(str(checkpoint))
            progress.advance(1, describe(algorithm.progress.history[-1]))
        progress.finish(f"{describe(algorithm.progress.history[-1])}; {algorithm.progress.stopped[phase.name]}")


def describe(entry: dict[str, Any]) -> str:
    """One line of an iteration: the loss, and per kind of metric its value, or the range over the behaviours."""
    parts = [f"loss {entry['loss']:.4f}"]
    for kind in ("holdout_loss", "explained_variance", "gain", "entropy", "kl", "clipped_share", "ess_share", "tau",
                 "multiplier"):
        values = sorted(value for name, value in entry.items() if name.partition("/")[0] == kind)
        if values:
            text = f"{values[0]:.3g}" if len(values) == 1 else f"{values[0]:.3g}..{values[-1]:.3g}"
            parts.append(f"{kind.replace('_', ' ')} {text}")
    return ", ".join(parts)


def _write(path: Path, text: str) -> None:
    temporary = path.with_suffix(path.suffix + ".writing")
    temporary.write_text(text)
    os.replace(temporary, path)
