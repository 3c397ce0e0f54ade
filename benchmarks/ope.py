"""Off-policy estimators: speed, coverage of their intervals, and a real bandit whose truth is known.

Speed: NCIS of 1,000,000 requests × 7 behaviours with its bootstrap, on one core. Coverage: how often the 95% interval
holds the truth, over fresh logs of sessions in the simulator, where the truth is the mean over a large simulation of
the policy in question; and the errors over their standard errors, whose mean tells a bias, whose deviation tells
intervals that are too narrow (above 1) or too wide, and whose skewness tells intervals that lie to one side. Of 200
logs a share has a standard error of 1.5 points, of 1,000 of 0.7. Open Bandit: from the log of the uniform policy the
click rate of Bernoulli Thompson sampling, whose truth is in its own log; its propensities move with time, so the policy
in question is its average: how often its log has each item at each place.

    python -m benchmarks.ope                                             # speed
    python -m benchmarks.ope --coverage 200 --world runs/demo/simulation/world [--output runs/coverage]
    python -m benchmarks.ope --open-bandit ../shared/data/open_bandit
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from recfuse.config import Config
from recfuse.evaluation.fitted_q import ActionMoments, Transitions, fit_critics
from recfuse.evaluation.ope import (
    EstimateOptions,
    OffPolicyEstimate,
    direct_method,
    doubly_robust,
    importance_sampling,
    ncis,
)
from recfuse.evaluation.sequential import (
    critic_weights,
    fitted_q_estimate,
    per_decision,
    sequential_doubly_robust,
    trajectory_importance_sampling,
)
from recfuse.evaluation.sessions import Sessions
from recfuse.fusion.policies import FixedGaussian
from recfuse.runtime.console import Progress, start, table
from recfuse.simulation.rollout import Requests, rollout
from recfuse.simulation.world import FEEDBACK, World
from recfuse.stats.gaussian import gaussian_log_density
from recfuse.stats.intervals import ratio_of_sums

WATCHED = ("watch_time", "click", "like")
COLUMNS = [FEEDBACK.index(name) for name in WATCHED]
HORIZON = 3  # requests that the sequential ratios go over


class OpeConfig(Config):
    """What is measured, and on how much."""

    requests: int = Field(1_000_000, ge=0, description="The speed is measured on a log of this many requests; 0 leaves "
                                                       "it out.")
    users: int = Field(50_000, ge=1, description="That log has this many users.")
    coverage: int = Field(0, ge=0, description="Intervals are judged on this many fresh logs; 0 leaves it out.")
    output: str = Field("", description="What each log said is kept here, for a rerun with as many or more; empty "
                                        "keeps nothing.")
    persons: int = Field(1_500, ge=2, description="Each fresh log has this many simulated people.")
    critic_persons: int = Field(3_000, ge=2, description="The log beside it, which critics are fitted to, has this "
                                                         "many people.")
    truth_persons: int = Field(1_000_000, ge=1, description="The truth is read off a simulation of this many people.")
    world: str = Field("runs/demo/simulation/world", description="The fresh logs come from this world, as the job "
                                                                 "simulate writes it.")
    open_bandit: str = Field("", description="The Open Bandit data lies in this directory; empty leaves it out.")


def main(config: OpeConfig) -> None:
    if config.requests:
        speed(config)
    if config.coverage:
        show_coverage(config)
    if config.open_bandit:
        show_open_bandit(Path(config.open_bandit))


def show_coverage(config: OpeConfig) -> None:
    """Prints how often each estimator's interval held the truth, and its errors over their standard errors."""
    coverages = measured(World.load(config.world), config.coverage, config.persons, config.critic_persons,
                         config.truth_persons, Path(config.output) if config.output else None)
    table(f"How often the 95% interval held the truth, {config.coverage} logs of {config.persons} sessions, "
          f"critics from {config.critic_persons} others; in brackets the mean error and half the interval",
          ["estimator", "logs", *WATCHED], [
              (name, of.logs, *(f"{share:.1%} ({bias:+.1%}, {half:.1%})" for share, bias, half in zip(
                  of.share, of.error, of.half, strict=True))) for name, of in coverages.items()])
    table("Errors over their standard errors: mean (bias), deviation (above 1: too narrow), skewness",
          ["estimator", "logs", *WATCHED], [
              (name, of.logs, *(f"{mean:+.2f}, {deviation:.2f}, {skew:+.2f}" for mean, deviation, skew in zip(
                  *of.moments, strict=True))) for name, of in coverages.items()])


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


