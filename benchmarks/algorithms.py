"""The source's table in the simulator: every algorithm in a small bucket, the cross-entropy method as the base.

Buckets of 80% (CEM) and 5% each, as in the live test of Cai et al. (WWW 2023); fresh seeds of world, logs, learner and
test. Prints, per algorithm and behaviour, the relative difference per user to CEM with a 95% interval over the seeds,
the source's figures beside it, and the two questions that the table answers: is two-stage best or tied on watch time,
and how much of the interaction-only gain does it have.

As in the source, the logs that everything is learned from are those of the base: CEM's vector, explored around. With
`--logged hand_tuned` they are those of the declared hand-tuned policy, which CEM, searching in the simulator itself,
leaves further behind than any log around that policy has support for.

A second table takes the effects apart: requests per user, and every behaviour per request. What a policy gains on a
page and loses by shorter or rarer sessions is seen there.

    python -m benchmarks.algorithms --logs DIR --scorer BUNDLE --seeds 5
    python -m benchmarks.algorithms --logged hand_tuned
    python -m benchmarks.algorithms --world.stay-effect 0          # what is shown has no consequences beyond its page
    python -m benchmarks.algorithms --world.interaction-value 5    # a like is worth five clicks to whoever likes
    python -m benchmarks.algorithms --discounts short_term 0.95    # interactions count over the whole session
    python -m benchmarks.algorithms --users held_out               # tested on users whom the logs never held
    python -m benchmarks.algorithms --algorithms two_stage --seeds 20    # the literature's fusion benchmark
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
from recfuse.bundle import read_bundle
from recfuse.fusion.inference import FusionActor
from recfuse.fusion.policies import FixedGaussian
from recfuse.learning import registry
from recfuse.learning.options import choose_algorithm
from recfuse.learning.settings import LearningSettings
from recfuse.learning.training import TrainFusionConfig, train_fusion
from recfuse.logs.ingest import IngestConfig, ingest
from recfuse.logs.schema import VOCABULARY_FILE
from recfuse.runtime.console import start, table
from recfuse.simulation.ab_test import AbTestConfig, Who, run_ab_test
from recfuse.simulation.cem import CemConfig, cem_bundle
from recfuse.simulation.experiment import MEASURES
from recfuse.simulation.output import WORLD, behaviour_policy
from recfuse.simulation.persons import held_out, persons_of
from recfuse.simulation.session_logs import write_logs
from recfuse.simulation.simulate import HAND_TUNED, SimulateConfig, simulate
from recfuse.simulation.world import World, WorldConfig
from tune.space import with_discounts

SHOWN = ("watch_time", "forward", "follow", "comment", "like")
# The live test of the source, per cent over CEM. It had no follow and no like; its downloads stand for our follows.
SOURCE = {"actor_critic": (.31, -.71, .15, -1.30), "rcpo": (.28, -1.08, -.52, -.77),
          "interaction_only": (.12, 5.01, 1.95, -.10), "two_stage": (.34, 3.32, 1.79, -.62)}
LITERATURE = 28.0  # total watch time of two-stage over CEM on KuaiRand, per cent, as published


@dataclass(frozen=True, kw_only=True)
class AlgorithmsConfig:
    """Attributes:
        logs: KuaiRand files, or `embedded`.
        scorer: bundle whose predictions are fused, or a directory of bundles.
        output: everything made lies beneath it; a finished seed is taken up.
        algorithms: buckets beside CEM's.
        seeds: repetitions, each with a seed of its own for everything; first_seed: of the first.
        logged: whose logs are learned from; sigma: exploration around CEM's vector, whose length is set to that of the
            hand-tuned one (the length changes no ranking, but how far exploration turns it).
        log_persons: simulated people in the logs.
        persons: in each test; base_share: of them, CEM's bucket.
        users: whose tastes occur in the test.
        world: what the simulator assumes.
        discounts: behaviour, or `short_term` or `long_term` → γ of its critics, over those of the vocabulary.
        learning: of every algorithm, as far as it has such fields.
    """

    logs: str = "embedded"
    scorer: str = "runs/demo/scenes/bundles"
    output: str = "runs/algorithms"
    algorithms: tuple[str, ...] = tuple(SOURCE)
    seeds: int = 5
    first_seed: int = 300
    logged: Literal["cem", "hand_tuned"] = "cem"
    sigma: float = 0.7
    log_persons: int = 6_000
    persons: int = 150_000
    base_share: float = 0.8
    users: Who = "everyone"
    world: WorldConfig = field(default_factory=WorldConfig)
    discounts: dict[str, float] = field(default_factory=dict)
    learning: SerializeAsAny[LearningSettings] = field(default_factory=registry.settings)


def main(config: AlgorithmsConfig) -> np.ndarray:
    """Runs the repetitions, prints the tables; returns effects [seeds, algorithms, measures]."""
    return np.stack(repeat(config, once, lambda _, effects: show(config, np.stack(effects))))


def once(config: AlgorithmsConfig, seed: int) -> np.ndarray:
    """World, logs, samples, policies and test of one seed; effects [algorithms, measures], as in MEASURES."""
    out = Path(config.output) / f"seed-{seed}"
    done, identity = out / "effects.json", repr((dataclasses.replace(config, seeds=1, first_seed=0), seed))
    if done.is_file() and (found := json.loads(done.read_text()))["identity"] == identity:
        return np.array(found["effects"])
    simulated = simulate(SimulateConfig(
        logs=config.logs, scorer=config.scorer, output=f"{out}/simulation", seed=seed, persons=config.log_persons,
        world=config.world.replace(seed=seed), holdout_persons=0))
    logs = simulated.logs if config.logged == "hand_tuned" else base_logs(config, out, seed)
    vocabulary = with_discounts(Vocabulary.load(logs / VOCABULARY_FILE), config.discounts)
    vocabulary.save(out / VOCABULARY_FILE)
    samples = ingest(IngestConfig(logs=str(logs), output=f"{out}/samples",
                                  vocabulary=str(out / VOCABULARY_FILE))).samples
    policies = []
    for name in config.algorithms:
        settings = registry.adapted(config.learning, name).replace(seed=seed)
        trained = train_fusion(TrainFusionConfig(samples=samples, output=f"{out}/{name}", learning=settings))
        policies.append(f"{name}={trained.bundle}")
    small = (1 - config.base_share) / len(policies)
    tested = run_ab_test(AbTestConfig(
        simulation=f"{out}/simulation", output=f"{out}/ab_test", persons=config.persons, seed=seed, users=config.users,
        policies=("cem", *policies), shares=(config.base_share, *[small] * len(policies)), cem=CemConfig(seed=seed)))
    effects = [[tested.result.effect(name, measure)[0] for measure in MEASURES] for name in config.algorithms]
    done.write_text(json.dumps({"identity": identity, "effects": effects}))
    return np.array(effects)


def base_logs(config: AlgorithmsConfig, out: Path, seed: int) -> Path:
    """Session logs of CEM's vector, explored around."""
    world, directory = World.load(out / "simulation" / WORLD), out / "logs"
    (out / "ab_test").mkdir(parents=True, exist_ok=True)
    bundle = cem_bundle(world, out / "simulation", CemConfig(seed=seed), out / "ab_test")
    vector = FusionActor.from_bundle(read_bundle(bundle, "fusion")).act(
        np.zeros((1, world.vocabulary.state_size), np.float32), explore=False).mu[0]
    tuned = behaviour_policy(HAND_TUNED, config.sigma, world.vocabulary.fusion_parameters)
    policy = FixedGaussian(vector * np.linalg.norm(tuned.mu) / np.linalg.norm(vector), config.sigma)
    users = ~held_out(world, SimulateConfig().held_out_users)
    write_logs(world, policy, directory, persons=persons_of(users, config.log_persons), seed=seed, model_version="cem")
    return directory


