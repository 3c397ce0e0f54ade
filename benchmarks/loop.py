"""The loop's proof: people who are clients of a server that runs, and candidates whose effects are known.

The simulator's persons ask over HTTP, are shown what the server ranked, tell what they did, leave and come back, in
simulated time (benchmarks.loop_server says how the server reads it). The loop's own cycles collect, look and step:
start, gate, canary at 1, 5, 20 and 50%, promoted or rolled back. Three candidates are rolled out one after the other in
one life of a seed: an equal one, one that costs likes alone of what has a goal or a floor, and a better one. Losses are
against the same persons with the same luck where nothing is deployed.

    python -m benchmarks.loop --seeds 20 --output loop.md
    python -m benchmarks.loop --seeds 20 --no-http          # without a server: the verdicts alone
    python -m benchmarks.loop --seeds 1 --kills             # the same seed twice: undisturbed, then killed
    python -m benchmarks.loop --seeds 0 --rounds 5          # the loop learns by itself from hand-tuned weights
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from benchmarks.loop_candidates import BETTER, EQUAL, WORSE, Search, candidates, effects
from benchmarks.loop_clients import Life, Local
from benchmarks.loop_rounds import rounds
from benchmarks.loop_trial import Kills, Outcome, Trial
from recfuse.config import Config
from recfuse.evaluation.config import Targets
from recfuse.fusion.policies import FixedGaussian
from recfuse.rollout.config import Plan
from recfuse.runtime.console import start
from recfuse.simulation.world import World

SHOWN = ("watch_time", "click", "like", "comment", "forward", "follow")
# Clicks and likes first, and watch time a little too much against: what a feed may have been tuned to by hand.
CLICKS_FIRST = {"click": 1.0, "long_view": 1.0, "watch_time": -0.3, "like": 0.3}
Rows = list[tuple[str, ...]]


class LoopBenchmarkConfig(Config):
    """Who lives, how long, and what is rolled out."""

    world: str = Field("runs/demo/simulation/world", description="Persons live in this world of the job `simulate`.")
    work: str = Field("runs/loop_benchmark", description="Models, logs and states of the trials lie beneath this.")
    output: str = Field("", description="The tables are written to this Markdown file as well; empty for none.")
    seeds: int = Field(2, ge=0, description="So many lives, in each of which the three candidates are rolled out.")
    first_seed: int = Field(0, ge=0, description="The first life has this seed, and the others follow.")
    persons: int = Field(6_000, ge=200, description="So many persons live.")
    max_requests: int = Field(6, ge=1, description="Sessions are cut after so many requests.")
    like_odds: float = Field(1.0, description="Likes have log-odds that are so much higher than in the world.")
    warm_days: float = Field(4.0, gt=0, description="So many days are served and collected before the first rollout.")
    look_days: float = Field(0.5, gt=0, description="So many days lie between two looks.")
    stage_days: float = Field(6.0, gt=0, description="A share without a decision after so many days is rolled back.")
    sigma: float = Field(0.3, gt=0, description="Every policy of the three explores with this standard deviation.")
    like_floor: float = Field(-0.2, ge=-1, le=0, description="Likes may not change by less than this.")
    effect: float = Field(0.25, gt=0, description="Intervals are tightest about this relative effect.")
    truth_persons: int = Field(8_000, ge=2, description="So many persons live under every candidate for the truth.")
    connections: int = Field(32, ge=1, description="So many requests are under way at a time.")
    http: bool = Field(True, description=(
        "Persons ask a server; false asks the pointer's policies in this process, and writes the session log itself."))
    kills: bool = Field(False, description="Each life is lived once more while parts are killed with −9.")
    rounds: int = Field(0, ge=0, description="So many candidates are learned and rolled out by the loop itself.")
    rounds_sigma: float = Field(0.5, gt=0, description="The hand-tuned weights of the rounds explore with this.")
    training: str = Field("", description="YAML file of `recfuse train` for the rounds; empty for its defaults.")

    @property
    def plan(self) -> Plan:
        """Of every rollout."""
        return Plan(stage_hours=24 * self.look_days, stage_days=self.stage_days, targets=Targets(
            goals={"watch_time": 0.0}, floors={"like": self.like_floor}, effect=self.effect))


@dataclass(frozen=True)
class Result:
    """What a life came to.

    Attributes:
        outcomes: of the candidates. brought, nothing: float64[pieces, F + 1], served and where nothing is deployed.
        rows: of the session log in the end. requests: HTTP requests that were answered, again: sent once more.
        seconds: of asking, wall: of all. killed: processes, in words.
    """

    seed: int
    outcomes: tuple[Outcome, ...]
    brought: NDArray[np.float64]
    nothing: NDArray[np.float64]
    rows: int
    requests: int
    again: int
    seconds: float
    wall: float
    killed: str = ""

    def change(self, outcome: Outcome, column: int) -> float:
        """Relative difference to the world where nothing is deployed, of all persons while a candidate was tested."""
        served, nothing = (of[outcome.first:max(outcome.last, outcome.first + 1), column].sum()
                           for of in (self.brought, self.nothing))
        return float(served / nothing - 1)


def main(config: LoopBenchmarkConfig) -> list[Result]:
    """Runs what the config names; prints the tables, and writes them, after every life."""
    world, results, parts = made(config), list[Result](), list[str]()
    begin = time.monotonic()

    def show(*more: str) -> None:
        text = "\n\n".join([*parts, *more, machine(config, time.monotonic() - begin)]) + "\n"
        print(text, flush=True)
        if config.output:
            Path(config.output).write_text(text)

    if config.seeds:
        base = weights(world, CLICKS_FIRST, config.sigma)
        chosen = candidates(world, base, Search(), Path(config.work) / "candidates.json")
        parts.append(markdown("True effects, by simulation with common random numbers", *truth(
            world, base, chosen, config)))
        show()
        for seed in range(config.first_seed, config.first_seed + config.seeds):
            for kills in (None, Kills(seed)) if config.kills else (None,):
                results.append(live(config, world, base, chosen, seed, kills))
                show(markdown("Rollouts", *outcomes(world, results)), summary(results))
        parts += [markdown("Rollouts", *outcomes(world, results)), summary(results)]
    if config.rounds:
        parts.append(markdown(
            "Rounds of the loop by itself; in brackets the change to the same persons where nothing is deployed",
            *rounds(config, world, weights(world, CLICKS_FIRST, config.rounds_sigma))))
        show()
    return results


def made(config: LoopBenchmarkConfig) -> World:
    """The world, with shorter sessions and more likes: both make a floor on likes a matter of days."""
    world = World.load(config.world)
    logits = world.logits.copy()
    logits[..., world.responses.heads.index("like")] += config.like_odds
    return world.replace(logits=logits, config=world.config.replace(max_requests=config.max_requests))


def weights(world: World, named: dict[str, float], sigma: float) -> FixedGaussian:
    """Fusion weights by name; 0 where none is named."""
    return FixedGaussian([named.get(name, 0.0) for name in world.vocabulary.fusion_parameters], sigma)


def live(config: LoopBenchmarkConfig, world: World, base: FixedGaussian, chosen: dict[str, FixedGaussian], seed: int,
         kills: Kills | None) -> Result:
    """The life of a seed, with every candidate's rollout."""
    begin, directory = time.monotonic(), Path(config.work) / f"seed-{seed}{'-kills' if kills else ''}"
    shutil.rmtree(directory, ignore_errors=True)
    warm, longest = round(config.warm_days / config.look_days), round(config.stage_days / config.look_days) + 2
    pieces = warm + len(chosen) * len(config.plan.shares) * longest
    trial = Trial(directory.absolute(), world, base, persons=config.persons, look=config.look_days, pieces=pieces,
                  seed=seed, plan=config.plan, kills=kills)
    found = []
    with trial.served(config.connections) if config.http else nullcontext() as kept:
        if kept is None:
            trial.inside()
        trial.live(warm)
        for name, policy in chosen.items():
            found.append(trial.roll_out(name, policy))
            print(f"seed {seed}: {name} is {found[-1].state} after {found[-1].last - found[-1].first} looks: "
                  f"{found[-1].why}", flush=True)
    other = Life(trial.engine, config.persons, config.look_days, pieces)
    other.until(trial.piece * config.look_days, Local(trial.engine, base))
    killed = f"{kills.loops} loops, {kills.replicas} replicas" if kills else ""
    return Result(seed, tuple(found), trial.life.brought, other.brought, trial.rows, kept.sent if kept else 0,
                  kept.again if kept else 0, kept.seconds if kept else 0.0, time.monotonic() - begin, killed)


