"""A trained policy on held-out logs: every estimator's answer, and where the policy's weights go."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from recfuse.bundle import newest_bundle, read_bundle
from recfuse.config import require
from recfuse.evaluation.case import ROWS, Case, policy_log_prob
from recfuse.evaluation.config import EvaluateConfig
from recfuse.evaluation.estimator import Estimator, estimate_all
from recfuse.evaluation.estimators import ESTIMATORS
from recfuse.evaluation.files import METRICS, write_whole
from recfuse.evaluation.held_out import HeldOut, read_held_out
from recfuse.evaluation.separation import Separation, keep_apart
from recfuse.evaluation.streaming import estimates_of_sums, merge, user_sums
from recfuse.evaluation.support import OffPolicyEstimate
from recfuse.evaluation.weights import weights_per_group
from recfuse.fusion.inference import FusionActor

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
    """

    policy: str
    estimates: tuple[OffPolicyEstimate, ...]
    estimators: tuple[Estimator, ...]
    behaviours: tuple[str, ...]
    separation: Separation | None
    horizon: int
    weights: dict[str, Any]

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

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as `metrics.json` holds them."""
        described = {estimator.name: {"question": estimator.question.name, "formula": estimator.formula}
                     for estimator in self.estimators}
        off_policy = _plain(self.off_policy, self.behaviours) | {
            "estimators": [_plain(answer, self.behaviours) | described[answer.estimator] for answer in self.estimates],
            "horizon": self.horizon, "separation": str(self.separation) if self.separation else None}
        return {"policy": self.policy, "off_policy": off_policy, "weights": self.weights}


class Dataset(Protocol):
    """What is needed of a ray.data.Dataset."""

    def map_batches(self, function: Callable[..., pa.Table], **options: Any) -> Dataset:
        """Applies the function to every batch."""
        ...

    def iter_batches(self, **options: Any) -> Iterable[pa.Table]:
        """The batches."""
        ...


def evaluate(config: EvaluateConfig, dataset: Dataset | None = None,
             estimators: Sequence[Estimator] = ESTIMATORS) -> EvaluateResult:
    """Estimates the policy's value on held-out logs and writes `metrics.json`.

    Args:
        dataset: the held-out logs as a Ray dataset, where the config asks for `streaming`.
        estimators: whose answers are wanted; the first one leads, and needs the log alone.

    Raises:
        InvalidFieldError: bad logs, or held-out rows that the policy was trained on.
    """
    bundle = newest_bundle(config.fusion, "fusion")
    actor = FusionActor.from_bundle(read_bundle(bundle, "fusion"))
    log = read_held_out(config.holdout, actor.vocabulary, config.critic_rows if config.streaming else None,
                        config.after)
    require(config.streaming == (dataset is not None), "streaming", config.streaming, "a dataset with it, none without")
    log, separation = keep_apart(config.samples, log, config.new_users)
    case = Case.of(config, actor, log)
    estimates = estimate_all(case, estimators)
    if dataset is not None:
        streamed = {answer.estimator: answer for answer in estimate_streaming(config, actor, dataset)}
        estimates = [streamed.get(answer.estimator, answer) for answer in estimates]
    require(len(estimates) > 0, "estimators", [each.name for each in estimators], "one that needs the log alone")
    result = EvaluateResult(actor.version, tuple(estimates), tuple(estimators), actor.vocabulary.behaviour_names,
                            separation, case.horizon, weights_per_group(actor, log))
    first = result.off_policy
    logger.info("evaluate: %s of %s on %s requests: effective sample size %.0f%s", first.estimator, actor.version,
                f"{first.requests:,}", first.effective_sample_size[0], f"; {first.refused}" if first.refused else "")
    write_whole(Path(config.output) / METRICS, json.dumps(result.to_dict(), indent=1))
    return result


def estimate_streaming(config: EvaluateConfig, actor: FusionActor, dataset: Dataset) -> list[OffPolicyEstimate]:
    """NCIS and IS of a whole dataset; what comes back of a batch is a row a user."""
    parts = dataset.map_batches(_sums_of_batch, fn_args=(actor, config.cap), batch_format="pyarrow", batch_size=ROWS)
    sums = merge(parts.iter_batches(batch_format="pyarrow", batch_size=None))
    return estimates_of_sums(sums, config.options)


def _sums_of_batch(batch: pa.Table, actor: FusionActor, cap: float) -> pa.Table:
    if not batch.num_rows:
        return pa.table({})
    log = HeldOut.of_table(batch, actor.vocabulary)
    return user_sums(policy_log_prob(actor, log), log.log_prob, log.feedback, cap, log.user_id)


def _relative(answer: OffPolicyEstimate, index: int) -> str:
    logged = answer.logged[index]
    if not logged:
        return f"{answer.estimate[index]:.3g}"
    return f"{answer.estimate[index] / logged - 1:+.1%} ± {(answer.high[index] - answer.low[index]) / 2 / logged:.1%}"


def _plain(answer: OffPolicyEstimate, names: tuple[str, ...]) -> dict[str, Any]:
    vectors = {key: [None if np.isnan(value) else float(value) for value in getattr(answer, key)] for key in _VECTORS}
    return {"behaviours": list(names), **vectors, **{key: getattr(answer, key) for key in _NUMBERS}}
