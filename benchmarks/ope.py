"""Off-policy estimators: speed, coverage of their intervals, and a real bandit whose truth is known.

Speed: NCIS of 1,000,000 requests × 7 behaviours with its bootstrap, on one core. Coverage: policies that the product
has learned are judged by fresh logs of the world of a demo (`benchmarks.ope_coverage`): bias, spread and half interval
of every estimator, in percent of the log's mean, and how often its intervals hold the truth of its own question and
that of an A/B test. Of 200 logs a share has a standard error of 1.5 points. Open Bandit: from the log of the uniform
policy the click rate of Bernoulli Thompson sampling, whose truth is in its own log; its propensities move with time, so
the policy in question is its average: how often its log has each item at each place.

    python -m benchmarks.ope                                             # speed
    python -m benchmarks.ope --requests 0 --coverage 200 --run runs/demo [--output runs/coverage]
    python -m benchmarks.ope --open-bandit ../shared/data/open_bandit
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field

from benchmarks.ope_coverage import COLUMNS, coverages, measured, read_setting, table_of
from recfuse.config import Config
from recfuse.evaluation.config import EvaluateConfig
from recfuse.evaluation.ope import (
    EstimateOptions,
    OffPolicyEstimate,
    direct_method,
    doubly_robust,
    importance_sampling,
    ncis,
)
from recfuse.runtime.console import start, table
from recfuse.stats.intervals import ratio_of_sums


class OpeConfig(Config):
    """What is measured, and on how much."""

    requests: int = Field(1_000_000, ge=0, description="The speed is measured on a log of this many requests; 0 leaves "
                                                       "it out.")
    users: int = Field(50_000, ge=1, description="That log has this many users.")
    coverage: int = Field(0, ge=0, description="Intervals are judged on this many fresh logs; 0 leaves it out.")
    run: str = Field("runs/demo", description="The world, the samples and the policies are those of this output of the "
                                              "demo.")
    policies: tuple[str, ...] = Field(
        ("two_stage=fusion", "cem=ab_test"), min_length=1,
        description="These are judged, written NAME=PATH; a path is of fusion bundles, within the run or absolute.")
    behaviours: tuple[str, ...] = Field(("watch_time", "like"), description="Tables show these behaviours.")
    output: str = Field("", description="What each log said is kept here, for a rerun with as many or more; empty "
                                        "keeps nothing.")
    persons: int = Field(2_000, ge=2, description="Each fresh log has this many simulated people.")
    critic_rows: int = Field(EvaluateConfig().critic_rows, ge=0, description=(
        "Critics are fitted to this many samples of the run; 0 leaves their estimators out, which take most of the "
        "time."))
    truth_persons: int = Field(18_000, ge=2, description="The truth is read off lives of this many people.")
    estimators: tuple[str, ...] = Field((), description="These estimators are judged, by their names in the tables; "
                                                        "all where empty.")
    open_bandit: str = Field("", description="The Open Bandit data lies in this directory; empty leaves it out.")


def main(config: OpeConfig) -> None:
    if config.requests:
        speed(config)
    if config.coverage:
        show_coverage(config)
    if config.open_bandit:
        show_open_bandit(Path(config.open_bandit))


def show_coverage(config: OpeConfig) -> None:
    """Prints a table per policy: how far every estimator was off, and how often its intervals held the truth."""
    run, pairs = Path(config.run), [text.partition("=") for text in config.policies]
    output = Path(config.output) if config.output else None
    setting = read_setting(run, {name: str(run / path) for name, _, path in pairs}, persons=config.persons,
                           truth_persons=config.truth_persons, critic_rows=config.critic_rows, output=output,
                           estimators=config.estimators)
    found = measured(setting, config.coverage, output)
    behaviours = setting.world.vocabulary.behaviour_names
    for subject in setting.subjects:
        for name in config.behaviours:
            place = behaviours.index(name)
            truth = "; ".join(f"{question} {change[place]:+.1%} ± {subject.error[question][place]:.1%}"
                              for question, change in subject.truth.items())
            table(f"{subject.name}, {name}; truth by {config.truth_persons:,} persons: {truth}", COLUMNS,
                  table_of(coverages(subject, found[subject.name], place)))


def show_open_bandit(directory: Path) -> None:
    """Prints the estimates of Thompson sampling's click rate beside the truth."""
    truth, answers = open_bandit(directory)
    low, high = truth[1:]
    table(f"Open Bandit, men: click rate of Thompson sampling from the uniform policy's log; truth in its own log "
          f"{truth[0]:.4f} [{low:.4f}, {high:.4f}]", ["estimator", "estimate", "95% interval", "ESS", "off by"], [
              (answer.estimator, f"{answer.estimate[0]:.4f}", f"[{answer.low[0]:.4f}, {answer.high[0]:.4f}]",
               f"{answer.ess[0]:,.0f}", f"{answer.estimate[0] / truth[0] - 1:+.1%}") for answer in answers])


