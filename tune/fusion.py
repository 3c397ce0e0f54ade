"""Trials of the fusion learner: what each one learns with and from, and who judges its policy."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from recfuse.behaviours import Vocabulary
from recfuse.bundle import read_bundle
from recfuse.config import require
from recfuse.evaluation.answers import EstimateOptions
from recfuse.fusion.inference import FusionActor, export_policy
from recfuse.learning import registry
from recfuse.learning.algorithm import FusionAlgorithmConfig
from recfuse.learning.samples import InMemory, SampleSet, fingerprint_of
from recfuse.learning.settings import LearningSettings
from recfuse.learning.training import summary
from recfuse.logs.source import open_log
from recfuse.runtime import ray_compat
from recfuse.simulation.arms import read_arm
from recfuse.simulation.output import METRICS, WORLD, run_of
from recfuse.simulation.world import World
from recfuse.tune.judges import Judge, OffPolicyJudge, SimulatorJudge, flat
from recfuse.tune.samples import make_samples
from recfuse.tune.search import Identity
from recfuse.tune.settings import SweepConfig
from recfuse.tune.space import (
    DISCOUNTS,
    MULTIPLIERS,
    TOTAL,
    Assignment,
    multipliers,
    plain,
    read_field,
    replace_fields,
    split_fusion,
    with_discounts,
)
from recfuse.tune.split import GROUPS, JUDGE, LAST, LEARN, split_samples
from recfuse.tune.studies import BUNDLE, DONE, EXPLAINED, FINAL_PASSES, OFF_POLICY, PASSES


def fusion_study(config: SweepConfig) -> tuple[FusionStudy, Identity, Judge]:
    """The study, what its rows depend on, and the judge of the winner."""
    if not config.samples:
        make_samples(config.demo, config.exposures)
    output = Path(config.output).absolute()
    split = split_samples(config.samples_directory, output / "split", config.split)
    samples = SampleSet.open(split[LEARN], config.learning.network.action_range)
    vocabulary = samples.vocabulary
    options = EstimateOptions(min_ess=config.min_ess, level=config.level)
    judges = {group: OffPolicyJudge.of(split[group], vocabulary, config.cap, options, config.explore)
              for group in (JUDGE, LAST)}
    deciding: dict[str, Judge] = {**judges}
    if config.judge == "ab_test":
        deciding = {group: _simulator(config, group, persons)
                    for group, persons in ((JUDGE, config.persons), (LAST, config.last_persons))}
    objective = config.objective or vocabulary.long_term[0].name
    guarded = tuple(behaviour.name for behaviour in vocabulary.short_term)
    config.check_measures(objective, guarded, vocabulary.behaviour_names)
    study = FusionStudy(
        base=config.learning, samples=samples, columns=samples.columns(samples.has_candidates),
        judge=deciding[JUDGE], estimate=judges[JUDGE], bundles=output / "bundles",
        each_pass=config.search.scheduler == "asha", objective=objective, guarded=guarded)
    identity = Identity.of(
        learner="fusion", samples={LEARN: samples.fingerprint, **{
            group: fingerprint_of(open_log(str(split[group]), name="samples")) for group in (JUDGE, LAST)}},
        learning=plain(config.learning), judge=config.judge, base=config.base, explore=config.explore,
        persons=config.persons, cap=config.cap, min_ess=config.min_ess, level=config.level,
        seed=config.seed, split=plain(config.split),
        scheduler=config.search.scheduler,
        simulation=run_of(config.simulation_directory) if config.judge == "ab_test" else "")
    return study, identity, deciding[LAST]


def _simulator(config: SweepConfig, group: str, persons: int) -> SimulatorJudge:
    """The A/B test on a group's users, with the base's lives in it."""
    directory, place = config.simulation_directory, GROUPS.index(group)
    require((directory / METRICS).is_file(), "simulation", str(directory),
            "an output of jobs/simulate.py (or judge: off_policy)")
    world = World.load(directory / WORLD)
    return SimulatorJudge.of(world, read_arm(config.base, directory, world, config.explore), place, config.split,
                             persons, config.seed + place, config.level, config.explore)


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
        return cls(**{field.name: getattr(samples, field.name) for field in dataclasses.fields(samples)})

    def dataset(self, replay: bool = False, cpus: float | None = None) -> Any:
        """What the learner asks of a Ray dataset; with the columns of replay where the samples have them."""
        return _Rows(self._columns[self.fingerprint])


class _Rows(InMemory):
    """Columns in memory as a Ray dataset and as its iterator."""

    def iterator(self) -> _Rows:
        return self


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
        settings = settings.resolved(self.samples.has_density, self.samples.has_candidates)
        settings.apply_to(vocabulary)
        return settings, vocabulary

    @property
    def discounts(self) -> dict[str, float]:
        """See `Study`."""
        vocabulary = self.samples.vocabulary
        discounts = {behaviour.name: behaviour.gamma for behaviour in vocabulary.behaviours}
        for kind, members in (("long_term", vocabulary.long_term), ("short_term", vocabulary.short_term)):
            shared = {behaviour.gamma for behaviour in members}
            if len(shared) == 1:
                discounts[kind] = shared.pop()
        return discounts

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
        values = {behaviour.gamma if head == DISCOUNTS else getattr(settings, MULTIPLIERS).get(behaviour.name)
                  for behaviour in vocabulary.behaviours if name in (behaviour.name, behaviour.kind)}
        return values.pop() if len(values) == 1 else "mixed"

    def load(self, bundle: str) -> FusionActor:
        """See `Study`."""
        return FusionActor.from_bundle(read_bundle(self.bundles / bundle, "fusion"))

    def begin(self, assignment: Assignment) -> FusionRun:
        """See `Study`."""
        return FusionRun(self, assignment)


class FusionRun:
    """See `Run`; a pass is one over the samples."""

    def __init__(self, study: FusionStudy, assignment: Assignment) -> None:
        ray_compat.silence()
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
            report[FINAL_PASSES] = history[-1]["iteration"] + 1
        if self._algorithm.finished:
            bundle = self._export(self._study.bundles)
            actor = self._study.load(bundle.name)
            report |= flat(self._study.judge(actor)) | flat(self._study.estimate(actor), OFF_POLICY)
            report |= explained(summary(self._algorithm)) | {DONE: True, BUNDLE: bundle.name}
        elif last and self._study.each_pass:
            with tempfile.TemporaryDirectory() as directory:
                actor = FusionActor.from_bundle(read_bundle(self._export(Path(directory)), "fusion"))
            report |= flat(self._study.estimate(actor), OFF_POLICY)
        return report

    def _export(self, root: Path) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        return export_policy(root, self._algorithm.policy(), self._algorithm.vocabulary(),
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