def truth(world: World, base: FixedGaussian, chosen: dict[str, FixedGaussian],
          config: LoopBenchmarkConfig) -> tuple[Sequence[str], Rows]:
    """A line per candidate: its weights, and what it changes."""
    result = effects(world, base, chosen, config.truth_persons, 1_000_003)
    rows = [(name, " ".join(f"{value:.2f}" for value in policy.mu.tolist()), *(
        "{:+.1%} [{:+.1%}, {:+.1%}]".format(*result.effect(name, measure)) for measure in SHOWN))
        for name, policy in {"base": base, **chosen}.items() if name != "base"]
    return ("candidate", f"weights of {', '.join(world.vocabulary.fusion_parameters)}", *SHOWN), rows


def outcomes(world: World, results: Sequence[Result]) -> tuple[Sequence[str], Rows]:
    """A line per seed and candidate."""
    watch, like = world.columns(("watch_time", "like"))
    rows = [(str(result.seed), each.name, each.state, " → ".join(
        step.removeprefix("canary at ") for step in each.path[1:]), str(each.last - each.first),
        f"{result.change(each, watch):+.1%}", f"{result.change(each, like):+.1%}", result.killed or "–")
        for result in results for each in result.outcomes]
    return ("seed", "candidate", "in the end", "shares", "looks", "watch time of all meanwhile",
            "likes of all meanwhile", "killed"), rows


