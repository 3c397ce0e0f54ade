"""Trials of the scorer: trained on some users' days before the test day, judged on other users' rows of that day."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recfuse.bundle import read_bundle
from recfuse.config import require
from recfuse.logs.exposures import Exposures
from recfuse.scenes.dataset import fingerprint, scene_rows, split_by_time
from recfuse.scenes.evaluation import TestDay
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.registry import KUAIRAND, Registry
from recfuse.scenes.training.fit import train
from recfuse.scenes.training.problem import prepare
from recfuse.simulation.sources import read_source
from recfuse.stats.ranking import POOLED, metric_intervals
from recfuse.tune.judges import Worth, Worths, flat
from recfuse.tune.search import Identity
from recfuse.tune.settings import ScenesConfig, SplitConfig, SweepConfig
from recfuse.tune.space import Assignment, plain, read_field, replace_fields
from recfuse.tune.split import GROUPS, JUDGE, LAST, LEARN, groups_of
from recfuse.tune.studies import BUNDLE, DONE, FINAL_PASSES, PASSES


def scenes_study(config: SweepConfig) -> tuple[ScenesStudy, Identity, Callable[[SceneScorer], Worths]]:
    """The study, what its rows depend on, and the judge of the winner."""
    require(config.search.scheduler == "fifo", "search.scheduler", config.search.scheduler,
            "fifo, because a trial of the scorer reports once, at its end")
    exposures = scene_rows(read_source(config.scenes.exposures).exposures, KUAIRAND)
    exposures.account.require(config.quarantine_limit, "scenes.exposures")
    group = ScenesStudy.deal(exposures, config.split)
    # A number has no AUC to be judged by.
    tasks = tuple(task for task in dict.fromkeys(task for scene in KUAIRAND.scenes for task in scene.tasks)
                  if task not in KUAIRAND.numbers)
    objective = config.objective or tasks[0]
    guarded = tuple(task for task in tasks if task != objective)
    config.check_measures(objective, guarded, tasks)
    study = ScenesStudy(
        base=config.scenes, registry=KUAIRAND, exposures=exposures, group=group,
        bundles=Path(config.output).absolute() / "bundles", objective=objective, guarded=guarded,
        fingerprint=fingerprint(exposures))
    identity = Identity.of(learner="scenes", samples=study.fingerprint, learning=plain(config.scenes),
                           split=plain(config.split))
    return study, identity, lambda scorer: study.judge(scorer, LAST)


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
        return replace_fields(self.base, {**assignment, "training.workers": 0})

    @property
    def discounts(self) -> dict[str, float]:
        """See `Study`; a scorer has none."""
        return {}

    def check(self, assignment: Assignment) -> None:
        """See `Study`."""
        self.configure(assignment)

    def limit(self, assignment: Assignment) -> int:
        """See `Study`."""
        return int((self.group == GROUPS.index(LEARN)).sum()) * self.configure(assignment).training.epochs

    def value(self, assignment: Assignment, field: str) -> Any:
        """See `Study`."""
        return read_field(self.configure(assignment), field)

    def load(self, bundle: str) -> SceneScorer:
        """See `Study`."""
        return SceneScorer.from_bundle(read_bundle(self.bundles / bundle, "scenes"))

    def begin(self, assignment: Assignment) -> ScenesRun:
        """See `Study`."""
        return ScenesRun(self, assignment)

    def judge(self, scorer: SceneScorer, group: str) -> Worths:
        """AUC of every task, pooled over the scenes, on the test day's rows of a group's users."""
        exposures = self.exposures.filter(self.group == GROUPS.index(group))
        day = TestDay.of(exposures, split_by_time(exposures, test_day=self.base.test_day), scorer.history_length)
        predictions = day.predict(scorer)
        users = day.exposures.column("user_id")
        worths = {}
        for metrics in day.metrics(predictions):
            if metrics.scene == POOLED and np.isfinite(metrics.auc):
                task, rows = metrics.task, day.rows_of(metrics, predictions)
                low, high = metric_intervals(day.exposures.column(task)[rows], predictions[task][rows],
                                             users[rows]).auc
                worths[task] = Worth(metrics.auc, low, high)
        return worths


class ScenesRun:
    """See `Run`; a pass is the whole training."""

    def __init__(self, study: ScenesStudy, assignment: Assignment) -> None:
        self._study, self._config = study, study.configure(assignment)

    def step(self) -> dict[str, Any]:
        """Trains and judges."""
        study, config = self._study, self._config
        exposures = study.exposures.filter(study.group == GROUPS.index(LEARN))
        training = split_by_time(exposures, test_day=config.test_day).training
        with tempfile.TemporaryDirectory() as directory:
            problem = prepare(exposures, training, study.registry, config.model, config.training)
            scorer = train(problem, directory)
        worths = study.judge(scorer, JUDGE)
        bundle = scorer.export(study.bundles, training=plain(config.training), data_fingerprint=study.fingerprint,
                               metrics={name: list(worth) for name, worth in worths.items()})
        return {PASSES: config.training.epochs, FINAL_PASSES: config.training.epochs, **flat(worths),
                DONE: True, BUNDLE: bundle.name}

    def close(self) -> None:
        """Nothing is held."""
