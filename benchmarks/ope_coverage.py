"""How often off-policy intervals hold the truth of policies that the product has learned, over fresh logs of a world.

A run is the output of the demo: its world, its samples, its policies. Every fresh log is of the size and of the users
of the run's holdout; critics are fitted to the run's samples, which the policies were learned from; everything else is
as the job `evaluate` does it unless told otherwise. The truth of every question comes from a simulation.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from recfuse.config import require
from recfuse.evaluation.answers import OffPolicyEstimate
from recfuse.evaluation.case import Case, action_moments
from recfuse.evaluation.config import EvaluateConfig
from recfuse.evaluation.critics import Fold, fit_folds
from recfuse.evaluation.estimator import QUESTIONS, Estimator, estimate_all
from recfuse.evaluation.estimators import ESTIMATORS, MIN_FEEDBACK_SHARE
from recfuse.evaluation.fitted_q import Transitions
from recfuse.evaluation.held_out import HeldOut, read_transitions
from recfuse.fusion.inference import FusionActor
from recfuse.fusion.policies import FixedGaussian
from recfuse.runtime.console import Progress
from recfuse.simulation.arms import read_arm
from recfuse.simulation.output import WORLD, held_out_share, logged_policy
from recfuse.simulation.persons import held_out, persons_of
from recfuse.simulation.rollout import rollout
from recfuse.simulation.truths import truths
from recfuse.simulation.world import World

_LOG_SEED, _TRUTH_SEED = 40_000_003, 50_000_017
_KEPT = ("log_prob", "users", "request_values", "session_values", "logged_values", "moments")
Said = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Subject:
    """A policy in question.

    Attributes:
        name: in tables. actor: the policy.
        truth: question → relative change, float64[m]. error: the same, its 1.96 standard errors.
        critics: fitted to the run's samples; None for none.
    """

    name: str
    actor: FusionActor
    truth: Mapping[str, np.ndarray]
    error: Mapping[str, np.ndarray]
    critics: Fold | None


@dataclass(frozen=True)
class Setting:
    """A world whose policies are judged; persons: int64[n], who every fresh log is of; estimators: that are asked."""

    world: World
    logged: FixedGaussian
    samples: Transitions | None
    persons: np.ndarray
    subjects: tuple[Subject, ...]
    estimators: tuple[Estimator, ...] = tuple(ESTIMATORS)


@dataclass(frozen=True, kw_only=True)
class FittedCase(Case):
    """A case whose critics are known: they are of the samples alone, so that no log changes them.

    Attributes:
        critics: of the policy. shared: what they say of the log whatever the policy is, for all cases of a log.
    """

    critics: Fold | None
    shared: dict[str, Any] = dataclasses.field(default_factory=dict)

    @cached_property
    def folds(self) -> tuple[Fold, ...]:
        assert self.critics is not None
        return (dataclasses.replace(self.critics, rows=np.ones(len(self.log.state), bool)),)

    @cached_property
    def request_values(self) -> tuple[np.ndarray, np.ndarray]:
        assert self.critics is not None
        if "request" not in self.shared:
            self.shared["request"] = self.critics.request.predict(self.log.state, self.log.action)
        return self.shared["request"], self.critics.request.expect(self.log.state, self.moments)

    @cached_property
    def logged_values(self) -> tuple[np.ndarray, np.ndarray]:
        assert self.critics is not None
        if "logged" not in self.shared:
            self.shared["logged"] = self.critics.logged.predict(self.log.state, self.log.action)
        q, v = self.shared["logged"]
        return q, v

    def fit_error(self, of_value: np.ndarray, of_action: np.ndarray) -> np.ndarray:
        """As in the job where it gives an interval; nothing where it only ranks, since it takes minutes a log."""
        if self.session_share < MIN_FEEDBACK_SHARE:
            return np.zeros((0, of_value.shape[1]))
        return super().fit_error(of_value, of_action)


@dataclass(frozen=True)
class Coverage:
    """What an estimator said of one policy over so many logs, of one behaviour.

    Attributes:
        question: that it answers; logs: in all; refused: share of them; wrongly: share of the refused in which its
            interval, had it been given, would have held the truth; NaN where none was refused, or it has no interval.
        bias: mean error of the relative change; spread: its standard deviation; half: mean half interval.
        own, ab: shares of the intervals given that hold the truth of the question, and what an A/B test would say; NaN
            where none is given.
    """

    question: str
    logs: int
    refused: float
    wrongly: float
    bias: float
    spread: float
    half: float
    own: float
    ab: float


def read_setting(run: Path, policies: Mapping[str, str], *, persons: int, truth_persons: int,
                 critic_rows: int, output: Path | None = None, estimators: Sequence[str] = ()) -> Setting:
    """The world of a demo's output and policies in question, with their truths and critics.

    Args:
        policies: name → fusion bundle, or a directory of them.
        critic_rows: samples that critics are fitted to; 0 for no critics, and no estimators with them.
        output: keeps the truths for a rerun.
        estimators: names of those that are asked; all where empty.

    Raises:
        InvalidFieldError: an estimator of another name.
    """
    names = [each.name for each in ESTIMATORS]
    for name in estimators:
        require(name in names, "estimators", name, f"some of {', '.join(names)}")
    simulation = run / "simulation"
    world = World.load(simulation / WORLD)
    logged, tastes = logged_policy(simulation, world), held_out(world, held_out_share(simulation))
    samples = read_transitions(str(run / "samples"), world.vocabulary, critic_rows) if critic_rows else None
    many, subjects = persons_of(tastes, truth_persons), []
    for name, path in policies.items():
        actor = read_arm(f"{name}={path}", simulation, world).policy
        assert isinstance(actor, FusionActor)
        change, error = _truth(world, logged, actor, many, output)
        log = fresh_log(world, logged, many[:2], 0)
        critics = fit_folds(samples, log, action_moments(actor), 1.0)[0] if samples else None
        subjects.append(Subject(name, actor, change, error, critics))
    asked = tuple(each for each in ESTIMATORS if not estimators or each.name in estimators)
    return Setting(world, logged, samples, persons_of(tastes, persons), tuple(subjects), asked)


def _truth(world: World, logged: FixedGaussian, actor: FusionActor, persons: np.ndarray,
           output: Path | None) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Question → relative change and its error, of the policy as it explores."""
    identity = hashlib.sha256(repr((world.config, actor.version, len(persons))).encode()
                              + world.logits.tobytes()).hexdigest()[:16]
    kept = output / f"truth-{identity}.jsonl" if output else None
    lines = [json.loads(line) for line in _kept_lines(kept)]
    if not lines:
        found = vars(truths(world, logged, actor, persons=persons, seed=_TRUTH_SEED)).values()
        lines = [{question.name: [truth.change.tolist(), truth.error.tolist()]
                  for question, truth in zip(QUESTIONS, found, strict=True)}]
        _keep(kept, lines[0])
    change, error = ({name: np.array(pair[place]) for name, pair in lines[0].items()} for place in (0, 1))
    return change, error


