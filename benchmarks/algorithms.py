"""The table of Cai et al. (2023) in the simulator: algorithms beside the cross-entropy method, at three budgets.

The set-up is that of the live test of Cai et al. (WWW 2023): logs of a base, which is one vector by CEM, explored
around; algorithms learn from them alone. Fresh seeds of world, logs, learner and searches. Every person of a test lives
once under every policy, with the same luck. Printed are relative differences per user to three bases: CEM with the
budget that one can pay for (`cem`), CEM that has stopped improving (`cem_converged`), and the same under the floors
that two-stage has (`cem_floors`); with 95% intervals over the seeds, and the figures of their live test.

As there, policies are played without exploration, and the logs are those of the base. With `--logged
hand_tuned` they are those of the declared hand-tuned policy.

A second table takes the effects apart: requests per user, and every behaviour per request. What a policy gains on a
page and loses by shorter or rarer sessions is seen there.

    python -m benchmarks.algorithms --exposures DIR --scorer BUNDLE --seeds 20
    python -m benchmarks.algorithms --exposures DIR --scorer BUNDLE --log-persons 50000 --seeds 3
    python -m benchmarks.algorithms --logged hand_tuned
    python -m benchmarks.algorithms --world.stay-effect 0          # what is shown has no consequences beyond its page
    python -m benchmarks.algorithms --discounts short_term 0.95    # interactions count over the whole session
"""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import SerializeAsAny
from scipy.stats import t as student

from benchmarks.seeds import repeat
from recfuse.behaviours import Vocabulary
from recfuse.bundle import newest_bundle, read_bundle
from recfuse.fusion.inference import FusionActor
from recfuse.fusion.policies import FixedGaussian
from recfuse.learning import registry
from recfuse.learning.algorithms.replay_vector import ReplayVectorConfig
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.options import choose_algorithm
from recfuse.learning.settings import LearningSettings
from recfuse.learning.training import TrainFusionConfig, train_fusion
from recfuse.logs.ingest import IngestConfig, ingest
from recfuse.logs.schema import VOCABULARY_FILE
from recfuse.runtime.console import start, table
from recfuse.simulation.ab_test import Who
from recfuse.simulation.arms import Arm
from recfuse.simulation.cem import CemConfig, search
from recfuse.simulation.experiment import ab_test
from recfuse.simulation.output import WORLD, behaviour_policy, logged_policy
from recfuse.simulation.persons import held_out, persons_of
from recfuse.simulation.responses import FEED
from recfuse.simulation.session_logs import write_logs
from recfuse.simulation.simulate import SimulateConfig, simulate
from recfuse.simulation.world import World, WorldConfig
from recfuse.tune.space import with_discounts

SHOWN = ("watch_time", "click", "forward", "follow", "comment", "like")
# The live test of Cai et al. (2023), per cent over CEM. It had no click, follow and like; its downloads stand for our
# follows.
PUBLISHED = {"actor_critic": (.31, None, -.71, .15, -1.30), "rcpo": (.28, None, -1.08, -.52, -.77),
             "interaction_only": (.12, None, 5.01, 1.95, -.10), "two_stage": (.34, None, 3.32, 1.79, -.62)}
BUDGET = CemConfig(persons=800, population=16, iterations=8)
CONVERGED = CemConfig()
BASES = ("cem", "cem_converged", "cem_floors")


