"""What one trial does, for each learner that can be swept. A study travels to the trials once, by the object store."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow.dataset as ds

from recfuse.behaviours import Vocabulary
from recfuse.bundle import read_bundle
from recfuse.fusion.inference import FusionActor, export_policy
from recfuse.learning import registry
from recfuse.learning.algorithm import FusionAlgorithmConfig
from recfuse.learning.samples import COLUMNS, InMemory, SampleSet, arrays
from recfuse.learning.settings import LearningSettings
from recfuse.learning.training import summary
from recfuse.logs.exposures import Exposures
from recfuse.scenes.dataset import split_by_time
from recfuse.scenes.evaluation import TestDay
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.model import ModelConfig
from recfuse.scenes.registry import Registry
from recfuse.scenes.trainer import TrainingConfig, prepare, train
from recfuse.stats.ranking import POOLED, metric_intervals
from tune.judges import Judge, Worth, Worths, flat
from tune.space import (
    DISCOUNTS,
    MULTIPLIERS,
    TOTAL,
    Assignment,
    multipliers,
    read_field,
    replace_fields,
    split_fusion,
    with_discounts,
)
from tune.split import GROUPS, SplitConfig, groups_of

# Of a trial's last report: `DONE`, the columns of its worth, and where its bundle lies.
DONE, BUNDLE, PASSES = "judged", "bundle", "passes"
OFF_POLICY, EXPLAINED = "ope_", "explained_"


class Run(Protocol):
    """A trial under way."""

    def step(self) -> dict[str, Any]:
        """Trains for one pass and reports it; the last report holds DONE and the trial's worth."""
        ...

    def close(self) -> None:
        """Gives back what the trial held."""
        ...


class Study(Protocol):
    """What is swept.

    Attributes:
        objective: the measure that a sweep climbs; guarded: those it must not pay with.
        relative: whether worths are changes from a base, or values of their own.
    """

    @property
    def objective(self) -> str: ...

    @property
    def guarded(self) -> tuple[str, ...]: ...

    @property
    def relative(self) -> bool: ...

    def check(self, assignment: Assignment) -> None:
        """Raises InvalidFieldError where the choices do not fit the config."""
        ...

    def limit(self, assignment: Assignment) -> int:
        """The most sample-passes that a trial can take."""
        ...

    def value(self, assignment: Assignment, field: str) -> Any:
        """What a field is in a trial, whether the trial chose it or not."""
        ...

    def begin(self, assignment: Assignment) -> Run:
        """Starts a trial in this process."""
        ...


@dataclass(frozen=True)
class SharedSamples(SampleSet):
    """Samples whose rows lie in memory, in place of files: every trial of a process, and by the object store every
    process of a machine, reads the same ones."""

    _columns: ClassVar[dict[str, dict[str, np.ndarray]]] = {}

    @classmethod
    def share(cls, samples: SampleSet, columns: dict[str, np.ndarray]) -> SharedSamples:
        """The same samples on these columns."""
        # Beside the object, not in it: RLlib copies and pickles the config that it is part of.
        cls._columns[samples.fingerprint] = columns
        return cls(**{one.name: getattr(samples, one.name) for one in dataclasses.fields(samples)})

    def dataset(self) -> Any:
        """What the learner asks of a Ray dataset."""
        return _Rows(self._columns[self.fingerprint])


class _Rows(InMemory):
    """Columns in memory as a Ray dataset and as its iterator."""

    def iterator(self) -> _Rows:
        return self


def read_columns(directory: Path) -> dict[str, np.ndarray]:
    """What the learner reads of samples, float32 [n] or [n, width]."""
    files = sorted(str(file) for file in directory.glob("*.parquet"))
    return arrays(ds.dataset(files).to_table(columns=list(COLUMNS)))


