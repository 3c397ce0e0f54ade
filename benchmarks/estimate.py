"""What a day of so many requests takes, from measured rates and stated assumptions; docs/scale.md explains each line.

    python -m benchmarks.estimate --requests 1e9

The rates are those of one core of the machine that docs/results names; give your own (`benchmarks.scaling`).
"""

from __future__ import annotations

import math

import tyro
from pydantic import Field

from recfuse.config import Config
from recfuse.runtime.console import table

DAY = 86_400.0


class Assumptions(Config):
    """What a day is made of; sizes and rates were measured on the demo's logs."""

    requests: float = Field(1e9, gt=0, description="A day brings this many requests.")
    log_bytes: float = Field(406.0, gt=0, description="A row of a session log takes this many bytes in memory (state of"
                                                      " 53 numbers, 6 fusion parameters, 5 behaviours).")
    log_disk: float = Field(100.0, gt=0, description="A row of a session log takes this many bytes in Parquet.")
    sample_bytes: float = Field(500.0, gt=0, description="A sample takes this many bytes in memory.")
    sample_disk: float = Field(83.0, gt=0, description="A sample takes this many bytes in Parquet.")
    ingest_rate: float = Field(24_500.0, gt=0, description="A core ingests this many rows in a second.")
    training_rate: float = Field(150_000.0, gt=0, description="A core makes passes over this many samples in a second.")
    evaluation_rate: float = Field(2_000_000.0, gt=0, description="A core takes this many rows × estimates a second.")
    efficiency: float = Field(0.65, gt=0, le=1, description="Many cores together reach this share of the rates of a "
                                                            "core alone.")
    partition_mib: float = Field(32.0, gt=0, description="A partition of the shuffle has this many MiB.")
    passes: float = Field(35.0, ge=0, description="All fits of a training together make this many passes over the "
                                                  "samples.")
    training_share: float = Field(0.1, gt=0, le=1, description="Training reads this share of the users' samples.")
    refits: float = Field(4.0, ge=0, description="A day has this many trainings.")
    sweep_trials: float = Field(36.0, ge=0, description="A week has one sweep of this many trials.")
    serving_rate: float = Field(128.0, gt=0, description="A core answers this many requests in a second, with the "
                                                         "decision log.")
    peak: float = Field(3.0, ge=1, description="The largest rate of requests is this many times the mean.")
    hours: float = Field(2.0, gt=0, description="Ingest, and each training, has to be done within this many hours.")
    core_hour: float = Field(0.04, ge=0, description="An hour of a core costs this much.")
    disk_month: float = Field(23.0, ge=0, description="A TB of storage costs this much a month.")
    keep_days: float = Field(30.0, ge=0, description="Logs and samples are kept for this many days.")


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
        ("shuffle: one exchange of", f"{rows * given.log_bytes / tb:.2f} TB, in {partitions:,} partitions"),
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
    table("Assumptions", ["", ""], [(name, f"{value:g}") for name, value in given.to_dict().items()])
    table("Estimate", ["", ""], estimate(given))


if __name__ == "__main__":
    main()
