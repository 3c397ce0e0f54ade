"""What a day of so many requests takes, from measured rates and stated assumptions; docs/scale.md explains each line.

    python -m benchmarks.estimate --requests 1e9

The rates are those of one core of the machine that docs/results names; give your own (`benchmarks.scaling`).
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import tyro

from recfuse.runtime.console import table

DAY = 86_400.0


@dataclass(frozen=True, kw_only=True)
class Assumptions:
    """Attributes:
        requests: a day.
        log_bytes, sample_bytes: of a row in memory; log_disk, sample_disk: in Parquet. Measured on the demo's logs
            (state of 53 numbers, 6 fusion parameters, 5 behaviours).
        ingest_rate, training_rate, evaluation_rate: rows, sample-passes, and rows × estimates that a core takes in a
            second.
        efficiency: share of the rates of a core alone that many of them reach together.
        partition_mib: of the shuffle.
        passes: over the samples, of all fits together; training_share: of the users' samples that training reads.
        refits: trainings a day; sweep_trials: trials of one sweep a week.
        serving_rate: requests that a core answers in a second, with the decision log; peak: over the mean.
        hours: within which ingest, and within which each training, has to be done.
        core_hour: price; disk_month: of a TB; keep_days: of logs and samples.
    """

    requests: float = 1e9
    log_bytes: float = 406.0
    log_disk: float = 100.0
    sample_bytes: float = 500.0
    sample_disk: float = 83.0
    ingest_rate: float = 24_500.0
    training_rate: float = 150_000.0
    evaluation_rate: float = 2_000_000.0
    efficiency: float = 0.65
    partition_mib: float = 128.0
    passes: float = 35.0
    training_share: float = 0.1
    refits: float = 4.0
    sweep_trials: float = 36.0
    serving_rate: float = 128.0
    peak: float = 3.0
    hours: float = 2.0
    core_hour: float = 0.04
    disk_month: float = 23.0
    keep_days: float = 30.0


def estimate(given: Assumptions) -> list[tuple[str, str]]:
    """Line, value; in the order of the flow."""
    rows, tb = given.requests, 1e12

    def core_hours(work: float, rate: float) -> float:
        return work / (rate * given.efficiency) / 3600

    ingest = core_hours(rows, given.ingest_rate)
    trained = rows * given.training_share
    training = core_hours(trained * given.passes, given.training_rate)
    sweep = given.sweep_trials * training / 10 / 7  # on a tenth of what a training reads, once a week
    evaluation = core_hours(0.2 * trained * given.refits, given.evaluation_rate)
    serving = rows * given.peak / DAY / (given.serving_rate * given.efficiency)
    partitions = math.ceil(rows * given.log_disk / (given.partition_mib * 2**20))
    disk = given.keep_days * rows * (given.log_disk + given.sample_disk) / tb
    daily = {"ingest": ingest, "training": given.refits * training, "sweeps": sweep, "evaluation": evaluation,
             # Pods come and go with the load: the mean of a day over its peak.
             "serving": 24 * serving / given.peak * 1.3}
    cost = {name: hours * given.core_hour for name, hours in daily.items()}
    cost["storage"] = disk * given.disk_month / 30
    return [
        ("requests a day; a second, mean and peak", f"{rows:,.0f}; {rows / DAY:,.0f}, {given.peak * rows / DAY:,.0f}"),
        ("session logs a day: memory, Parquet", f"{rows * given.log_bytes / tb:.2f} TB, "
                                                f"{rows * given.log_disk / tb:.2f} TB"),
        ("samples a day: memory, Parquet", f"{rows * given.sample_bytes / tb:.2f} TB, "
                                           f"{rows * given.sample_disk / tb:.2f} TB"),
        ("kept", f"{disk:.1f} TB for {given.keep_days:.0f} days"),
        ("shuffle: two exchanges of", f"{rows * given.log_bytes / tb:.2f} TB each, in {partitions:,} partitions"),
        ("ingest", f"{ingest:,.0f} core hours; {ingest / given.hours:,.0f} cores for {given.hours:g} h"),
        ("training, each", f"{trained:,.0f} samples, {training:,.0f} core hours"),
        ("", f"{training / given.hours:,.0f} learners of a core for {given.hours:g} h, "
             f"each of which reads all {trained * given.sample_bytes / 2**30:,.0f} GiB in every pass"),
        ("trainings, sweeps, evaluation a day", f"{daily['training'] + sweep + evaluation:,.0f} core hours"),
        ("serving at peak", f"{serving:,.0f} cores"),
        *((f"cost a day: {name}", f"{value:,.0f}") for name, value in cost.items()),
        ("cost a day", f"{sum(cost.values()):,.0f}, {1e6 * sum(cost.values()) / rows:.2f} a million requests"),
    ]


def main() -> None:
    """Prints assumptions and estimate."""
    given = tyro.cli(Assumptions, description=__doc__)
    table("Assumptions", ["", ""], [(name, f"{value:g}") for name, value in dataclasses.asdict(given).items()])
    table("Estimate", ["", ""], estimate(given))


if __name__ == "__main__":
    main()
