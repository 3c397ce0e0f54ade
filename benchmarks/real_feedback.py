"""Rankings on real feedback, with no simulator: what a learned fusion brings where nothing is made up.

Every user's rows that the scorer did not see (of the test day, and of the response model's share before it) are ranked,
and the real feedback of the first k counts. What is tuned or learned, is so on one half of the users and judged on the
other, both ways; users with fewer rows than `least` take part in the former alone. Searches are repeated with several
seeds, and a user counts with the mean over these, and over the scorers where several are given.

The platform chose the rows and their order, and only feedback on the item itself counts: what a ranking does to the
rest of a session is not seen.

    python -m benchmarks.real_feedback --exposures DIRECTORY
    python -m benchmarks.real_feedback --exposures DIRECTORY --scorers runs/scenes/bundles --top 3
"""

from __future__ import annotations

import json
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from benchmarks.real_rankings import (
    FEEDBACK,
    Array,
    Curved,
    Fit,
    Regressed,
    Searched,
    Sets,
    Worth,
    about,
    alone,
    by_scene,
    crossed,
    fused,
    hand_tuned,
    weighed,
    with_duration,
)
from recfuse.bundle import newest_bundle, read_bundle
from recfuse.config import Config, require
from recfuse.logs.exposures import SCORER_SHARE
from recfuse.runtime.console import start, table
from recfuse.scenes.columns import align
from recfuse.scenes.config import TrainScenesConfig
from recfuse.scenes.dataset import scene_rows, split_by_time
from recfuse.scenes.evaluation import TestDay
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.sources import Source
from recfuse.scenes.train_scenes import train_scenes
from recfuse.scenes.training.config import TrainingConfig
from recfuse.simulation.sources import read_source
from recfuse.stats.intervals import Interval, paired_difference

CUT = 180.0
SIX, ALL = "CEM, six columns", "CEM, all columns"


class RealFeedbackConfig(Config):
    """Which logs, which scorers, and how the rankings are searched and judged."""

    exposures: str = Field(description="A directory with KuaiRand files; `embedded` runs on made-up exposures.")
    scorers: tuple[str, ...] = Field((), description=(
        "Bundles of kind `scenes` with watch time, or directories that hold one; without any, some are trained."))
    trained: int = Field(1, description="So many scorers are trained where none is given, one a seed.", ge=1)
    output: str = Field("runs/real_feedback", description="The directory gets `table.json`, and trained scorers.")
    top: int = Field(2, description="The first so many items of a user's ranking count.", ge=1)
    least: int = Field(5, description="Users with so many unseen rows, or more, judge the rankings.", ge=2)
    cem_seeds: int = Field(4, description="Every search by CEM is repeated with so many seeds.", ge=1)
    population: int = Field(48, description="An iteration of CEM judges so many vectors.", ge=2)
    iterations: int = Field(30, description="A search by CEM draws so many populations.", ge=1)
    draws: int = Field(1_000, description="The bootstrap over users draws so often.", ge=1)
    seed: int = Field(0, description="The seed of folds, searches and the bootstrap.", ge=0)


def main(config: RealFeedbackConfig) -> dict[str, Array]:
    """Ranks, judges, prints and writes; returns ranking → [users, FEEDBACK], the feedback of every user's top."""
    begin = time.monotonic()
    source = read_source(config.exposures)
    scorers = [scorer_of(path) for path in config.scorers] or [
        trained(config, source, seed) for seed in range(config.trained)]
    judged = [judge(config, unseen(config, source, scorer)) for scorer in scorers]
    found = {name: np.mean([one[name] for one in judged], axis=0) for name in judged[0]}
    show(config, found)
    write(config, found, [scorer.version for scorer in scorers])
    seconds = time.monotonic() - begin
    print(f"{len(found[ALL]):,} users, {len(scorers)} scorers, {seconds:.0f} s, {os.cpu_count()} cores")
    return found


def trained(config: RealFeedbackConfig, source: Source, seed: int) -> SceneScorer:
    """A scorer by the job's own defaults, in this process."""
    job = TrainScenesConfig(exposures=config.exposures, share=SCORER_SHARE, output=f"{config.output}/scenes-{seed}",
                            intervals=0,
                            training=TrainingConfig(workers=0, seed=seed))
    return scorer_of(train_scenes(job, source.exposures, source.registry, source.features).bundle)


def scorer_of(path: str | Path) -> SceneScorer:
    """The scorer of a bundle, or of the newest in a directory."""
    return SceneScorer.from_bundle(read_bundle(newest_bundle(path, "scenes"), "scenes"))


def unseen(config: RealFeedbackConfig, source: Source, scorer: SceneScorer) -> Sets:
    """Every user's rows that the job leaves to others, with the scorer's predictions; users with one row are left out.

    Raises:
        InvalidFieldError: the scorer does not predict watch time, or no user has rows enough.
    """
    names = tuple(dict.fromkeys(task for tasks in scorer.tasks.values() for task in tasks))
    require("watch_time" in names, "scorer", names, "a scorer with the task watch_time")
    exposures = scene_rows(source.exposures, source.registry)
    rows = TestDay.of_rows(exposures, split_by_time(exposures).unseen, scorer.history_length)
    user = np.unique(rows.exposures.column("user_id"), return_inverse=True)[1].reshape(-1)
    counts = np.bincount(user)
    require(bool((counts >= config.least).any()), "least", config.least, f"at most {counts.max(initial=0)} rows a user")
    order = np.argsort(user, kind="stable")
    order = order[counts[user[order]] > 1]
    scores = scorer.score_rows(rows.exposures.rows, rows.exposures.users, rows.exposures.items, rows.histories)
    predictions = np.nan_to_num(np.stack([scores[name] for name in names], 1).astype(np.float64))
    scenes = list(scorer.tasks)
    return Sets(
        user=np.unique(user[order], return_inverse=True)[1].reshape(-1), names=names, predictions=predictions[order],
        scene=np.array([scenes.index(name) for name in rows.scenes])[order], scenes=len(scenes),
        duration=_durations(rows)[order], feedback=_feedback(rows)[order], size=config.top)


