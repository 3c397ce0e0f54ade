"""A training run from samples to a bundle: progress lines, checkpoints, resume, history, export."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from recfuse.behaviours import Vocabulary
from recfuse.bundle import newest_bundle, read_bundle
from recfuse.config import require
from recfuse.fusion.advantages import plan
from recfuse.fusion.inference import StagePolicy, export_policy
from recfuse.learning.algorithm import FusionAlgorithm, on_device
from recfuse.learning.config import TrainFusionConfig
from recfuse.learning.replay_settings import ReplayAlgorithmConfig
from recfuse.learning.resume import identity_of, write_atomically
from recfuse.learning.run import Run
from recfuse.learning.samples import SampleSet
from recfuse.learning.settings import LearningSettings
from recfuse.learning.stage_one_test import NAME, Judge, StageOneGate, check_test, identity_of_test
from recfuse.learning.stages import STAGES, check_settings, open_stages
from recfuse.runtime import ray_compat
from recfuse.runtime.outputs import Output, claim
from recfuse.runtime.waiting import watched
from recfuse.stats.ranking import POOLED
from recfuse.stats.slopes import read_slopes

logger = logging.getLogger("recfuse")
JOB = "train_fusion"
CHECKPOINT, HISTORY, METRICS = "checkpoint", "history.jsonl", "metrics.json"


@dataclass(frozen=True)
class TrainFusionResult:
    """Attributes:
        bundle: directory of the exported policy.
        metrics: per phase: the numbers of its last iteration, how many there were, and why it stopped; see `summary`.
        history: JSON lines, one per iteration: phase, iteration, metrics.
        resumed_at: iterations that an interrupted run had done before.
        stages: stage with a policy of its own → its metrics.
    """

    bundle: Path
    metrics: dict[str, Any]
    history: Path
    resumed_at: int
    stages: Mapping[str, dict[str, Any]] = field(default_factory=dict)


def train_fusion(config: TrainFusionConfig, judge: Judge | None = None) -> TrainFusionResult:
    """Trains on the current Ray and exports the policy. A rerun goes on after the last complete iteration, also with
    other numbers of passes; so does the run itself, where learner workers die.

    Args:
        judge: of stage one, where the config wants a test of it.

    Raises:
        StageOneError: the test goes on, or says no; nothing is exported.
        InvalidFieldError: bad samples, settings that do not fit them, or an output that another job has claimed or is
            writing to.
    """
    with claim(config.output, JOB) as output:
        output.require_unclaimed()
        return _train(config, output, judge)


def _train(config: TrainFusionConfig, claimed: Output, judge: Judge | None) -> TrainFusionResult:
    output = claimed.local_directory
    samples = SampleSet.open(config.samples, config.learning.network.action_range)
    check_settings(config, samples)
    stages = open_stages(config, samples, output / STAGES, claimed)
    claimed.join()
    with ray_compat.quiet():
        whole = _fit(config, samples, output, judge=judge)
        own = {stage: _fit(config, of_stage, output / STAGES / stage, stage) for stage, of_stage in stages.items()}
    bundle = export_policy(output, whole.served.policy, whole.served.vocabulary, training=whole.served.training,
                           data_fingerprint=whole.served.data_fingerprint, metrics=whole.served.metrics,
                           stages={stage: fitted.served for stage, fitted in own.items()})
    for stage, fitted in {"": whole, **own}.items():
        for line in verdicts(fitted.metrics):
            logger.info("%s: %s", _name(stage), line)
    logger.info("train_fusion: wrote %s", bundle)
    return TrainFusionResult(bundle, whole.metrics, output / HISTORY, whole.resumed_at,
                             {stage: fitted.metrics for stage, fitted in own.items()})


@dataclass(frozen=True)
class _Fitted:
    """A policy with all that a bundle says of it, and the iterations that were done before."""

    served: StagePolicy
    metrics: dict[str, Any]
    resumed_at: int


def _fit(config: TrainFusionConfig, samples: SampleSet, output: Path, stage: str = "", judge: Judge | None = None
         ) -> _Fitted:
    """Learns one policy from samples; checkpoint, history and metrics lie in the output."""
    config = config.replace(learning=on_device(_with_slopes(
        config.learning.resolved(samples.has_density, samples.has_candidates), config.scorer, samples.vocabulary)))
    identity = identity_of(JOB, config.learning.to_dict(), samples=samples.fingerprint,
                           **identity_of_test(config.stage_one_test))
    logger.info("%s: %s samples, state %d, %d fusion parameters, behaviours %s, on %s (run %s)", _name(stage),
                f"{samples.rows:,}", samples.vocabulary.state_size, samples.vocabulary.action_size,
                ", ".join(samples.vocabulary.behaviour_names), config.learning.device, identity.key)
    for line in _notes(config.learning, samples):
        logger.info("%s: %s", _name(stage), line)
    gate = _gate(config, samples, output, judge)
    with watched(_name(stage), config.wait_limit, config.learning.num_learners) as watch, \
            Run(config.learning, samples, output / CHECKPOINT, identity, watch, name=_name(stage), gate=gate) as run:
        run.finish()
        algorithm = run.algorithm
        metrics, history = summary(algorithm), algorithm.progress.history
        if gate is not None:
            metrics[NAME] = gate.summary()
        served = StagePolicy(algorithm.policy(), algorithm.vocabulary(), algorithm.settings.to_dict(),
                             samples.fingerprint, metrics)
    write_atomically(output / HISTORY, "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in history))
    write_atomically(output / METRICS, json.dumps(metrics, indent=1))
    return _Fitted(served, metrics, run.resumed_at)


def _gate(config: TrainFusionConfig, samples: SampleSet, output: Path, judge: Judge | None) -> StageOneGate | None:
    """What judges stage one; None where nobody does."""
    test = config.stage_one_test
    if test.judge == "none":
        return None
    require(judge is not None, "stage_one_test.judge", test.judge, "none where no judge is given")
    assert judge is not None
    check_test(test, config.learning, samples.vocabulary)
    return StageOneGate(test, judge, output / CHECKPOINT, output)


def _name(stage: str) -> str:
    """What lines of progress begin with."""
    return f"{JOB} {stage}" if stage else JOB


def verdicts(metrics: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What replay on other users decided, in a sentence; nothing where it was not asked."""
    gate = metrics.get("gate")
    if gate is None:
        return []
    published = "the vector is published" if gate["publishes_vector"] else "the policy is published"
    return [f"replay on other users finds the policy {gate['gain']:+.2%} over one vector for everybody, of what a "
            f"request brings, and above {gate['gain_lower']:+.2%} with the wanted confidence: {published}"]