@dataclass(frozen=True, kw_only=True)
class AlgorithmsConfig:
    """Attributes:
        logs: KuaiRand files, or `embedded`.
        scorer: bundle whose predictions are fused, or a directory of bundles.
        output: everything made lies beneath it; a finished seed is taken up.
        algorithms: that learn, beside the bases.
        seeds: repetitions, each with a seed of its own for everything; first_seed: of the first.
        logged: whose logs are learned from; sigma: exploration around CEM's vector, whose length is set to that of the
            hand-tuned one (the length changes no ranking, but how far exploration turns it).
        log_persons: simulated people in the logs.
        persons: each of them lives under every policy; users: whose tastes they have.
        floor: of every short-term behaviour, relative to the logged policy's mean, for what learns under floors and for
            `cem_floors`; floors: of some, in place of it.
        world: what the simulator assumes.
        discounts: behaviour, or `short_term` or `long_term` → γ of its critics, over those of the vocabulary.
        learning: of every algorithm, as far as it has such fields.
    """

    exposures: str = "embedded"
    scorer: str = "runs/demo/scenes/bundles"
    output: str = "runs/algorithms"
    algorithms: tuple[str, ...] = ("interaction_only", "replay_vector", "two_stage")
    seeds: int = 5
    first_seed: int = 300
    logged: Literal["cem", "hand_tuned"] = "cem"
    sigma: float = 0.7
    log_persons: int = 18_000
    persons: int = 20_000
    users: Who = "held_out"
    floor: float = 0.03
    floors: dict[str, float] = field(default_factory=lambda: {"click": 0.0})
    world: WorldConfig = field(default_factory=WorldConfig)
    discounts: dict[str, float] = field(default_factory=dict)
    learning: SerializeAsAny[LearningSettings] = field(default_factory=registry.settings)


def main(config: AlgorithmsConfig) -> np.ndarray:
    """Runs the repetitions, prints the tables; returns means per user [seeds, policies, measures]."""
    return np.stack(repeat(config, once, lambda _, means: show(config, np.stack(means))))


def policies_of(config: AlgorithmsConfig) -> tuple[str, ...]:
    """The rows of `once`: bases, the logged vector as it is, algorithms."""
    return (*BASES, "logged_mean", *config.algorithms)


def once(config: AlgorithmsConfig, seed: int) -> np.ndarray:
    """World, logs, samples, policies and test of one seed; means per user [policies, measures], as in FEED.measures."""
    out = Path(config.output) / f"seed-{seed}"
    done, identity = out / "means.json", repr((dataclasses.replace(config, seeds=1, first_seed=0), seed))
    if done.is_file() and (found := json.loads(done.read_text()))["identity"] == identity:
        return np.array(found["means"])
    simulated = simulate(SimulateConfig(
        exposures=config.exposures, scorer=config.scorer, output=f"{out}/simulation", seed=seed,
        persons=config.log_persons, world=config.world.replace(seed=seed), holdout_persons=0))
    world = World.load(out / "simulation" / WORLD)
    hand_tuned = logged_policy(out / "simulation", world)
    vectors = {"cem": search(world, hand_tuned, BUDGET.replace(seed=seed)).vector}
    logged, logs = hand_tuned, simulated.logs
    if config.logged == "cem":
        logged = explored(vectors["cem"], world, config.sigma)
        logs = out / "logs"
        write_logs(world, logged, logs, persons=persons_of(~held_out(world, SimulateConfig().held_out_users),
                                                           config.log_persons), seed=seed, model_version="cem")
    vocabulary = with_discounts(Vocabulary.load(logs / VOCABULARY_FILE), config.discounts)
    floors = {each.name: config.floors.get(each.name, config.floor) for each in vocabulary.short_term}
    vectors |= {"cem_converged": search(world, hand_tuned, CONVERGED.replace(seed=seed)).vector,
                "cem_floors": search(world, logged, CONVERGED.replace(seed=seed, floors=floors)).vector,
                "logged_mean": logged.mu.astype(np.float64)}
    arms = [Arm(name, FixedGaussian(vectors[name], 1.0)) for name in (*BASES, "logged_mean")]
    arms += learned(config, seed, out, logs, vocabulary)
    users = held_out(world, SimulateConfig().held_out_users)
    tested = ab_test(world, arms, persons=config.persons, seed=seed, paired=True, draws=2,
                     users={"everyone": None, "logged": ~users, "held_out": users}[config.users])
    means = [arm.mean.tolist() for arm in tested.arms]
    done.write_text(json.dumps({"identity": identity, "means": means}))
    return np.array(means)


