"""A sweep: one trial per choice of a search space, judged on users that did not train; the frontier, and a report.

    python -m tune.sweep --config tune/config/fusion.yaml [--dry-run]

A rerun repeats no finished trial.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from pydantic import SerializeAsAny

from jobs import ingest, simulate, train_scenes
from recfuse.behaviours import Vocabulary
from recfuse.bundle import read_bundle
from recfuse.config import require
from recfuse.evaluation.ope import MIN_ESS
from recfuse.fusion.inference import FusionActor
from recfuse.learning import registry
from recfuse.learning.options import choose_algorithm
from recfuse.learning.samples import SampleSet
from recfuse.learning.settings import LearningSettings
from recfuse.logs.schema import VOCABULARY_FILE
from recfuse.report.report import write_report
from recfuse.runtime.cluster import cluster
from recfuse.runtime.console import start, table
from recfuse.scenes.dataset import fingerprint, scene_rows
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.registry import KUAIRAND
from recfuse.simulation.simulate import METRICS as SIMULATION_METRICS
from recfuse.simulation.simulate import logged_policy
from recfuse.simulation.sources import read_source
from recfuse.simulation.world import World
from recfuse.stats.intervals import LEVEL
from tune import space
from tune.frontier import Point, cheapest, closest, frontier, keeps, points
from tune.judges import Judge, OffPolicyJudge, SimulatorJudge, Worths
from tune.ledger import FAILED, STOPPED, Ledger, Row
from tune.plots import SweepData, sections, text
from tune.search import SearchConfig, at_once, identity_of, key_of, planned, run_trials
from tune.space import Assignment, Range
from tune.split import GROUPS, JUDGE, LAST, LEARN, SplitConfig, split_samples
from tune.studies import BUNDLE, EXPLAINED, FusionStudy, ScenesConfig, ScenesStudy, Study, read_columns

logger = logging.getLogger("recfuse")
_SILENT = ("how the action moves them is not significant in these samples, so that their policies stay the logged one "
           "and their γ hardly matter")
REPORT, SUMMARY = "report.html", "summary.json"


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """Config of a sweep.

    Attributes:
        learner: `fusion` or `scenes`.
        learning, scenes: what every trial learns with; the choices change it.
        space: blocks of field → values, or {low, high, log, steps}; see tune/config.
        search: which of them run, and how.
        samples, simulation: outputs of the jobs `ingest` and `simulate`; empty takes those of the demo, which are made
            where they are absent.
        demo: directory of the demo.
        output: gets `trials.jsonl`, `trials.parquet`, the trials' bundles, `summary.json` and `report.html`.
        split: users that train, judge, and judge the winner alone.
        judge: of a fusion policy: `ab_test` in the simulator, every person living once under each policy with the same
            luck, or `off_policy` (NCIS).
        base: of the A/B test: the logged policy as it logged, or its mean.
        persons, last_persons: simulated people that judge every trial, and the winner.
        cap, min_ess: of NCIS; level: of the intervals.
        objective: what the frontier weighs against every guarded behaviour; empty: the first long-term behaviour, or
            the first task.
        floor: guarded behaviour → least relative change (the scorer's tasks: least AUC) by the lower end of the
            interval. For fusion 0 where none is given: no loss.
        dry_run: print what would run and what it would cost, and end.
        retry_failed: run failed trials again.
        cpu_hour: price of a CPU for an hour, for the dry run.
        passes_per_second: samples × passes that a CPU takes in a second, for the dry run, until trials have been timed.
    """

    learner: Literal["fusion", "scenes"] = "fusion"
    learning: SerializeAsAny[LearningSettings] = field(default_factory=registry.settings)
    scenes: ScenesConfig = field(default_factory=ScenesConfig)
    space: Annotated[tuple[dict[str, Range | list[Any]], ...], tyro.conf.Fixed] = ()
    search: SearchConfig = field(default_factory=SearchConfig)
    samples: str = ""
    simulation: str = ""
    demo: str = "runs/demo"
    output: str = "runs/sweep"
    split: SplitConfig = field(default_factory=SplitConfig)
    judge: Literal["ab_test", "off_policy"] = "ab_test"
    base: Literal["logged", "logged_mean"] = "logged"
    persons: int = 6_000
    last_persons: int = 15_000
    cap: float = 10.0
    min_ess: float = MIN_ESS
    level: float = LEVEL
    objective: str = ""
    floor: dict[str, float] = field(default_factory=dict)
    seed: int = 17
    dry_run: bool = False
    retry_failed: bool = False
    cpu_hour: float = 0.04
    passes_per_second: float = 150_000.0

    def __post_init__(self) -> None:
        space.check(self.space)
        require(self.judge in ("ab_test", "off_policy"), "judge", self.judge, "ab_test, off_policy")
        require(self.persons >= 2 and self.last_persons >= 2, "persons", (self.persons, self.last_persons),
                "integers ≥ 2")
        require(0 < self.level < 1, "level", self.level, "a number in (0, 1)")

    @property
    def samples_directory(self) -> Path:
        return Path(self.samples or f"{self.demo}/samples")

    @property
    def simulation_directory(self) -> Path:
        return Path(self.simulation or f"{self.demo}/simulation")


@dataclass(frozen=True)
class SweepResult:
    """Attributes:
        ledger: rows of all trials.
        frontier: the points that no other dominates; winner: the cheapest that keeps every floor, or None.
        last: the winner's worth on users that no trial saw.
        report: the page; None after a dry run.
    """

    ledger: Ledger
    frontier: list[Point]
    winner: Point | None
    last: Worths
    report: Path | None


def main(config: SweepConfig) -> SweepResult:
    """Runs what is left of the sweep on the current Ray, or on a local one, and writes the report."""
    output = Path(config.output)
    with cluster():
        study, identity, last = fusion_study(config) if config.learner == "fusion" else scenes_study(config)
        assignments = planned(config.space, config.search)
        for assignment in assignments:
            study.check(assignment)
        ledger = Ledger(output, identity[:16])
        if config.dry_run:
            announce(config, study, assignments, ledger, identity)
            return SweepResult(ledger, [], None, {}, None)
        ledger.set_aside()
        if config.retry_failed:
            ledger.drop(FAILED)
        run_trials(study, config.space, config.search, ledger, identity, output / "tune")
        result = conclude(config, study, ledger, last)
    show(config, study, result)
    return result


def fusion_study(config: SweepConfig) -> tuple[FusionStudy, str, Judge]:
    """The study, what its rows depend on, and the judge of the winner."""
    if not config.samples and not (config.samples_directory / VOCABULARY_FILE).is_file():
        make_samples(config)
    output = Path(config.output).absolute()
    split = split_samples(config.samples_directory, output / "split", config.split)
    samples = SampleSet.open(split[LEARN], config.learning.network.action_range)
    vocabulary = samples.vocabulary
    judges = {group: OffPolicyJudge.of(split[group], vocabulary, config.cap, config.min_ess, config.level)
              for group in (JUDGE, LAST)}
    deciding: dict[str, Judge] = {**judges}
    if config.judge == "ab_test":
        deciding = {group: simulator(config, group, persons)
                    for group, persons in ((JUDGE, config.persons), (LAST, config.last_persons))}
    objective = config.objective or vocabulary.long_term[0].name
    guarded = tuple(one.name for one in vocabulary.short_term)
    _check_measures(config, objective, guarded, vocabulary.behaviour_names)
    study = FusionStudy(
        base=config.learning, samples=samples, columns=read_columns(split[LEARN]),
        judge=deciding[JUDGE], estimate=judges[JUDGE], bundles=output / "bundles",
        each_pass=config.search.scheduler == "asha", objective=objective, guarded=guarded)
    identity = identity_of("fusion", samples.fingerprint, config.learning.to_dict(), config.judge,
                           config.base, config.persons, config.cap, config.min_ess, config.level, config.seed,
                           dataclasses.asdict(config.split), config.search.scheduler,
                           _world_identity(config) if config.judge == "ab_test" else "")
    return study, identity, deciding[LAST]


def make_samples(config: SweepConfig) -> None:
    """The first steps of the demo, as it makes them, so that it takes them up."""
    out = config.demo
    logger.info("sweep: %s is absent; making the demo's samples", config.samples_directory)
    scenes = train_scenes.main(train_scenes.TrainScenesConfig(output=f"{out}/scenes"))
    world = simulate.main(simulate.SimulateConfig(scorer=str(scenes.bundle), output=f"{out}/simulation"))
    ingest.main(ingest.IngestConfig(logs=str(world.logs), output=f"{out}/samples"))


def simulator(config: SweepConfig, group: str, persons: int) -> SimulatorJudge:
    """The A/B test on a group's users, with the base's lives in it."""
    directory = config.simulation_directory
    require((directory / SIMULATION_METRICS).is_file(), "simulation", str(directory),
            "an output of jobs/simulate.py (or judge: off_policy)")
    world = World.load(directory / "world")
    return SimulatorJudge.of(world, logged_policy(directory, world), config.base == "logged", GROUPS.index(group),
                             config.split, persons, config.seed + GROUPS.index(group), config.level)


def _world_identity(config: SweepConfig) -> str:
    return str(json.loads((config.simulation_directory / SIMULATION_METRICS).read_text())["run"])


def _check_measures(config: SweepConfig, objective: str, guarded: tuple[str, ...], names: tuple[str, ...]) -> None:
    require(objective in names, "objective", objective, ", ".join(names))
    for name, value in config.floor.items():
        require(name in guarded, f"floor.{name}", value, f"guarded behaviours ({', '.join(guarded)})")


def scenes_study(config: SweepConfig) -> tuple[ScenesStudy, str, Any]:
    """The study, what its rows depend on, and the judge of the winner."""
    require(config.search.scheduler == "fifo", "search.scheduler", config.search.scheduler,
            "fifo, because a trial of the scorer reports once, at its end")
    exposures = scene_rows(read_source(config.scenes.logs).exposures, KUAIRAND)
    group = ScenesStudy.deal(exposures, config.split)
    tasks = tuple(dict.fromkeys(task for scene in KUAIRAND.scenes for task in scene.tasks))
    objective = config.objective or tasks[0]
    guarded = tuple(task for task in tasks if task != objective)
    _check_measures(config, objective, guarded, tasks)
    study = ScenesStudy(
        base=config.scenes, registry=KUAIRAND, exposures=exposures, group=group,
        bundles=Path(config.output).absolute() / "bundles", objective=objective, guarded=guarded,
        fingerprint=fingerprint(exposures))
    identity = identity_of("scenes", study.fingerprint, dataclasses.asdict(config.scenes),
                           dataclasses.asdict(config.split))
    return study, identity, lambda scorer: study.judge(scorer, LAST)


def announce(config: SweepConfig, study: Study, assignments: list[Assignment], ledger: Ledger, identity: str) -> None:
    """Prints what would run and what it would cost."""
    left = [one for one in assignments if key_of(one, identity) not in ledger.keys]
    count = len(left) if assignments else max(0, config.search.samples - len(ledger.rows))
    table("Trials that would run", ["trial", "passes × samples, at most"],
          [(space.label(one), f"{study.limit(one):,}") for one in left] if assignments else
          [(f"{count} trials that {config.search.searcher} chooses", f"{study.limit({}):,} each")])
    timed = [row["seconds"] for row in ledger.rows if row.get("seconds")]
    most = sum(study.limit(one) for one in left) if assignments else count * study.limit({})
    side = at_once(config.search)
    # Stopping rules end most fits early, so that the measured time is well below the bound.
    seconds = count * float(np.median(timed)) if timed else most / config.passes_per_second
    cpu_hours = seconds * config.search.cpus / 3600
    table("Cost", ["", ""], [
        ("trials done, left", f"{len(ledger.rows)}, {count}"),
        ("side by side", side),
        ("measured by", f"{len(timed)} trials that were timed" if timed else
         f"{config.passes_per_second:,.0f} sample-passes/s, every iteration limit reached"),
        ("time", f"{seconds / side / 60:.1f} min"),
        ("CPU hours", f"{cpu_hours:.3f}"),
        ("price", f"{cpu_hours * config.cpu_hour:.3f} at {config.cpu_hour:g} per CPU hour"),
    ])


def conclude(config: SweepConfig, study: Study, ledger: Ledger, last: Any) -> SweepResult:
    """Frontier, winner, its worth on the last users, summary and report."""
    output = Path(config.output)
    measures = [study.objective, *study.guarded]
    found = points(ledger.rows, measures)
    floors = floors_of(config, study)
    if len(found) > 1 and len({tuple(point.worth.values()) for point in found}) == 1:
        logger.warning("sweep: all %d trials came out the same: what varies has no effect on these samples (with the "
                       "regressed advantage of the fusion learner: too few of them)", len(found))
    best, winner = frontier(found, measures), cheapest(found, study.objective, floors)
    worths: Worths = {}
    if winner is not None:
        row = next(row for row in ledger.rows if row["key"] == winner.key)
        worths = last(_load(output / "bundles" / row[BUNDLE], config.learner))
    data = SweepData(
        points=found, objective=study.objective, guarded=study.guarded, floors=floors, relative=study.relative,
        winner=winner.key if winner else "", last=worths, rows=ledger.rows, discounts=own_discounts(study),
        fields=fields_of(study, found), subject=subject(config, study, ledger, winner, worths))
    output.mkdir(parents=True, exist_ok=True)
    (output / SUMMARY).write_text(json.dumps({
        "objective": study.objective, "floors": floors, "frontier": [point.name for point in best],
        "winner": None if winner is None else {"name": winner.name, "choices": dict(winner.choices),
                                               "judged": {k: list(v) for k, v in winner.worth.items()},
                                               "last": {k: list(v) for k, v in worths.items()}}}, indent=1))
    report = write_report(output / REPORT, data, sections(data), "Recfuse sweep")
    return SweepResult(ledger, best, winner, worths, report)


def floors_of(config: SweepConfig, study: Study) -> Mapping[str, float]:
    """Floor of every guarded measure that has one."""
    return {name: config.floor.get(name, 0.0) for name in study.guarded} if study.relative else config.floor


def silent(rows: Sequence[Row], guarded: Sequence[str]) -> list[str]:
    """The guarded behaviours of which no trial learned anything: their γ and λ hardly matter on these samples."""
    seen = {name: [row[f"{EXPLAINED}{name}"] for row in rows if row.get(f"{EXPLAINED}{name}") is not None]
            for name in guarded}
    return [name for name, values in seen.items() if values and not any(values)]


def fields_of(study: Study, found: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """Trial → value of every field that any trial chose."""
    names = list(dict.fromkeys(name for point in found for name in point.choices))
    return {point.key: {name: study.value(dict(point.choices), name) for name in names} for point in found}


def own_discounts(study: Study) -> dict[str, float]:
    """The config's discounts, by behaviour, and by kind where its behaviours share one."""
    if not isinstance(study, FusionStudy):
        return {}
    vocabulary: Vocabulary = study.samples.vocabulary
    found = {one.name: one.gamma for one in vocabulary.behaviours}
    for kind, members in (("long_term", vocabulary.long_term), ("short_term", vocabulary.short_term)):
        shared = {one.gamma for one in members}
        if len(shared) == 1:
            found[kind] = shared.pop()
    return found


def _load(bundle: Path, learner: str) -> Any:
    return FusionActor.from_bundle(read_bundle(bundle, "fusion")) if learner == "fusion" else \
        SceneScorer.from_bundle(read_bundle(bundle, "scenes"))


def subject(config: SweepConfig, study: Study, ledger: Ledger, winner: Point | None, last: Worths) -> dict[str, str]:
    """Title lines of the report."""
    counts = {status: sum(row["status"] == status for row in ledger.rows) for status in ("finished", STOPPED, FAILED)}
    lines = {"trials": ", ".join(f"{count} {status}" for status, count in counts.items() if count),
             "judged by": ("A/B test in the simulator, same luck under every policy" if config.judge == "ab_test" else
                           "NCIS") if study.relative else "pooled AUC on the test day",
             "floors": ", ".join(f"{name} {value:+g}" for name, value in floors_of(config, study).items()) or "none"}
    if quiet := silent(ledger.rows, study.guarded):
        lines["nothing learned of"] = f"{', '.join(quiet)}: {_SILENT}"
    if winner is None:
        lines["winner"] = "no trial keeps every floor by the lower end of its intervals"
        return lines
    lines["cheapest that keeps every floor"] = winner.name
    measures = [study.objective, *study.guarded]
    lines["judged"] = "; ".join(f"{name} {text(winner.worth[name], study.relative)}" for name in measures)
    lines["again, on users no trial saw"] = "; ".join(
        f"{name} {text(last[name], study.relative)}" for name in measures if name in last)
    return lines


def show(config: SweepConfig, study: Study, result: SweepResult) -> None:
    """Prints frontier, winner, failures, and the path of the report."""
    measures = [study.objective, *study.guarded]
    floors = floors_of(config, study)
    best = sorted(result.frontier, key=lambda one: -one.worth[study.objective].estimate)
    table(f"Points that no other dominates ({len(best)})", ["trial", *measures, "floors"],
          [(f"#{point.number}", *(text(point.worth[name], study.relative) for name in measures),
            "kept" if keeps(point, floors) else "") for point in best])
    table("What they chose", ["trial", "choices"],
          [(f"#{point.number}", space.label(dict(point.choices))) for point in best])
    if quiet := silent(result.ledger.rows, study.guarded):
        print(f"nothing was learned of {', '.join(quiet)}: {_SILENT}")
    for row in result.ledger.rows:
        if row["status"] == FAILED:
            print(f"failed: #{row['number']}: {row['reason']}")
    if result.winner is None:
        near = closest(points(result.ledger.rows, measures), floors)
        print("no trial keeps every floor by the lower end of its intervals"
              + (f"; the closest is {near.name}" if near else ""))
    else:
        table(f"The cheapest that keeps every floor: {result.winner.name}",
              ["measure", "floor", "judged", "again, on users no trial saw"],
              [(name, f"{floors[name]:+g}" if name in floors else "", text(result.winner.worth[name], study.relative),
                text(result.last[name], study.relative) if name in result.last else "–") for name in measures])
    print(f"report: {result.report}")


if __name__ == "__main__":
    main(start(SweepConfig, description=__doc__, choose=choose_algorithm))
