"""Ray Tune: which trials run, side by side on fractions of the CPUs, and a row in the ledger as each of them ends."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from ray import tune
from ray.tune.search.optuna import OptunaSearch

from recfuse.config import require
from recfuse.runtime import ray_compat
from recfuse.runtime.console import Progress, moved
from recfuse.runtime.placement import described, nodes, room_for
from recfuse.runtime.waiting import Watch
from recfuse.tune import space
from recfuse.tune.ledger import FAILED, FINISHED, STOPPED, Ledger, Row
from recfuse.tune.settings import SearchConfig
from recfuse.tune.space import Assignment, Block
from recfuse.tune.studies import DONE, FINAL_PASSES, OFF_POLICY, Run, Study

logger = logging.getLogger("recfuse")
_CHOICES = "choices"
# How often trials run again that were cut off, and Ray's words for it.
RESTARTS = 3
_NODE_DIED = "its node has died"


def planned(blocks: Sequence[Block], config: SearchConfig) -> list[Assignment]:
    """The trials that can be named before the first one runs; Optuna's cannot.

    Raises:
        InvalidFieldError: Optuna with a space of several blocks.
    """
    if config.searcher == "grid":
        return space.grid(blocks)
    if config.searcher == "random":
        return space.random(blocks, config.samples, config.seed)
    require(len(blocks) == 1, "space", len(blocks), "one block, for optuna")
    return []


def key_of(assignment: Assignment, identity: str) -> str:
    """Names a trial by its choices and by all else that its row depends on."""
    return hashlib.sha256(f"{identity}\n{space.canonical(assignment)}".encode()).hexdigest()[:16]


class StudyTrial(tune.Trainable):
    """A trial as Ray Tune runs it; one process takes one after the other."""

    def setup(self, config: dict[str, Any], study: Study | None = None) -> None:
        """Starts the trial of these choices."""
        assert study is not None
        self._study = study
        self._run: Run | None = None
        self._begin(config)

    def _begin(self, config: dict[str, Any]) -> None:
        if self._run is not None:
            self._run.close()
            self._run = None
        self._run = self._study.begin(choices_of(config))

    def step(self) -> dict[str, Any]:
        """One pass."""
        assert self._run is not None
        report = self._run.step()
        return report | {tune.result.DONE: bool(report.get(DONE))}

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Takes the next trial in the same process."""
        self._begin(new_config)
        return True

    def cleanup(self) -> None:
        """Ends the trial."""
        if self._run is not None:
            self._run.close()


def choices_of(config: Mapping[str, Any]) -> Assignment:
    """A trial's choices, whichever searcher made them."""
    return dict(config.get(_CHOICES, config))


class Recorder(tune.Callback):
    """Writes a row as a trial ends, and a line on how far the sweep is.

    Attributes:
        again: trials that are cut off run again, and get no row; lost: how many were.
    """

    def __init__(self, ledger: Ledger, identity: str, numbers: Mapping[str, int], total: int, objective: str,
                 again: bool = False) -> None:
        self.again, self.lost = again, 0
        self._ledger, self._identity, self._numbers, self._objective = ledger, identity, numbers, objective
        self._progress = Progress("sweep", total, "trials", every=0.0)
        self._started: dict[str, float] = {}

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The clock of a trial."""
        self._started.setdefault(trial.trial_id, time.monotonic())

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """While a trial runs, the sweep does not wait, however long its passes are."""
        if any(trial.status == "RUNNING" for trial in trials):
            moved()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Finished, or stopped by the scheduler."""
        result = trial.last_result or {}
        judged = bool(result.get(DONE))
        self._record(trial, result, FINISHED if judged else STOPPED, "" if judged else "behind the others (asha)")

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Failed; a trial whose node died has no row, and runs again."""
        text = error_text(trial)
        if self.again and is_lost(text):
            self.lost += 1
            logger.warning("sweep: a trial was cut off and runs again: %s", last_line(text)[:150])
        else:
            self._record(trial, trial.last_result or {}, FAILED, last_line(text))

    def _record(self, trial: Any, result: Mapping[str, Any], status: str, reason: str) -> None:
        choices = choices_of(trial.config)
        key = key_of(choices, self._identity)
        row: Row = {
            "key": key, "number": self._numbers.get(key, len(self._ledger.rows) + 1), "status": status,
            "reason": reason, "seconds": round(time.monotonic() - self._started.get(trial.trial_id, 0.0), 2),
            **{f"config.{name}": space.encode(value) for name, value in choices.items()},
            **{name: value for name, value in result.items() if is_metric(name, value)}}
        self._ledger.append(row)
        value = row.get(self._objective)
        note = f"{self._objective} {value:+.3f}" if value is not None else f"{status}: {reason}"
        self._progress.advance(1, f"#{row['number']} {space.label(choices)}: {note}")


_ADDED_BY_TUNE = {"done", "training_iteration", "trial_id", "timestamp", "time_this_iter_s", "time_total_s", "pid",
              "time_since_restore", "iterations_since_restore", "date", "hostname", "node_ip", "experiment_tag",
              "config", "should_checkpoint", "should_export_model", DONE}


def is_metric(name: str, value: Any) -> bool:
    """Whether a field of a report belongs in the row."""
    return name not in _ADDED_BY_TUNE and isinstance(value, int | float | str)


def error_text(trial: Any) -> str:
    """What Tune wrote of a trial's error; it lies on the driver's machine before it lies in the storage."""
    file = Path(trial.error_file or "")
    return file.read_text() if file.is_file() else ""


def last_line(text: str) -> str:
    """The exception itself, of a traceback."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    return lines[-1][:400] if lines else "no reason given"