@dataclass(frozen=True)
class Coverage:
    """What an estimator said of so many logs.

    Attributes:
        logs: those that were not refused.
        share: float64[behaviours], of them, in which the interval held the truth; error, half: means of the estimate's
            error and of half the interval, over the truth.
        moments: mean, deviation and skewness of the error over its standard error, half the interval over 1.96.
    """

    logs: int
    share: np.ndarray
    error: np.ndarray
    half: np.ndarray
    moments: tuple[np.ndarray, np.ndarray, np.ndarray]

    @classmethod
    def of(cls, said: np.ndarray) -> Coverage:
        """Of estimate, low and high over the truth, [logs, 3, behaviours]."""
        estimate, low, high = said[:, 0], said[:, 1], said[:, 2]
        half = (high - low) / 2
        z = 1.96 * (estimate - 1) / half
        centred, deviation = z - z.mean(0), z.std(0)
        return cls(len(said), ((low <= 1) & (high >= 1)).mean(0), estimate.mean(0) - 1, half.mean(0),
                   (z.mean(0), deviation, (centred**3).mean(0) / deviation**3))


def measured(world: World, logs: int, persons: int, critic_persons: int, truth_persons: int,
             output: Path | None = None) -> dict[str, Coverage]:
    """Estimator → how good its intervals are, for the behaviours of WATCHED.

    Only everybody's first session counts, whose beginning no policy has touched. Every log has critics of its own, from
    a second log of other people, so that the error of their fit is another each time.
    """
    world = world.replace(config=world.config.replace(horizon_days=1e-3))
    base = np.linspace(1.0, .2, world.vocabulary.action_size)
    logged, policy = FixedGaussian(base, .5), FixedGaussian(base + np.linspace(.15, -.15, len(base)), .45)
    identity = hashlib.sha256(repr((world.config, persons, critic_persons, truth_persons)).encode()
                              + world.terms.tobytes() + world.logits.tobytes()).hexdigest()[:16]
    kept = output / f"coverage-{identity}.jsonl" if output else None
    lines = _kept_lines(kept)
    if lines:
        truth = {int(horizon): np.array(value) for horizon, value in json.loads(lines[0]).items()}
    else:
        truth = truth_of(world, policy, truth_persons)
        _keep(kept, {horizon: value.tolist() for horizon, value in truth.items()})
    said: dict[str, list[np.ndarray]] = {}
    progress = Progress("coverage", logs, "logs")
    for number in range(logs):
        if number + 1 < len(lines):
            answers = json.loads(lines[number + 1])
        else:
            answers = answers_of_log(world, number, logged, policy, persons, critic_persons, truth)
            _keep(kept, answers)
        for name, of in answers.items():
            said.setdefault(name, []).extend([np.array(of)] if of else [])
        progress.advance(1)
    progress.finish()
    return {name: Coverage.of(np.stack(of)) for name, of in said.items() if of}


def answers_of_log(world: World, number: int, logged: FixedGaussian, policy: FixedGaussian, persons: int,
                   critic_persons: int, truth: dict[int, np.ndarray]) -> dict[str, list[list[float]] | None]:
    """Estimator → estimate, low and high over the truth, [3][behaviours]; None where refused."""
    # Persons of its own, drawn from all tastes, so that no log has a row that the critics were fitted to.
    people = np.random.default_rng(number).integers(10**6, 10**9, persons + critic_persons)
    log, others = (rollout(world, logged, seed=30_000 + number, persons=some)
                   for some in (people[:persons], people[persons:]))
    return {f"{answer.estimator}, {'whole session' if horizon > HORIZON else f'{horizon} requests'}":
            None if answer.refused else (np.stack([answer.estimate, answer.low, answer.high]) / truth[horizon]).tolist()
            for horizon, answer in estimates(log, policy, transitions_of(others))}


def _kept_lines(file: Path | None) -> list[str]:
    """Whole lines; what an interrupted run left of one is cut off."""
    if file is None or not file.is_file():
        return []
    whole = file.read_text().rpartition("\n")
    file.write_text(whole[0] + whole[1])
    return whole[0].splitlines()


def _keep(file: Path | None, line: Mapping[Any, Any]) -> None:
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as out:
            out.write(json.dumps(line) + "\n")


