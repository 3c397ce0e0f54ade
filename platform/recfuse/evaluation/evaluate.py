"""A trained policy on held-out session logs: every estimator's answer, and where the policy's weights go."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from recfuse.behaviours import Vocabulary
from recfuse.bundle import Bundle, newest_bundle, read_bundle
from recfuse.config import require
from recfuse.evaluation.advice import advice
from recfuse.evaluation.answers import OffPolicyEstimate
from recfuse.evaluation.blocks import Block, blocks_of
from recfuse.evaluation.case import Case
from recfuse.evaluation.config import EvaluateConfig
from recfuse.evaluation.estimator import Estimator, estimate_all
from recfuse.evaluation.estimators import ESTIMATORS
from recfuse.evaluation.files import METRICS, write_whole
from recfuse.evaluation.held_out import Reading, has_samples, read_held_out
from recfuse.evaluation.segments import gains_per_group
from recfuse.evaluation.separation import Separation, keep_apart
from recfuse.evaluation.streaming import read_stream
from recfuse.evaluation.weights import weights_per_group
from recfuse.fusion.inference import FusionActor
from recfuse.runtime.outputs import claim

logger = logging.getLogger("recfuse")


@dataclass(frozen=True)
class EvaluateResult:
    """Attributes:
        policy: the version of the bundle.
        estimates: by every estimator that had what it needs, in the order of their list.
        blocks: the same by question.
        behaviours: the names of the estimates' columns.
        separation: of held-out rows and samples; None where there are no samples.
        horizon: requests of a session over which the log supports products of ratios.
        weights: mean fusion weights per group of requests (`weights_per_group`).
        reading: what was read of the held-out logs; None where nothing was.
        notes: what was left out or could not be checked, in sentences.
        advice: what would give an answer where nothing does, in sentences.
        segments: what a request would bring, for each group of `weights` (`gains_per_group`).
        floors: relative changes that short-term behaviours may not fall below (`declared_floors`).
    """

    policy: str
    estimates: tuple[OffPolicyEstimate, ...]
    blocks: tuple[Block, ...]
    behaviours: tuple[str, ...]
    separation: Separation | None
    horizon: int
    weights: dict[str, Any]
    reading: Reading | None = None
    notes: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    segments: Sequence[dict[str, Any]] = ()
    floors: Mapping[str, float] = field(default_factory=dict)

    @property
    def off_policy(self) -> OffPolicyEstimate:
        """The first estimate: NCIS, unless another list is given."""
        return self.estimates[0]

    def lines(self) -> list[str]:
        """Whose account the rows have, how they are apart from the samples, the notes, and the advice."""
        account = [] if self.reading is None else [self.reading.words]
        return [*account, *([str(self.separation)] if self.separation else []), *self.notes, *self.advice]

    def require(self, config: EvaluateConfig) -> None:
        """Refuses a log of which too many rows were quarantined, and samples that are named and not there.

        Raises:
            InvalidFieldError: with the commonest reason, or the samples.
        """
        if self.reading is not None:
            self.reading.require(config.reading.quarantine_limit)
        require(not config.samples or has_samples(config.samples), "samples", config.samples,
                "a directory of samples that exists, or '' for an evaluation without them")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `metrics.json` holds them."""
        off_policy = {"behaviours": list(self.behaviours), "blocks": [block.to_dict() for block in self.blocks],
                      "advice": list(self.advice),
                      "separation": str(self.separation) if self.separation else None}
        account = {} if self.reading is None else {
            "account": asdict(self.reading.account), "account_words": self.reading.words}
        return {"policy": self.policy, "off_policy": off_policy, "weights": self.weights,
                "segments": list(self.segments), "floors": dict(self.floors), **account,
                "notes": list(self.notes)}


def evaluate(config: EvaluateConfig, estimators: Sequence[Estimator] = ESTIMATORS) -> EvaluateResult:
    """Estimates the policy's value on held-out logs and writes `metrics.json`.

    Args:
        estimators: whose answers are wanted; the first one leads, and needs the log alone.

    Raises:
        InvalidFieldError: bad logs, held-out rows that the policy was trained on, or an output that another job writes.
    """
    with claim(config.output, "evaluate"):
        return _evaluate(config, estimators)


