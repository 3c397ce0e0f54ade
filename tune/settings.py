"""What a sweep is told: learner, search space, data, judges, floors."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import tyro
from pydantic import Field, model_validator

from recfuse.config import Config, require
from recfuse.evaluation.answers import MIN_ESS
from recfuse.learning import registry
from recfuse.learning.settings import LearningSettings
from recfuse.logs.account import QUARANTINE_LIMIT
from recfuse.runtime.limits import wait_limit
from recfuse.scenes.config import ModelConfig
from recfuse.scenes.training.config import TrainingConfig
from recfuse.stats.intervals import LEVEL
from recfuse.tune import space
from recfuse.tune.space import Range


class SearchConfig(Config):
    """How the space is searched.

    ASHA is of Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020.
    """

    searcher: Literal["grid", "random", "optuna"] = Field(
        "grid", description="`grid` takes every combination, `random` draws, and `optuna` (TPE) chooses from one block "
        "by the objective and every guarded behaviour.")
    samples: int = Field(16, description="`random` and `optuna` run so many trials.", ge=1)
    scheduler: Literal["fifo", "asha"] = Field(
        "fifo", description="`fifo` lets every trial end; `asha` stops those whose off-policy estimate of the "
        "objective falls behind.")
    grace: int = Field(2, description="`asha` stops no trial before so many passes of its last fit.", ge=1)
    reduction: int = Field(3, description="`asha` keeps one in so many trials at each rung.", ge=2)
    cpus: float = Field(1.0, description="A trial takes so many CPUs; fractions let several share one.", gt=0)
    gpus: float = Field(0.0, description="A trial takes so many GPUs; fractions let several share one.", ge=0)
    wait_limit: float = wait_limit()
    concurrent: int = Field(0, description="At most so many trials run at a time; 0 for as many as fit.", ge=0)
    seed: int = Field(0, description="The seed of draws.", ge=0)
    trackers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        (), description="Callbacks of Tune write every report of every trial; the library of that name must be "
        "installed.")


class SplitConfig(Config):
    """Who is in which group."""

    judge: float = Field(0.2, description="This share of the users judges every trial.", gt=0, lt=1)
    last: float = Field(
        0.2, description="This share of the users judges the winner again; all others train.", gt=0, lt=1)
    person: str = Field(
        r"^[^.]+", description="Users whose ids share what this regular expression matches stay together; in the "
        "simulator `7` and `7.1` have the same tastes.")
    seed: int = Field(0, description="The seed of the hash that deals the users out.")

    @model_validator(mode="after")
    def _users_are_left(self) -> Self:
        require(self.last < 1 - self.judge, "last", self.last, "a share > 0 that leaves users to train")
        try:
            re.compile(self.person)
        except re.error as error:
            require(False, "person", self.person, f"a regular expression ({error})")
        return self


class ScenesConfig(Config):
    """What every trial of the scorer learns with; a sweep changes `model.FIELD` and `training.FIELD`."""

    former: ClassVar[Mapping[str, str]] = {"logs": "exposures"}

    exposures: str = Field("embedded", description=(
        "A directory with KuaiRand files is read; `embedded` is a generator."))
    model: ModelConfig = Field(default_factory=ModelConfig, description="The scorer has these sizes.")
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="The scorer is trained so.")
    test_day: int | None = Field(
        None, description="This day (yyyymmdd) judges; absent, the last one. Choose on an earlier day than you report "
        "on.")


class SweepConfig(Config):
    """Config of a sweep."""

    former: ClassVar[Mapping[str, str]] = {"logs": "exposures"}

    learner: Literal["fusion", "scenes"] = Field(
        "fusion", description="Trials are of the fusion learner or of the scorer (`scenes`).")
    learning: LearningSettings = Field(
        default_factory=registry.settings, description="Every trial of `fusion` learns with these; its choices change "
        "them.")
    scenes: ScenesConfig = Field(
        default_factory=ScenesConfig, description="Every trial of `scenes` learns with these; its choices change them.")
    space: Annotated[tuple[dict[str, Range | list[Any]], ...], tyro.conf.Fixed] = Field(
        ({"multipliers.total": Range(low=0.005, high=500.0, log=True, steps=6)},),
        description="Each block maps fields to values, or to {low, high, log, steps}; see tune/config.")
    search: SearchConfig = Field(SearchConfig(), description="This says which trials run, and how.")
    quarantine_limit: float = Field(QUARANTINE_LIMIT, ge=0, le=1, description=(
        "A sweep of the scorer refuses exposures of which a larger share is quarantined."))
    samples: str = Field(
        "", description="This is the output of the job `ingest`; empty takes the demo's, made where they are absent.")
    simulation: str = Field(
        "", description="This is the output of the job `simulate`; empty takes the demo's.")
    demo: str = Field("runs/demo", description="The demo has its results in this directory.")
    exposures: str = Field("embedded", min_length=1, description=(
        "The demo's samples, where they are absent, are made from these exposures: a directory, `embedded` or `shop`."))
    output: str = Field(
        "runs/sweep", description="This directory gets `trials.jsonl`, `trials.parquet`, the trials' bundles, "
        "`summary.json` and `report.html`.")
    split: SplitConfig = Field(
        SplitConfig(), description="Users are dealt out to train, to judge, and to judge the winner alone.")
    judge: Literal["ab_test", "off_policy"] = Field(
        "ab_test", description="A fusion policy is judged in the simulator, persons living under each policy with the "
        "same luck, or by the log (`off_policy`: a session's value).")
    base: Literal["logged", "logged_mean"] = Field(
        "logged", description="The A/B test compares with the logged policy as it logged, or with its mean.")
    explore: bool = Field(True, description="Policies are judged with their exploration, as serving plays them; "
                          "otherwise by their means, of which no log says anything.")
    persons: int = Field(6_000, description="So many simulated people judge every trial.", ge=2)
    last_persons: int = Field(15_000, description="So many simulated people judge the winner.", ge=2)
    cap: float | None = Field(
        None, description="The judge by the log cuts importance weights at this value; absent, at the largest that "
        "the log supports.", gt=0)
    min_ess: float = Field(
        MIN_ESS, description="The judge by the log refuses an effective sample size below this.", ge=0)
    level: float = Field(LEVEL, description="Intervals cover the truth with this probability.", gt=0, lt=1)
    objective: str = Field(
        "", description="The frontier weighs this against every guarded behaviour; empty takes the first long-term "
        "behaviour, or the first task.")
    floor: dict[str, float] = Field(
        default_factory=dict, description="The lower end of a guarded behaviour's relative change (of a task's AUC) "
        "must reach this; for fusion 0 where none is given.")
    seed: int = Field(17, description="The seed of the simulated people's luck.", ge=0)
    dry_run: bool = Field(False, description="The sweep prints what would run and what it would cost, and ends.")
    retry_failed: bool = Field(False, description="Trials that failed run again.")
    cpu_hour: float = Field(0.04, description="A CPU costs this for an hour, for the dry run.", ge=0)
    passes_per_second: float = Field(
        150_000.0, description="A CPU takes so many samples × passes a second, for the dry run, until trials have been "
        "timed.", gt=0)

    @model_validator(mode="after")
    def _something_varies(self) -> Self:
        space.check(self.space)
        require(self.explore or (self.judge == "ab_test" and self.search.scheduler != "asha"), "explore", self.explore,
                "true, where the log judges or asha stops trials: a mean has no density in a log")
        return self

    @property
    def samples_directory(self) -> Path:
        return Path(self.samples or f"{self.demo}/samples")

    @property
    def simulation_directory(self) -> Path:
        return Path(self.simulation or f"{self.demo}/simulation")

    def check_measures(self, objective: str, guarded: Collection[str], measures: Collection[str]) -> None:
        """Raises InvalidFieldError where the objective, or a behaviour with a floor, is none that is measured."""
        require(objective in measures, "objective", objective, ", ".join(measures))
        for name, value in self.floor.items():
            require(name in guarded, f"floor.{name}", value, f"guarded behaviours ({', '.join(guarded)})")