def fresh_log(world: World, logged: FixedGaussian, persons: np.ndarray, number: int) -> HeldOut:
    """The log of these persons, with luck of its own."""
    rows = rollout(world, logged, seed=_LOG_SEED + number, persons=persons)
    order = np.lexsort([rows.request, rows.number, rows.person])
    columns = world.columns(world.vocabulary.behaviour_names)
    sessions = np.cumsum(rows.request[order] == 0)
    # Below 0, no id is one of the samples' users.
    return HeldOut(user_id=-1 - rows.person[order], state=rows.state[order], action=rows.action[order],
                   log_prob=rows.action_logp[order], feedback=rows.feedback[order][:, columns], session=sessions,
                   mu=rows.mu[order], sigma=rows.sigma[order])


def said_of(setting: Setting, subject: Subject, log: HeldOut, shared: dict[str, Any] | None = None) -> Said:
    """Estimator → what it said of a policy: relative change, low, high, [m] each, and whether it was refused, in which
    case the numbers are those that it would have given.

    Args:
        shared: as of `FittedCase`, of the log.
    """
    case = FittedCase(actor=subject.actor, log=log, samples=setting.samples, cap=EvaluateConfig().cap,
                      session_discount=1.0, options=EvaluateConfig().options, critics=subject.critics,
                      shared={} if shared is None else shared)
    of_all = estimate_all(case, setting.estimators)
    refused = {answer.estimator for answer in of_all if answer.refused}
    lenient = dataclasses.replace(
        case, options=case.options.replace(min_ess=0.0, ratio_tolerance=math.inf, min_mean_ratio=0.0, min_events=0.0))
    # What critics and policy say of the log does not depend on refusals.
    vars(lenient).update({key: value for key, value in vars(case).items() if key in _KEPT})
    lifted = {answer.estimator: answer for answer in estimate_all(
        lenient, [each for each in setting.estimators if each.name in refused])}
    return {answer.estimator: {"refused": bool(answer.refused), "window": answer.window, "cap": _number(answer.cap),
                               "mean_ratio": _number(answer.mean_ratio), "ess": _number(answer.ess[0]),
                               **_plain(lifted.get(answer.estimator, answer))} for answer in of_all}