@dataclass(frozen=True)
class FusionStudy:
    """Trials of the fusion learner.

    Attributes:
        base: the settings that the choices change.
        samples, columns: of the users that train.
        judge: decides; estimate: the off-policy estimate, which costs little and is reported beside it.
        bundles: directory for the trials' policies.
        each_pass: report the off-policy estimate after every pass of the last fit, for a scheduler.
    """

    base: LearningSettings
    samples: SampleSet
    columns: dict[str, np.ndarray]
    judge: Judge
    estimate: Judge
    bundles: Path
    each_pass: bool
    objective: str
    guarded: tuple[str, ...]
    relative: bool = True

    def configure(self, assignment: Assignment) -> tuple[LearningSettings, Vocabulary]:
        """Settings and vocabulary of a trial.

        Raises:
            InvalidFieldError: the choices do not fit.
        """
        discounts, lambdas, fields = split_fusion(assignment)
        name = fields.pop("algorithm", self.base.algorithm)
        base = self.base if name == self.base.algorithm else registry.adapted(self.base, name)
        # A trial is one process; the sweep runs side by side.
        settings = replace_fields(base, {**fields, "num_learners": 0})
        vocabulary = with_discounts(self.samples.vocabulary, discounts)
        if lambdas or MULTIPLIERS in type(settings).model_fields:
            chosen = multipliers(vocabulary, getattr(settings, MULTIPLIERS, {}), lambdas)
            settings = replace_fields(settings, {MULTIPLIERS: chosen})
        settings = settings.resolved(self.samples.has_density)
        settings.apply_to(vocabulary)
        return settings, vocabulary

    def check(self, assignment: Assignment) -> None:
        """See `Study`."""
        self.configure(assignment)

    def limit(self, assignment: Assignment) -> int:
        """See `Study`."""
        settings, _ = self.configure(assignment)
        return self.samples.rows * sum(phase.rule(settings).iterations for phase in settings.phases)

    def value(self, assignment: Assignment, field: str) -> Any:
        """See `Study`; of a kind whose behaviours differ, `mixed`."""
        settings, vocabulary = self.configure(assignment)
        head, _, name = field.partition(".")
        if field == TOTAL:
            return float(f"{sum(getattr(settings, MULTIPLIERS).values()):.6g}")
        if head not in (DISCOUNTS, MULTIPLIERS):
            return read_field(settings, field)
        members = [one for one in vocabulary.behaviours if name in (one.name, one.kind)]
        found = {one.gamma if head == DISCOUNTS else getattr(settings, MULTIPLIERS).get(one.name) for one in members}
        return found.pop() if len(found) == 1 else "mixed"

    def begin(self, assignment: Assignment) -> FusionRun:
        """See `Study`."""
        return FusionRun(self, assignment)


