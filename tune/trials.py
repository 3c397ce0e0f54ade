"""What a sweep does: the trials that are left, then its conclusion."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from recfuse.runtime.console import table
from recfuse.tune import space
from recfuse.tune.conclusion import SweepResult, conclude, show
from recfuse.tune.fusion import fusion_study
from recfuse.tune.ledger import FAILED, Ledger
from recfuse.tune.scenes import scenes_study
from recfuse.tune.search import at_once, key_of, planned, run_trials
from recfuse.tune.settings import SweepConfig
from recfuse.tune.space import Assignment
from recfuse.tune.studies import Study


def sweep(config: SweepConfig, output: Path) -> SweepResult:
    """Runs the trials that the ledger lacks, judges the winner, and prints what was found."""
    study, identity, last = fusion_study(config) if config.learner == "fusion" else scenes_study(config)
    assignments = planned(config.space, config.search)
    for assignment in assignments:
        study.check(assignment)
    ledger = Ledger(output, identity[:16])
    if config.dry_run:
        announce(config, study, assignments, ledger, identity)
        return SweepResult(ledger, [], None, {}, None)
    ledger.set_aside(identity.parts)
    if config.retry_failed:
        ledger.drop(FAILED)
    run_trials(study, config.space, config.search, ledger, identity, output / "tune")
    result = conclude(config, study, ledger, last)
    show(config, study, result)
    return result


def announce(config: SweepConfig, study: Study, assignments: list[Assignment], ledger: Ledger, identity: str) -> None:
    """Prints what would run and what it would cost."""
    left = [assignment for assignment in assignments if key_of(assignment, identity) not in ledger.keys]
    count = len(left) if assignments else max(0, config.search.samples - len(ledger.rows))
    table("Trials that would run", ["trial", "passes × samples, at most"],
          [(space.label(assignment), f"{study.limit(assignment):,}") for assignment in left] if assignments else
          [(f"{count} trials that {config.search.searcher} chooses", f"{study.limit({}):,} each")])
    timed = [row["seconds"] for row in ledger.rows if row.get("seconds")]
    most = sum(study.limit(assignment) for assignment in left) if assignments else count * study.limit({})
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
