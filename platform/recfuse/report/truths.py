"""What the simulator says to the questions of an evaluation, where the held-out log comes from it."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

from recfuse.evaluation.estimator import CHANGED_REQUEST, FOLLOWED_REQUEST, USER_OVER_TIME, WHOLE_SESSION
from recfuse.evaluation.files import METRICS, read_json, write_whole
from recfuse.report.config import ReportConfig
from recfuse.simulation.arms import read_arm
from recfuse.simulation.output import HOLDOUT, WORLD, held_out_share, logged_policy
from recfuse.simulation.persons import held_out, persons_of
from recfuse.simulation.truths import Truth, truths
from recfuse.simulation.world import World

logger = logging.getLogger("recfuse")
_SEED = 104_729  # apart from those of the logs, so that no truth has a log's luck


def simulated(config: ReportConfig) -> bool:
    """Whether the held-out log was written by the simulation that the report reads."""
    simulation = Path(config.simulation)
    return (Path(config.holdout).resolve() == (simulation / HOLDOUT).resolve()
            and (simulation / WORLD).is_dir() and (simulation / METRICS).is_file())


def truths_of(config: ReportConfig) -> dict[str, dict[str, list[float | None]]]:
    """Question → change from the logged policy and its error, [m] each, of the vocabulary's behaviours.

    People have the tastes of those of the held-out log, and lives of their own. Empty where the log is not of the
    simulation, or only a part of it counts.
    """
    if not (config.truth_persons and simulated(config)) or config.after or config.new_users:
        return {}
    simulation = Path(config.simulation)
    world = World.load(simulation / WORLD)
    policy = read_arm(f"policy={config.fusion}", simulation, world).policy
    out = held_out(world, held_out_share(simulation))
    persons = persons_of(out if out.any() else ~out, config.truth_persons)
    found = truths(world, logged_policy(simulation, world), policy, persons=persons, seed=_SEED + config.seed,
                   explore=config.explore, discount=config.session_discount)
    by_question = {CHANGED_REQUEST: found.changed_request, FOLLOWED_REQUEST: found.followed_request,
                   WHOLE_SESSION: found.whole_session, USER_OVER_TIME: found.user_over_time}
    return {question.name: _plain(truth) for question, truth in by_question.items()}


def keep_truths(config: ReportConfig) -> None:
    """Writes the truths beside the estimates, into `metrics.json`, where there are any."""
    found, path = truths_of(config), Path(config.output) / METRICS
    if found:
        logger.info("evaluate: the truth beside the estimates is that of %s simulated persons",
                    f"{config.truth_persons:,}")
        metrics = read_json(path)
        metrics["off_policy"]["truths"] = found
        write_whole(path, json.dumps(metrics, indent=1))


def _plain(truth: Truth) -> dict[str, list[float | None]]:
    return {key: [float(value) if math.isfinite(value) else None for value in getattr(truth, key)]
            for key in ("change", "error")}