class FusionRun:
    """See `Run`; a pass is one over the samples."""

    def __init__(self, study: FusionStudy, assignment: Assignment) -> None:
        for name in ("ray.rllib", "ray.tune", "ray._common.deprecation"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._study = study
        self._settings, vocabulary = study.configure(assignment)
        shared = SharedSamples.share(study.samples, study.columns)
        self._samples = dataclasses.replace(shared, vocabulary=vocabulary)
        self._algorithm = FusionAlgorithmConfig().learn(self._settings, self._samples).build_algo()

    def step(self) -> dict[str, Any]:
        """One pass; with the last one, the policy is judged."""
        self._algorithm.train()
        history = self._algorithm.progress.history
        report: dict[str, Any] = {PASSES: len(history), "phase": history[-1]["phase"], "loss": history[-1]["loss"]}
        last = history[-1]["phase"] == self._settings.phases[-1].name
        if last:
            report["final_passes"] = history[-1]["iteration"] + 1
        if self._algorithm.finished:
            bundle = self._export(self._study.bundles)
            actor = FusionActor.from_bundle(read_bundle(bundle, "fusion"))
            report |= flat(self._study.judge(actor)) | flat(self._study.estimate(actor), OFF_POLICY)
            report |= explained(summary(self._algorithm)) | {DONE: True, BUNDLE: bundle.name}
        elif last and self._study.each_pass:
            with tempfile.TemporaryDirectory() as directory:
                actor = FusionActor.from_bundle(read_bundle(self._export(Path(directory)), "fusion"))
            report |= flat(self._study.estimate(actor), OFF_POLICY)
        return report

    def _export(self, root: Path) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        return export_policy(root, self._algorithm.policy(), self._samples.vocabulary,
                             training=self._settings.to_dict(), data_fingerprint=self._samples.fingerprint,
                             metrics=summary(self._algorithm))

    def close(self) -> None:
        """Ends the learner."""
        self._algorithm.stop()


def explained(phases: Mapping[str, Any]) -> dict[str, float]:
    """As columns, the share of each behaviour's sampled advantage that the regression found in the action; 0 where the
    samples say nothing significant, and nothing is learned of the behaviour."""
    return {f"{EXPLAINED}{name}": value for numbers in phases.values() for metric, value in numbers.items()
            for head, _, name in [metric.partition("/")] if head == "advantage_explained"}


@dataclass(frozen=True, kw_only=True)
class ScenesConfig:
    """What a sweep of the scorer changes: `model.FIELD` and `training.FIELD` of jobs/train_scenes.py.

    Attributes:
        logs: a directory with KuaiRand files, or `embedded`.
        test_day: yyyymmdd, the day that judges; absent, the last one. Choose on an earlier day than you report on.
    """

    logs: str = "embedded"
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    test_day: int | None = None


@dataclass(frozen=True)
class ScenesStudy:
    """Trials of the scorer: trained on the days before the test day, judged on other users' rows of that day.

    Attributes:
        exposures: of every user, in the scenes of the registry.
        group: int64[rows], place in GROUPS of each row's user.
        bundles: directory for the scorers.
    """

    base: ScenesConfig
    registry: Registry
    exposures: Exposures
    group: np.ndarray
    bundles: Path
    objective: str
    guarded: tuple[str, ...]
    fingerprint: str
    relative: bool = False

    @staticmethod
    def deal(exposures: Exposures, split: SplitConfig) -> np.ndarray:
        """int64[rows]: the group of every row's user."""
        return groups_of(exposures.column("user_id").astype(str), split)

    def configure(self, assignment: Assignment) -> ScenesConfig:
        """The config of a trial.

        Raises:
            InvalidFieldError: the choices do not fit.
        """
        changed = replace_fields(self.base, assignment)
        return dataclasses.replace(changed, training=dataclasses.replace(changed.training, workers=0))

    def check(self, assignment: Assignment) -> None:
        """See `Study`."""
        self.configure(assignment)

    def limit(self, assignment: Assignment) -> int:
        """See `Study`."""
        return int((self.group == 0).sum()) * self.configure(assignment).training.epochs

    def value(self, assignment: Assignment, field: str) -> Any:
        """See `Study`."""
        return read_field(self.configure(assignment), field)

    def begin(self, assignment: Assignment) -> ScenesRun:
        """See `Study`."""
        return ScenesRun(self, assignment)

    def judge(self, scorer: SceneScorer, group: str) -> Worths:
        """AUC of every task, pooled over the scenes, on the test day's rows of a group's users."""
        theirs = self.exposures.filter(self.group == GROUPS.index(group))
        day = TestDay.of(theirs, split_by_time(theirs, test_day=self.base.test_day), scorer.history_length)
        predictions = day.predict(scorer)
        users = day.exposures.column("user_id")
        worths = {}
        for one in day.metrics(predictions):
            if one.scene == POOLED and np.isfinite(one.auc):
                rows = day.rows_of(one, predictions)
                low, high = metric_intervals(day.exposures.column(one.task)[rows], predictions[one.task][rows],
                                             users[rows]).auc
                worths[one.task] = Worth(one.auc, low, high)
        return worths


class ScenesRun:
    """See `Run`; a pass is the whole training."""

    def __init__(self, study: ScenesStudy, assignment: Assignment) -> None:
        self._study, self._config = study, study.configure(assignment)

    def step(self) -> dict[str, Any]:
        """Trains and judges."""
        study, config = self._study, self._config
        mine = study.exposures.filter(study.group == 0)
        training = split_by_time(mine, test_day=config.test_day).training
        with tempfile.TemporaryDirectory() as directory:
            problem = prepare(mine, training, study.registry, config.model, config.training)
            scorer = train(problem, directory)
        worths = study.judge(scorer, GROUPS[1])
        bundle = scorer.export(study.bundles, training=dataclasses.asdict(config.training),
                               data_fingerprint=study.fingerprint, metrics=_plain(worths))
        return {PASSES: config.training.epochs, "final_passes": config.training.epochs, **flat(worths),
                DONE: True, BUNDLE: bundle.name}

    def close(self) -> None:
        """Nothing is held."""


def _plain(worths: Mapping[str, Worth]) -> dict[str, Any]:
    return {name: list(worth) for name, worth in worths.items()}