def _feedback(rows: TestDay) -> Array:
    """[N, FEEDBACK]"""
    watch, *labels = (rows.exposures.column(name).astype(np.float64)
                      for name in ("watch_time", "click", "long_view", "like"))
    return np.stack([np.minimum(watch, CUT), watch, *labels], 1)


def _durations(rows: TestDay) -> Array:
    """[N] seconds, the mean where an item's is unknown."""
    ids, item = np.unique(rows.exposures.column("item_id"), return_inverse=True)
    known = align(rows.exposures.items, "item_id", ids)["duration"].to_numpy(zero_copy_only=False).astype(np.float64)
    seconds: Array = np.where(np.isfinite(known), known, np.nanmean(known))[item]
    return seconds


def rankings(config: RealFeedbackConfig, names: tuple[str, ...]) -> dict[str, tuple[Fit, int]]:
    """Name → a ranking, and with how many seeds it is fitted."""
    searched = partial(Searched, population=config.population, iterations=config.iterations)
    six = tuple(name for name in names if name != "watch_time")
    linear, again = Regressed(fused), config.cem_seeds
    values: dict[str, Fit] = {
        "item_value": Regressed(by_scene), "item_value, duration": Regressed(with_duration), "monotone": Curved(),
        "personal": Regressed(by_scene, about)}
    return {
        "hand-tuned, six columns": (weighed({name: hand_tuned(name) for name in six}), 1),
        "hand-tuned, all columns": (weighed({name: hand_tuned(name) for name in names}), 1),
        SIX: (searched(six), again), ALL: (searched(names), again),
        f"{ALL}, duration": (searched(names, duration=True), again),
        f"{ALL}, floors": (searched(names, floors=True), again),
        "watch_time alone": (alone("watch_time"), 1),
        "replay_vector": (searched(names, values=Worth(linear)), again),
        **{name: (Worth(fit), 1) for name, fit in values.items()},
        "replay_vector, floors": (searched(names, values=Worth(linear, True)), again),
        **{f"{name}, floors": (Worth(fit, True), 1) for name, fit in values.items()}}


def judge(config: RealFeedbackConfig, sets: Sets) -> dict[str, Array]:
    """Ranking → [users, FEEDBACK] of users with rows enough; fitted on one fold, judged on the other, both ways."""
    fold = np.random.default_rng([config.seed, 1]).permutation(len(sets.counts)) % 2
    enough = sets.counts >= config.least
    found = {"random order": sets.anyhow()[enough]}
    for name, (fit, seeds) in rankings(config, sets.names).items():
        begin = time.monotonic()
        tops = [sets.top(crossed(fit, sets, fold, config.seed + seed))[enough] for seed in range(seeds)]
        found[name] = np.mean(tops, axis=0)
        each = ", ".join(f"{top[:, 0].mean():.2f}" for top in tops)
        print(f"{name}: {each} s watched (≤ 180) an item; {time.monotonic() - begin:.1f} s", flush=True)
    found["oracle of watch_180"] = sets.top(sets.feedback[:, 0])[enough]
    return found


def show(config: RealFeedbackConfig, found: dict[str, Array]) -> None:
    """A table for each base."""
    for base in (SIX, ALL, "random order"):
        rows = []
        for name, values in found.items():
            change = compared(config, values, found[base])
            rows.append((name, *(f"{change.estimate[k]:+.1%} [{change.low[k]:+.1%}, {change.high[k]:+.1%}]"
                                 for k in range(len(FEEDBACK)))))
        table(f"Real feedback of the first {config.top}, over {base}, 95% intervals over users",
              ["ranking", *FEEDBACK], rows)


def compared(config: RealFeedbackConfig, values: Array, base: Array) -> Interval:
    """The relative difference of two rankings of the same users."""
    return paired_difference(values, base, draws=config.draws, seed=config.seed)


def write(config: RealFeedbackConfig, found: dict[str, Array], scorers: list[str]) -> None:
    """`table.json`: means of every ranking, and their relative differences with intervals."""
    bases: dict[str, Any] = {}
    for base in (SIX, ALL, "random order", "hand-tuned, six columns"):
        bases[base] = {}
        for name, values in found.items():
            change = compared(config, values, found[base])
            bases[base][name] = {column: [change.estimate[k], change.low[k], change.high[k]]
                                 for k, column in enumerate(FEEDBACK)}
    Path(config.output).mkdir(parents=True, exist_ok=True)
    (Path(config.output) / "table.json").write_text(json.dumps({
        "config": config.to_dict(), "scorers": scorers, "users": len(found[ALL]),
        "means": {name: dict(zip(FEEDBACK, values.mean(0).tolist(), strict=True)) for name, values in found.items()},
        "relative": bases}, indent=1))


if __name__ == "__main__":
    main(start(RealFeedbackConfig, description=__doc__))