def summary(results: Sequence[Result]) -> str:
    """What the outcomes say of what was to be shown, in sentences."""
    def of(name: str) -> list[Outcome]:
        return [each for result in results if not result.killed for each in result.outcomes if each.name == name]

    better, equal, worse = of(BETTER), of(EQUAL), of(WORSE)
    requests, seconds = sum(result.requests for result in results), sum(result.seconds for result in results)
    lines = [
        f"The better one was promoted in {sum(each.state == 'promoted' for each in better)} of {len(better)} lives, "
        f"the equal one in {sum(each.state == 'promoted' for each in equal)}. The worse one was rolled back in "
        f"{sum(each.state == 'rolled back' for each in worse)}, and had 50% of the users in "
        f"{sum(each.share >= .5 for each in worse)}.",
        *([f"{requests:,} requests were answered, {requests / seconds:,.0f} a second while persons asked, "
           f"{sum(result.again for result in results):,} were sent again."] if requests else [])]
    asked = sum(int(result.brought[:, -1].sum()) for result in results)
    rows = sum(result.rows for result in results)
    lines.append(f"Persons were shown {asked:,} pages; the session logs have {rows:,} rows.")
    plain = {result.seed: result for result in results if not result.killed}
    lines += [f"Seed {result.seed} with {result.killed} killed: the steps are "
              f"{'the same' if _paths(result) == _paths(plain[result.seed]) else 'others'}."
              for result in results if result.killed]
    return "\n".join(lines)


def _paths(result: Result) -> list[tuple[str, ...]]:
    return [each.path for each in result.outcomes]


def markdown(title: str, heads: Sequence[str], rows: Rows) -> str:
    """A table."""
    lines = [f"**{title}**", "", f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def machine(config: LoopBenchmarkConfig, seconds: float) -> str:
    """Where and how it ran."""
    import ray

    return (f"`python -m benchmarks.loop {' '.join(sys.argv[1:])}`; {seconds / 60:.0f} min; {os.cpu_count()} cores, "
            f"{platform.machine()}; Python {platform.python_version()}, Ray {ray.__version__}, numpy {np.__version__}; "
            f"{config.persons:,} persons, sessions of at most {config.max_requests} requests, likes "
            f"{config.like_odds:+g} in log-odds, a look every {24 * config.look_days:g} simulated hours, like floor "
            f"{config.like_floor:+.0%}.")


if __name__ == "__main__":
    main(start(LoopBenchmarkConfig, description=__doc__))
