"""What a sweep has found: frontier, winner and its worth on users that no trial saw, as files and on the terminal."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recfuse.runtime.console import table
from recfuse.tune import space
from recfuse.tune.frontier import Point, cheapest, closest, finished_points, frontier, keeps
from recfuse.tune.judges import Worths
from recfuse.tune.ledger import FAILED, FINISHED, STOPPED, Ledger, Row
from recfuse.tune.plots import SweepData, text, write
from recfuse.tune.settings import SweepConfig
from recfuse.tune.studies import BUNDLE, EXPLAINED, Study

logger = logging.getLogger("recfuse")
_SILENT = ("how the action moves them is not significant in these samples, so that their policies stay the logged one "
           "and their γ hardly matter")
REPORT, SUMMARY = "report.html", "summary.json"


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


def conclude(config: SweepConfig, study: Study, ledger: Ledger, last: Callable[[Any], Worths]) -> SweepResult:
    """Frontier, winner, its worth on the last users, summary and report."""
    output, measures, floors = Path(config.output), [study.objective, *study.guarded], floors_of(config, study)
    finished = finished_points(ledger.rows, measures)
    if len(finished) > 1 and len({tuple(point.worth.values()) for point in finished}) == 1:
        logger.warning("sweep: all %d trials came out the same: what varies has no effect on these samples (with the "
                       "regressed advantage of the fusion learner: too few of them)", len(finished))
    best, winner = frontier(finished, measures), cheapest(finished, study.objective, floors)
    worths: Worths = {}
    if winner is not None:
        bundle = next(row[BUNDLE] for row in ledger.rows if row["key"] == winner.key)
        worths = last(study.load(bundle))
    output.mkdir(parents=True, exist_ok=True)
    (output / SUMMARY).write_text(json.dumps(_summary(study, floors, best, winner, worths), indent=1))
    report = write(output / REPORT, SweepData(
        points=finished, objective=study.objective, guarded=study.guarded, floors=floors, relative=study.relative,
        winner=winner.key if winner else "", last=worths, rows=ledger.rows, discounts=study.discounts,
        fields=fields_of(study, finished), subject=subject(config, study, ledger, winner, worths)))
    return SweepResult(ledger, best, winner, worths, report)


def _summary(study: Study, floors: Mapping[str, float], best: Sequence[Point], winner: Point | None,
             last: Worths) -> dict[str, Any]:
    """Plain values of `summary.json`."""
    chosen = None if winner is None else {
        "name": winner.name, "choices": dict(winner.choices),
        "judged": {name: list(worth) for name, worth in winner.worth.items()},
        "last": {name: list(worth) for name, worth in last.items()}}
    return {"objective": study.objective, "floors": floors, "frontier": [point.name for point in best],
            "winner": chosen}


def floors_of(config: SweepConfig, study: Study) -> Mapping[str, float]:
    """Floor of every guarded measure that has one."""
    return {name: config.floor.get(name, 0.0) for name in study.guarded} if study.relative else config.floor


def silent(rows: Sequence[Row], guarded: Sequence[str]) -> list[str]:
    """The guarded behaviours of which no trial learned anything: their discounts γ and multipliers λ hardly matter on
    these samples."""
    explained = {name: [row[f"{EXPLAINED}{name}"] for row in rows if row.get(f"{EXPLAINED}{name}") is not None]
                 for name in guarded}
    return [name for name, shares in explained.items() if shares and not any(shares)]


def fields_of(study: Study, finished: Sequence[Point]) -> dict[str, dict[str, Any]]:
    """Trial → value of every field that any trial chose."""
    names = list(dict.fromkeys(name for point in finished for name in point.choices))
    return {point.key: {name: study.value(dict(point.choices), name) for name in names} for point in finished}


def subject(config: SweepConfig, study: Study, ledger: Ledger, winner: Point | None, last: Worths) -> dict[str, str]:
    """Title lines of the report."""
    counts = {status: sum(row["status"] == status for row in ledger.rows) for status in (FINISHED, STOPPED, FAILED)}
    lines = {"trials": ", ".join(f"{count} {status}" for status, count in counts.items() if count),
             "judged by": ("A/B test in the simulator, same luck under every policy" if config.judge == "ab_test" else
                           "a session's value, by ratio of rates") if study.relative else "pooled AUC on the test day",
             "floors": ", ".join(f"{name} {value:+g}" for name, value in floors_of(config, study).items()) or "none"}
    if unlearned := silent(ledger.rows, study.guarded):
        lines["nothing learned of"] = f"{', '.join(unlearned)}: {_SILENT}"
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
    best = sorted(result.frontier, key=lambda point: -point.worth[study.objective].estimate)
    table(f"Points that no other dominates ({len(best)})", ["trial", *measures, "floors"],
          [(f"#{point.number}", *(text(point.worth[name], study.relative) for name in measures),
            "kept" if keeps(point, floors) else "") for point in best])
    table("What they chose", ["trial", "choices"],
          [(f"#{point.number}", space.label(dict(point.choices))) for point in best])
    if unlearned := silent(result.ledger.rows, study.guarded):
        print(f"nothing was learned of {', '.join(unlearned)}: {_SILENT}")
    for row in result.ledger.rows:
        if row["status"] == FAILED:
            print(f"failed: #{row['number']}: {row['reason']}")
    if result.winner is None:
        near = closest(finished_points(result.ledger.rows, measures), floors)
        print("no trial keeps every floor by the lower end of its intervals"
              + (f"; the closest is {near.name}" if near else ""))
    else:
        table(f"The cheapest that keeps every floor: {result.winner.name}",
              ["measure", "floor", "judged", "again, on users no trial saw"],
              [(name, f"{floors[name]:+g}" if name in floors else "", text(result.winner.worth[name], study.relative),
                text(result.last[name], study.relative) if name in result.last else "–") for name in measures])
    print(f"report: {result.report}")