def _with_slopes(settings: LearningSettings, scorer: str, vocabulary: Vocabulary) -> LearningSettings:
    """The settings with the slopes of a scorer's predictions, where they learn from replay."""
    if not scorer or not isinstance(settings, ReplayAlgorithmConfig) or not settings.reads_replay:
        return settings
    manifest = read_bundle(newest_bundle(scorer, "scenes"), "scenes").manifest
    pooled = {task: scenes[POOLED] for task, scenes in read_slopes(manifest.get("slopes", {})).items()
              if POOLED in scenes}
    known = {behaviour.name: (pooled[behaviour.name].slope, pooled[behaviour.name].error)
             for behaviour in vocabulary.short_term if behaviour.name in pooled}
    usable = {name: pair for name, pair in known.items() if all(map(math.isfinite, pair)) and pair[1] > 0}
    return settings.replace(replay=settings.replay.replace(slopes={**usable, **settings.replay.slopes}))


def _notes(settings: LearningSettings, samples: SampleSet) -> list[str]:
    """What is left out or cut, in sentences."""
    lines, vocabulary = [], samples.vocabulary
    if samples.not_drawn:
        lines.append(f"{samples.not_drawn:,} actions were not drawn (explored is false); they train critics alone")
    budget = settings.regression_budget
    if budget is not None:
        model = plan(vocabulary.state_size, vocabulary.action_size, budget)
        if str(model):
            lines.append(f"the regressed advantage would have {model.whole:,} columns, more than regression_columns "
                         f"({budget:,}): {model}, which leaves {model.columns:,}")
    rows = settings.window_rows_of(vocabulary)
    if rows < settings.window_rows:
        lines.append(f"states are so wide that windows are of {rows:,} rows in place of {settings.window_rows:,}")
    return lines


def summary(algorithm: FusionAlgorithm) -> dict[str, Any]:
    """Per phase: the numbers of its last iteration, how many there were, and why it stopped; and how many samples it
    left out because their action was not drawn, where there are any."""
    phases: dict[str, Any] = {}
    not_drawn = algorithm.samples.not_drawn
    for entry in algorithm.progress.history:
        numbers = {name: value for name, value in entry.items() if name not in ("phase", "iteration")}
        phases[entry["phase"]] = {**numbers, "iterations": entry["iteration"] + 1,
                                  "stopped": algorithm.progress.stopped.get(entry["phase"], "")}
        if not_drawn and algorithm.settings.phase(entry["phase"]).drawn_only:
            phases[entry["phase"]]["not_drawn"] = not_drawn
    return phases
