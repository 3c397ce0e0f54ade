"""A trained policy on held-out logs: every estimator's answer, and where the policy's weights go."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recfuse.bundle import newest_bundle, read_bundle
from recfuse.config import require
from recfuse.evaluation.case import Case
from recfuse.evaluation.config import EvaluateConfig
from recfuse.evaluation.estimator import Estimator, estimate_all
from recfuse.evaluation.estimators import ESTIMATORS
from recfuse.evaluation.files import METRICS, write_whole
from recfuse.evaluation.held_out import Reading, has_samples, read_held_out
from recfuse.evaluation.separation import Separation, keep_apart
from recfuse.evaluation.streaming import read_stream
from recfuse.evaluation.support import OffPolicyEstimate
from recfuse.evaluation.weights import weights_per_group
from recfuse.fusion.inference import FusionActor
from recfuse.stats.intervals import relative_change

logger = logging.getLogger("recfuse")
_VECTORS = ("estimate", "low", "high", "logged", "effective_sample_size")
_NUMBERS = ("estimator", "per", "requests", "users", "capped_share", "mean_ratio", "refused")


@dataclass(frozen=True)
class EvaluateResult:
    """Attributes:
        policy: the version of the bundle.
        estimates: by every estimator that had what it needs, in the order of their list.
        estimators: the list.
        behaviours: the names of the estimates' columns.
        separation: of held-out rows and samples; None where there are no samples.
        horizon: requests of a session over which the log supports products of ratios.
        weights: mean fusion weights per group of requests (`weights_per_group`).
        reading: what was read of the held-out logs; None where nothing was.
        notes: what was left out or could not be checked, in sentences.
    """

    policy: str
    estimates: tuple[OffPolicyEstimate, ...]
    estimators: tuple[Estimator, ...]
    behaviours: tuple[str, ...]
    separation: Separation | None
    horizon: int
    weights: dict[str, Any]
    reading: Reading | None = None
    notes: tuple[str, ...] = ()

    @property
    def off_policy(self) -> OffPolicyEstimate:
        """The first estimate, which tables and sentences begin with: NCIS, unless another list is given."""
        return self.estimates[0]

    def rows(self) -> list[list[str]]:
        """A line per behaviour, as text: mean in the log, estimate, interval, ESS."""
        first = self.off_policy
        return [[name, f"{first.logged[index]:.5g}",
                 "–" if first.refused else f"{first.estimate[index]:.5g}",
                 "–" if first.refused else f"[{first.low[index]:.5g}, {first.high[index]:.5g}]",
                 f"{first.effective_sample_size[index]:,.0f}"] for index, name in enumerate(self.behaviours)]

    def estimator_rows(self) -> list[list[str]]:
        """A line per estimator, as text: its difference to the log per behaviour ± half its interval, or why none."""
        return [[answer.estimator, answer.per, f"{answer.effective_sample_size[0]:,.0f}",
                 *([answer.refused] + [""] * (len(self.behaviours) - 1) if answer.refused else
                   [_relative(answer, index) for index in range(len(self.behaviours))])] for answer in self.estimates]

    def lines(self) -> list[str]:
        """Whose account the rows have, how they are apart from the samples, and the notes."""
        account = [] if self.reading is None else [self.reading.words]
        return [*account, *([str(self.separation)] if self.separation else []), *self.notes]

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
        described = {estimator.name: {"question": estimator.question.name, "formula": estimator.formula}
                     for estimator in self.estimators}
        off_policy = _plain(self.off_policy, self.behaviours) | {
            "estimators": [_plain(answer, self.behaviours) | described[answer.estimator] for answer in self.estimates],
            "horizon": self.horizon, "separation": str(self.separation) if self.separation else None}
        account = {} if self.reading is None else {
            "account": asdict(self.reading.account), "account_words": self.reading.words}
        return {"policy": self.policy, "off_policy": off_policy, "weights": self.weights, **account,
                "notes": list(self.notes)}


def evaluate(config: EvaluateConfig, estimators: Sequence[Estimator] = ESTIMATORS) -> EvaluateResult:
    """Estimates the policy's value on held-out logs and writes `metrics.json`.

    Args:
        estimators: whose answers are wanted; the first one leads, and needs the log alone.

    Raises:
        InvalidFieldError: bad logs, or held-out rows that the policy was trained on.
    """
    require(not Path(config.output).is_file(), "output", config.output, "a directory")
    bundle = newest_bundle(config.fusion, "fusion")
    actor = FusionActor.from_bundle(read_bundle(bundle, "fusion"))
    reading, separation, streamed, notes = _read(config, actor)
    case = Case.of(config, actor, reading.log)
    estimates = estimate_all(case, estimators)
    require(len(estimates) > 0, "estimators", [each.name for each in estimators], "one that needs the log alone")
    notes += case.left_out() if not config.streaming else []
    of_all = {answer.estimator: answer for answer in streamed}
    result = EvaluateResult(actor.version, tuple(of_all.get(each.estimator, each) for each in estimates),
                            tuple(estimators), actor.vocabulary.behaviour_names, separation, case.horizon,
                            weights_per_group(actor, reading.log), reading, tuple(notes))
    for note in notes:
        logger.warning("evaluate: %s", note)
    first = result.off_policy
    logger.info("evaluate: %s of %s on %s requests: effective sample size %.0f%s", first.estimator, actor.version,
                f"{first.requests:,}", first.effective_sample_size[0], f"; {first.refused}" if first.refused else "")
    write_whole(Path(config.output) / METRICS, json.dumps(result.to_dict(), indent=1))
    return result


def _read(config: EvaluateConfig, actor: FusionActor) -> tuple[Reading, Separation | None,
                                                               tuple[OffPolicyEstimate, ...], list[str]]:
    """The held-out requests, how they are apart from the samples, what was estimated on the way, and notes."""
    notes = []
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
        log, separation = keep_apart(config.samples, reading.log, config.new_users)
        reading, streamed = replace(reading, log=log), ()
    logger.info("evaluate: %s", reading.words)
    if reading.straddling:
        notes.append(f"{reading.straddling:,} sessions that began before {config.after} and went on after it are left "
                     "out whole")
    return reading, separation, streamed, notes


def _relative(answer: OffPolicyEstimate, index: int) -> str:
    logged = answer.logged[index]
    if not logged:
        return f"{answer.estimate[index]:.3g}"
    change, low, high = (relative_change(value[index], logged) for value in (answer.estimate, answer.low, answer.high))
    return f"{change:+.1%} ± {(high - low) / 2:.1%}"


def _plain(answer: OffPolicyEstimate, names: tuple[str, ...]) -> dict[str, Any]:
    vectors = {key: [None if np.isnan(value) else float(value) for value in getattr(answer, key)] for key in _VECTORS}
    return {"behaviours": list(names), **vectors, **{key: getattr(answer, key) for key in _NUMBERS}}