def _plain(answer: OffPolicyEstimate) -> dict[str, list[float | None]]:
    return {key: [_number(value) for value in getattr(answer, key)] for key in ("change", "change_low", "change_high")}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def measured(setting: Setting, logs: int, output: Path | None = None) -> dict[str, list[Said]]:
    """Policy → what was said of it in each log; what an interrupted run left in the file of the output is taken up."""
    kept = output / f"coverage-{_identity(setting)}.jsonl" if output else None
    lines = [json.loads(line) for line in _kept_lines(kept)][:logs]
    progress = Progress("coverage", logs, "logs")
    for number in range(logs):
        if number >= len(lines):
            log, shared = fresh_log(setting.world, setting.logged, setting.persons, number), dict[str, Any]()
            lines.append({subject.name: said_of(setting, subject, log, shared) for subject in setting.subjects})
            _keep(kept, lines[-1])
        progress.advance(1)
    progress.finish()
    return {subject.name: [line[subject.name] for line in lines] for subject in setting.subjects}


def coverages(subject: Subject, said: Sequence[Said], behaviour: int) -> dict[str, Coverage]:
    """Estimator → how good its answers are, of one behaviour."""
    questions = {each.name: each.question.name for each in ESTIMATORS}
    return {name: _coverage(questions[name], [line[name] for line in said if name in line],
                            subject.truth[questions[name]][behaviour],
                            subject.truth[QUESTIONS[-1].name][behaviour], behaviour)
            for name in questions if any(name in line for line in said)}


def _coverage(question: str, lines: Sequence[dict[str, Any]], truth: float, ab: float, behaviour: int) -> Coverage:
    change, low, high = (np.array([line[key][behaviour] for line in lines], np.float64)
                         for key in ("change", "change_low", "change_high"))
    refused = np.array([line["refused"] for line in lines])
    given, interval = ~refused, np.isfinite(low)
    holds = (low <= truth) & (truth <= high)
    return Coverage(question, len(lines), float(refused.mean()), _mean(holds[refused & interval]),
                    _mean(change[given]) - truth, float(change[given].std(ddof=1)) if given.sum() > 1 else math.nan,
                    _mean((high - low)[given & interval]) / 2, _mean(holds[given & interval]),
                    _mean(((low <= ab) & (ab <= high))[given & interval]))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def table_of(found: Mapping[str, Coverage]) -> list[tuple[str, ...]]:
    """A line an estimator, as text; changes in percent of the log's mean."""
    def share(value: float) -> str:
        return "–" if math.isnan(value) else f"{value:.0%}"

    def points(value: float, sign: str = "") -> str:
        return "–" if math.isnan(value) else f"{100 * value:{sign}.1f}"

    return [(name, of.question, str(of.logs), share(of.refused), share(of.wrongly), points(of.bias, "+"),
             points(of.spread), points(of.half), share(of.own), share(of.ab)) for name, of in found.items()]


COLUMNS = ("estimator", "question", "logs", "refused", "of them wrongly", "bias", "sd", "half", "holds own",
           "holds A/B")


def _identity(setting: Setting) -> str:
    parts = (setting.world.config, len(setting.persons), 0 if setting.samples is None else len(setting.samples.state),
             [(subject.name, subject.actor.version) for subject in setting.subjects],
             *([] if setting.estimators == tuple(ESTIMATORS) else [[each.name for each in setting.estimators]]))
    return hashlib.sha256(repr(parts).encode() + setting.world.logits.tobytes()).hexdigest()[:16]


def _kept_lines(file: Path | None) -> list[str]:
    """Whole lines; what an interrupted run left of one is cut off."""
    if file is None or not file.is_file():
        return []
    whole = file.read_text().rpartition("\n")
    file.write_text(whole[0] + whole[1])
    return whole[0].splitlines()


def _keep(file: Path | None, line: Mapping[str, Any]) -> None:
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as out:
            out.write(json.dumps(line) + "\n")