def show(config: AlgorithmsConfig, effects: np.ndarray) -> None:
    """The tables after so many seeds, and the two questions.

    Args:
        effects: [seeds, algorithms, measures].
    """
    requests = effects[..., MEASURES.index("requests")]
    effects = effects[..., [MEASURES.index(name) for name in SHOWN]]
    per_request = (1 + effects) / (1 + requests[..., None]) - 1
    seeds = len(effects)
    mean, half = effects.mean(0), spread(effects)
    rows: list[list[str]] = []
    for index, name in enumerate(config.algorithms):
        rows.append([name, *cells(mean[index], half[index])])
        if name in SOURCE:
            rows.append(["  the source's", *(f"{value:+.2f}%" for value in SOURCE[name]), "–"])
    table(f"Difference to CEM per user, mean ± 95% interval over {seeds} seeds; "
          f"{config.persons:,} persons, {config.base_share:.0%} of them CEM's", ["algorithm", *SHOWN], rows)
    apart = np.concatenate([requests[..., None], per_request], -1)
    table("The same taken apart: requests per user, and every behaviour per request",
          ["algorithm", "requests", *SHOWN],
          [[name, *cells(m, h)] for name, m, h in zip(config.algorithms, apart.mean(0), spread(apart), strict=True)])
    if "two_stage" not in config.algorithms:
        return
    mine = config.algorithms.index("two_stage")
    print(f"two-stage over CEM on total watch time {cells(mean[mine], half[mine])[0]}, "
          f"from {effects[:, mine, 0].min():+.1%} to {effects[:, mine, 0].max():+.1%} over {seeds} seeds "
          f"(published {LITERATURE:+.0f}%)")
    for index, name in enumerate(config.algorithms):
        if index != mine:
            gap = effects[:, mine] - effects[:, index]
            print(f"two-stage over {name}: " + ", ".join(
                f"{behaviour} {cell}" for behaviour, cell in zip(SHOWN, cells(gap.mean(0), spread(gap)), strict=True)))
    if "interaction_only" in config.algorithms:
        other = config.algorithms.index("interaction_only")
        gains = [f"{name} {mean[mine, column] / mean[other, column]:.2f}" if mean[other, column] > 0 else
                 f"{name} – (interaction-only gains nothing)"
                 for column, name in enumerate(SHOWN) if column > 0]
        print(f"two-stage's gain as a share of interaction-only's: {', '.join(gains)}")


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