def truth_of(world: World, policy: FixedGaussian, persons: int) -> dict[int, np.ndarray]:
    """Number of first requests → what they bring, per behaviour of WATCHED."""
    horizons, block = (1, HORIZON, world.config.max_requests), 100_000
    total = np.zeros((len(horizons), len(WATCHED)))
    for first in range(0, persons, block):
        rows = rollout(world, policy, seed=10_000 + first // block,
                       persons=np.arange(first, min(first + block, persons)))
        total += [rows.feedback[rows.request < horizon][:, COLUMNS].sum(0, dtype=np.float64) for horizon in horizons]
    return dict(zip(horizons, total / persons, strict=True))


def transitions_of(rows: Requests) -> Transitions:
    """Samples of a log, for critics."""
    order = np.lexsort([rows.request, rows.person])
    state, last = rows.state[order], rows.last[order]
    following = np.where(last[:, None], state, np.roll(state, -1, 0))
    return Transitions(state, rows.action[order], rows.feedback[order][:, COLUMNS], following,
                       last.astype(np.float32), rows.person[order])


def moments_of(policy: FixedGaussian) -> ActionMoments:
    """Mean and variance of a policy that is the same everywhere."""
    return lambda state: (np.tile(policy.mu.astype(np.float64), (len(state), 1)),
                          np.tile(policy.sigma.astype(np.float64)**2, (len(state), 1)))


def estimates(rows: Requests, policy: FixedGaussian, samples: Transitions) -> Iterator[tuple[int, OffPolicyEstimate]]:
    """(requests that it speaks of, estimate) of every estimator."""
    target, behaviour = gaussian_log_density(rows.action, policy.mu, policy.sigma), rows.action_logp
    feedback, options = rows.feedback[:, COLUMNS], EstimateOptions(draws=400)
    first = rows.request == 0
    request = (target[first], behaviour[first], feedback[first], 20.0, rows.person[first])
    moments = moments_of(policy)
    # Critics of single requests come from first requests, as those that they are asked of.
    begin = np.concatenate([[True], samples.done[:-1] > .5])
    alone = Transitions(*(getattr(samples, field.name)[begin] for field in dataclasses.fields(samples)))
    (of_request,), (of_session,) = fit_critics(alone, moments, [0.0]), fit_critics(samples, moments, [1.0])
    critic = (of_request.predict(rows.state[first], rows.action[first]), of_request.expect(rows.state[first], moments))
    yield 1, importance_sampling(*request, options)
    yield 1, ncis(*request, options)
    yield 1, doubly_robust(*request, *critic, options)
    yield 1, doubly_robust(*request, *critic, options, normalise=True)
    yield 1, direct_method(critic[1], feedback[first], rows.person[first], options,
                           fit_error=of_request.fit_error(alone, moments, rows.state[first]))
    sessions = Sessions.of(target, behaviour, feedback, 1.0, 20.0, rows.person, rows.person)
    whole = (np.zeros_like(feedback), np.zeros_like(feedback)) if of_session.refused else (
        of_session.predict(rows.state, rows.action), of_session.expect(rows.state, moments))
    for normalise in (False, True):
        how = dict(normalise=normalise, horizon=HORIZON)
        yield HORIZON, trajectory_importance_sampling(sessions, options, **how)
        yield HORIZON, per_decision(sessions, options, **how)
        if not of_session.refused:
            of_action, of_value = critic_weights(sessions, **how)
            error = of_session.fit_error(samples, moments, rows.state, of_value=of_value, action=rows.action,
                                         of_action=of_action)
            yield 60, sequential_doubly_robust(sessions, *whole, options, fit_error=error, **how)
    error = None if of_session.refused else of_session.fit_error(samples, moments, rows.state[first])
    yield 60, fitted_q_estimate(sessions, whole[1], options, fit_error=error, refused=of_session.refused)


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
    answers = [importance_sampling(*common), ncis(*common), doubly_robust(*common, *critic),
               doubly_robust(*common, *critic, normalise=True), direct_method(critic[1], click[:, None], common[4])]
    truth = ratio_of_sums(thompson["click"], np.ones(len(thompson)))
    return (float(truth.estimate[0]), float(truth.low[0]), float(truth.high[0])), answers


if __name__ == "__main__":
    main(start(OpeConfig, description=__doc__))