def learned(config: AlgorithmsConfig, seed: int, out: Path, logs: Path, vocabulary: Vocabulary) -> list[Arm]:
    """The policies of the algorithms from session logs, as arms that do not explore."""
    vocabulary.save(out / VOCABULARY_FILE)
    samples = ingest(IngestConfig(logs=str(logs), output=f"{out}/samples",
                                  vocabulary=str(out / VOCABULARY_FILE))).samples
    arms = []
    for name in config.algorithms:
        settings = registry.adapted(config.learning, name).replace(seed=seed)
        if isinstance(settings, TwoStageConfig | ReplayVectorConfig):
            settings = settings.replace(replay=settings.replay.replace(floor=config.floor, floors=config.floors))
        trained = train_fusion(TrainFusionConfig(samples=samples, scorer=scorer_of(config.scorer),
                                                 output=f"{out}/{name}", learning=settings))
        arms.append(Arm(name, FusionActor.from_bundle(read_bundle(trained.bundle, "fusion"))))
    return arms


def scorer_of(path: str) -> str:
    """The bundle at a path, or the newest of a directory."""
    return str(newest_bundle(path, "scenes"))


def explored(vector: np.ndarray, world: World, sigma: float) -> FixedGaussian:
    """A vector with exploration around it, of the length of the hand-tuned one."""
    parameters = world.vocabulary.fusion_parameters
    tuned = behaviour_policy(world.responses.weights({}, parameters), sigma, parameters)
    return FixedGaussian(vector * np.linalg.norm(tuned.mu) / np.linalg.norm(vector), sigma)


def show(config: AlgorithmsConfig, means: np.ndarray) -> None:
    """The tables after so many seeds, and the questions that they answer.

    Args:
        means: per user [seeds, policies, measures].
    """
    names, seeds = policies_of(config), len(means)
    counts = means[..., [FEED.measures.index(name) for name in SHOWN]]
    requests = means[..., [FEED.measures.index("requests")]]
    for place, base in enumerate(BASES):
        effects = counts / counts[:, [place]] - 1
        rows: list[list[str]] = []
        for index, name in enumerate(names):
            rows.append([name, *cells(effects[:, index].mean(0), spread(effects[:, index]))])
            if name in PUBLISHED and base == "cem":
                published = ("–" if value is None else f"{value:+.2f}%" for value in PUBLISHED[name])
                rows.append(["  Cai et al. (2023)", *published, "–"])
        table(f"Difference to {base} per user, mean ± 95% interval over {seeds} seeds; logs of {config.log_persons:,} "
              f"persons, tested on {config.persons:,}, the same under every policy", ["policy", *SHOWN], rows)
    apart = np.concatenate([requests, counts / requests], -1)
    apart = apart / apart[:, [0]] - 1
    table("The same over cem taken apart: requests per user, and every behaviour per request",
          ["policy", "requests", *SHOWN],
          [[name, *cells(apart[:, index].mean(0), spread(apart[:, index]))] for index, name in enumerate(names)])
    effects = counts / counts[:, [0]] - 1
    if {"two_stage", "interaction_only"} <= set(names):
        mine, other = (effects[:, names.index(name)].mean(0) for name in ("two_stage", "interaction_only"))
        shares = [f"{name} {mine[column] / other[column]:.2f}" if other[column] > 0 else f"{name} – (it gains nothing)"
                  for column, name in enumerate(SHOWN) if name not in ("watch_time", "click")]
        print(f"two-stage's gain as a share of interaction-only's: {', '.join(shares)}")


def cells(means: np.ndarray, halves: np.ndarray) -> list[str]:
    """Each mean with half of its interval, where there is one (`spread`)."""
    return [f"{mean:+.1%} ± {half:.1%}" if np.isfinite(half) else f"{mean:+.1%}"
            for mean, half in zip(means, halves, strict=True)]


def spread(values: np.ndarray) -> np.ndarray:
    """Half of the 95% interval of the mean over the first axis (Student)."""
    seeds = len(values)
    if seeds < 2:
        return np.full(values.shape[1:], np.nan)
    half: np.ndarray = student.ppf(.975, seeds - 1) * values.std(0, ddof=1) / seeds**.5
    return half


if __name__ == "__main__":
    main(start(AlgorithmsConfig, description=__doc__, choose=choose_algorithm))