def is_lost(text: str) -> bool:
    """Whether what Tune wrote of a trial is the end of its node; a process that dies by itself would do so again."""
    return _NODE_DIED in text


def run_trials(study: Study, blocks: Sequence[Block], config: SearchConfig, ledger: Ledger, identity: str,
               scratch: Path) -> None:
    """Runs the trials that the ledger does not hold yet, on the current Ray; those that a lost node cuts off again, on
    the nodes that are left."""
    _quieten()
    ray_compat.prepare_tune()
    with Watch("sweep", config.wait_limit):
        for attempt in range(RESTARTS + 1):
            if not _run_left(study, blocks, config, ledger, identity, scratch, again=attempt < RESTARTS):
                return


def _run_left(study: Study, blocks: Sequence[Block], config: SearchConfig, ledger: Ledger, identity: str,
              scratch: Path, again: bool) -> int:
    """How many trials were cut off."""
    assignments, known = planned(blocks, config), list(ledger.rows)
    numbers = {key_of(assignment, identity): number for number, assignment in enumerate(assignments, 1)}
    left = [assignment for assignment in assignments if key_of(assignment, identity) not in ledger.keys]
    count = len(left) if assignments else max(0, config.samples - len(known))
    if known:
        logger.info("sweep: %d trials are there already, %d are left", len(known), count)
    if count == 0:
        return 0
    trainable = tune.with_resources(tune.with_parameters(StudyTrial, study=study),
                                    {"cpu": config.cpus, "gpu": config.gpus})
    searcher = None if assignments else optuna_searcher(study, blocks[0], config, known)
    fits = at_once(config)
    recorder = Recorder(ledger, identity, numbers, count, study.objective, again)
    tune.Tuner(
        trainable, param_space={_CHOICES: tune.grid_search(left)} if assignments else None,
        tune_config=tune.TuneConfig(
            search_alg=searcher, scheduler=scheduler(study, config), num_samples=1 if assignments else count,
            max_concurrent_trials=config.concurrent or fits, reuse_actors=True),
        run_config=tune.RunConfig(
            name=f"{identity[:8]}-{time.time_ns()}", storage_path=str(scratch.absolute()), verbose=0,
            failure_config=tune.FailureConfig(max_failures=0),
            # A trial is minutes; what must survive a crash is the ledger.
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            callbacks=[recorder, *trackers(config)])).fit()
    return recorder.lost


def _quieten() -> None:
    """Silences Optuna's and Tune's lines; the reason of a failure stands in the trial's row."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)


def trackers(config: SearchConfig) -> list[Any]:
    """Tune's callbacks for the trackers that the config names."""
    places = {"tensorboard": "ray.tune.logger.tensorboardx.TBXLoggerCallback",
              "mlflow": "ray.air.integrations.mlflow.MLflowLoggerCallback",
              "wandb": "ray.air.integrations.wandb.WandbLoggerCallback"}
    callbacks = []
    for name in config.trackers:
        module, _, kind = places[name].rpartition(".")
        options = {"project": "recfuse"} if name == "wandb" else {}
        callbacks.append(getattr(importlib.import_module(module), kind)(**options))
    return callbacks


def at_once(config: SearchConfig) -> int:
    """How many trials fit on the nodes side by side; one, where an autoscaler may yet bring a node for it.

    Raises:
        InvalidFieldError: no node has what a trial takes.
    """
    places, need = nodes(), {"CPU": config.cpus, "GPU": config.gpus}
    fits = room_for(need, [node.total for node in places])
    most = max((node.total.get("CPU", 0) for node in places), default=0)
    require(fits > 0 or ray_compat.may_grow(), "search.cpus" if config.cpus > most else "search.gpus",
            config.cpus if config.cpus > most else config.gpus, f"what one node has; {described(places)}")
    return max(1, fits)


def scheduler(study: Study, config: SearchConfig) -> Any:
    """Of Tune."""
    if config.scheduler == "fifo":
        return tune.schedulers.FIFOScheduler()
    return tune.schedulers.AsyncHyperBandScheduler(
        time_attr=FINAL_PASSES, metric=f"{OFF_POLICY}{study.objective}", mode="max", grace_period=config.grace,
        reduction_factor=config.reduction, max_t=10_000)


def optuna_searcher(study: Study, block: Block, config: SearchConfig, known: Sequence[Row]) -> OptunaSearch:
    """TPE over the objective and the guarded measures, which has seen the trials that are known."""
    measures = [study.objective, *study.guarded]
    distributions, storage = space.distributions(block), optuna.storages.InMemoryStorage()
    past = optuna.create_study(storage=storage, study_name="sweep", directions=["maximize"] * len(measures))
    for row in known:
        values = [row.get(name) for name in measures]
        if row["status"] == FINISHED and None not in values:
            past.add_trial(optuna.trial.create_trial(
                params={name: row[f"config.{name}"] for name in block}, distributions=distributions,
                values=[float(value) for value in values if value is not None]))
    # After a resume the sampler starts again; with the same seed it would repeat its first draws.
    sampler = optuna.samplers.TPESampler(seed=config.seed + 7919 * len(known))
    return OptunaSearch(distributions, metric=measures, mode=["max"] * len(measures), sampler=sampler,
                        storage=storage, study_name="sweep")


class Identity(str):
    """Hash of all that every row of a sweep depends on.

    Attributes:
        parts: what was hashed, plain values by name.
    """

    parts: Mapping[str, Any]

    @classmethod
    def of(cls, **parts: Any) -> Identity:
        """The identity of these values."""
        text = json.dumps(parts, sort_keys=True, default=str)
        identity = cls(hashlib.sha256(text.encode()).hexdigest())
        identity.parts = json.loads(text)
        return identity