def _evaluate(config: EvaluateConfig, estimators: Sequence[Estimator]) -> EvaluateResult:
    bundle = read_bundle(newest_bundle(config.fusion, "fusion"), "fusion")
    actor = _actor(bundle, config.stage)
    reading, separation, streamed, notes = _read(config, actor)
    case = Case.of(config, actor, reading.log)
    estimates = estimate_all(case, estimators)
    require(len(estimates) > 0, "estimators", [each.name for each in estimators], "one that needs the log alone")
    notes += case.left_out() if not config.streaming else []
    of_all = {answer.estimator: answer for answer in streamed}
    answers, names = tuple(of_all.get(each.estimator, each) for each in estimates), actor.vocabulary.behaviour_names
    blocks = blocks_of(case, estimators, answers, names)
    weights = weights_per_group(actor, reading.log)
    result = EvaluateResult(actor.version, answers, blocks, names, separation, case.horizon, weights,
                            reading, tuple(notes), tuple(advice(case, blocks)),
                            gains_per_group(case, weights["groups"]), declared_floors(bundle))
    for note in (*notes, *result.advice):
        logger.warning("evaluate: %s", note)
    first = result.off_policy
    logger.info("evaluate: %s of %s on %s requests: effective sample size %.0f%s", first.estimator, actor.version,
                f"{first.requests:,}", first.effective_sample_size[0], f"; {first.refused}" if first.refused else "")
    write_whole(Path(config.output) / METRICS, json.dumps(result.to_dict(), indent=1))
    return result


def _actor(bundle: Bundle, stage: str) -> FusionActor:
    """The policy in question."""
    actor = FusionActor.from_bundle(bundle)
    known = actor.vocabulary.stages
    require(stage in ("", *known), "stage", stage, f"stages of the policy's vocabulary: {', '.join(known)}")
    return actor.of(stage) if stage else actor


def declared_floors(bundle: Bundle) -> dict[str, float]:
    """Of every short-term behaviour, as the policy was trained with; where its algorithm has none, none may fall."""
    training = bundle.manifest.get("training") or {}
    declared = training.get("replay") or training
    floors, least = declared.get("floors") or {}, declared.get("floor") or 0.0
    return {behaviour.name: float(floors.get(behaviour.name, least))
            for behaviour in Vocabulary.from_dict(bundle.manifest["vocabulary"]).short_term}


def _read(config: EvaluateConfig, actor: FusionActor) -> tuple[Reading, Separation | None,
                                                               tuple[OffPolicyEstimate, ...], list[str]]:
    """The held-out requests, how they are apart from the samples, what was estimated on the way, and notes."""
    notes = []
    if config.stage:
        notes.append(f"only requests of the stage {config.stage} count, under its policy")
    if actor.stages and has_samples(config.samples):
        notes.append("no estimator with critics (DR, SN-DR, DM, FQE) answers for policies of several stages "
                     f"({', '.join(actor.stages)}) at once; choose one by `stage`")
    if not has_samples(config.samples):
        where = f"there is nothing at {config.samples!r}" if config.samples else "none are named"
        notes.append(f"samples: {where}, so that it cannot be checked whether the "
                     "policy was trained on held-out rows, and no estimator with critics (DR, SN-DR, DM, FQE) answers")
    if config.streaming:
        stream = read_stream(config, actor)
        reading, separation, streamed = stream.first, stream.separation, stream.streamed
        notes += stream.left_out
    else:
        reading = read_held_out(config.holdout, actor.vocabulary, config.reading, config.after)
        if config.stage:
            reading = replace(reading, log=reading.log.of_stage(config.stage))
        log, separation = keep_apart(config.samples, reading.log, config.new_users)
        reading, streamed = replace(reading, log=log), ()
    logger.info("evaluate: %s", reading.words)
    if reading.straddling:
        notes.append(f"{reading.straddling:,} sessions that began before {config.after} and went on after it are left "
                     "out whole")
    return reading, separation, streamed, notes