def speed(config: OpeConfig) -> None:
    """Prints seconds of NCIS, the best of three."""
    rng = np.random.default_rng(0)
    behaviour = rng.normal(size=config.requests)
    target = behaviour + .3 * rng.normal(size=config.requests)
    feedback = rng.random((config.requests, 7))
    user = rng.integers(0, config.users, config.requests)
    seconds = []
    for _ in range(3):
        begin = time.perf_counter()
        ncis(target, behaviour, feedback, 10.0, user)
        seconds.append(time.perf_counter() - begin)
    print(f"NCIS of {config.requests:,} requests × 7 behaviours, {config.users:,} users, 1,000 bootstrap draws: "
          f"{min(seconds):.2f} s (best of {', '.join(f'{s:.2f}' for s in seconds)}; {os.cpu_count()} cores, one used)")


def open_bandit(directory: Path) -> tuple[tuple[float, float, float], list[OffPolicyEstimate]]:
    """((truth, its 95% interval), estimates): the click rate of Thompson sampling from the uniform policy's log."""
    uniform, thompson = (pd.read_csv(directory / f"{name}_men.csv") for name in ("random", "bts"))
    places, items = 3, 1 + max(uniform["item_id"].max(), thompson["item_id"].max())
    def cell(log: pd.DataFrame) -> np.ndarray:
        return np.asarray((log["position"] - 1) * items + log["item_id"])

    shown = np.bincount(cell(thompson), minlength=places * items).reshape(places, items)
    policy = shown / shown.sum(1, keepdims=True)
    here, click = cell(uniform), uniform["click"].to_numpy(np.float64)
    place = uniform["position"].to_numpy() - 1
    with np.errstate(divide="ignore"):
        log_prob = np.log(policy.ravel()[here])
    behaviour = np.log(uniform["propensity_score"].to_numpy())
    # Click rates per item and place, each half of the log from the other, drawn to the half's mean by 100 impressions.
    half, rates = np.arange(len(uniform)) % 2, np.empty((len(uniform), items))
    for fold in (0, 1):
        other = half != fold
        clicks, rows = (np.bincount(here[other], weight, places * items) for weight in (click[other], None))
        rate = (clicks + 100 * click[other].mean()) / (rows + 100)
        rates[half == fold] = rate.reshape(places, items)[place[half == fold]]
    critic = (rates[np.arange(len(uniform)), uniform["item_id"]][:, None], (policy[place] * rates).sum(1)[:, None])
    common = (log_prob, behaviour, click[:, None], np.inf, np.arange(len(uniform)))
    # The log has 46 clicks, of which too few are weighed for the job to give an interval; here it is asked for.
    few = EstimateOptions(min_events=0.0)
    answers = [importance_sampling(*common, few), ncis(*common, few), doubly_robust(*common, *critic, few),
               doubly_robust(*common, *critic, few, normalise=True),
               direct_method(critic[1], click[:, None], common[4])]
    truth = ratio_of_sums(thompson["click"], np.ones(len(thompson)))
    return (float(truth.estimate[0]), float(truth.low[0]), float(truth.high[0])), answers


if __name__ == "__main__":
    main(start(OpeConfig, description=__doc__))
