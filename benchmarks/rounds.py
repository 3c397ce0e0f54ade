"""The loop closed several times: the learned policy serves and explores, its own logs train the next one.

Every round simulates new persons under the policy of the round before, with exploration on, and learns from these logs
alone; the test is on users whom no log held. CEM searches the same simulator twice: with its own budget of simulated
lives, and with no more of them than the rounds took together. Prints, per seed and over the seeds, the relative
difference per user to the logged policy.

    python -m benchmarks.rounds --logs DIR --scorer BUNDLE --seeds 3 --rounds 3
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import SerializeAsAny

from benchmarks.policies import show
from benchmarks.seeds import repeat
from recfuse.bundle import read_bundle
from recfuse.config import require
from recfuse.fusion.inference import FusionActor
from recfuse.learning import registry
from recfuse.learning.options import choose_algorithm
from recfuse.learning.settings import LearningSettings
from recfuse.learning.training import TrainFusionConfig, train_fusion
from recfuse.logs.ingest import IngestConfig, ingest
from recfuse.runtime.console import start
from recfuse.simulation.ab_test import AbResult, AbTestConfig, CemConfig, cem_bundle, run_ab_test
from recfuse.simulation.rollout import write_logs
from recfuse.simulation.simulate import SimulateConfig, held_out, persons_of, simulate
from recfuse.simulation.world import World, WorldConfig


@dataclass(frozen=True, kw_only=True)
class RoundsConfig:
    """Attributes:
        logs: KuaiRand files, or `embedded`; scorer: bundle whose predictions are fused, or a directory of bundles.
        output: everything made lies beneath it.
        rounds: how often the learned policy's own logs are learned from, after the logged policy's.
        persons: whose lives are logged in each round.
        test_persons: in each A/B test.
        seeds: repetitions, each with a seed of its own for everything; first_seed: of the first.
        world: what the simulator assumes; learning: settings of every round.
    """

    logs: str = "embedded"
    scorer: str = "runs/demo/scenes/bundles"
    output: str = "runs/rounds"
    rounds: int = 3
    persons: int = 6_000
    test_persons: int = 120_000
    seeds: int = 3
    first_seed: int = 300
    world: WorldConfig = field(default_factory=WorldConfig)
    learning: SerializeAsAny[LearningSettings] = field(default_factory=registry.settings)

    def __post_init__(self) -> None:
        require(self.rounds >= 1, "rounds", self.rounds, "an integer ≥ 1")
        require(self.seeds >= 1, "seeds", self.seeds, "an integer ≥ 1")


def main(config: RoundsConfig) -> list[AbResult]:
    """Runs the repetitions and prints the table."""
    results = repeat(config, once, show)
    print(f"simulated lives: {config.persons * (config.rounds + 1):,} logged in all rounds, "
          f"{lives(CemConfig()):,} searched by cem, {lives(same_budget(config)):,} by cem_same")
    return results


def once(config: RoundsConfig, seed: int) -> AbResult:
    """World, rounds and test of one seed."""
    out = Path(config.output) / f"seed-{seed}"
    simulated = simulate(SimulateConfig(
        logs=config.logs, scorer=config.scorer, output=f"{out}/simulation", persons=config.persons, holdout_persons=0,
        world=dataclasses.replace(config.world, seed=seed), seed=seed))
    world = World.load(simulated.world)
    persons = persons_of(~held_out(world, SimulateConfig().held_out_users), config.persons)
    logs, policies = Path(simulated.logs), []
    for number in range(config.rounds + 1):
        here = out / f"round-{number}"
        samples = ingest(IngestConfig(logs=str(logs), output=f"{here}/samples")).samples
        trained = train_fusion(TrainFusionConfig(samples=samples, output=f"{here}/fusion",
                                                 learning=config.learning.replace(seed=seed)))
        policies.append(f"round_{number}={trained.bundle}")
        if number < config.rounds:
            logs = here / "logs"
            actor = FusionActor.from_bundle(read_bundle(trained.bundle, "fusion"))
            # Another seed each round: other luck for the same tastes.
            write_logs(world, actor, logs, persons=persons, seed=1_000 * (number + 1) + seed,
                       model_version=actor.version)
    small = cem_bundle(world, Path(f"{out}/simulation"), dataclasses.replace(same_budget(config), seed=seed),
                       out / "cem_same")
    return run_ab_test(AbTestConfig(
        simulation=f"{out}/simulation", output=f"{out}/ab_test", persons=config.test_persons, seed=seed,
        users="held_out", cem=CemConfig(seed=seed),
        policies=("logged", "logged_mean", "cem", f"cem_same={small}", *policies))).result


def same_budget(config: RoundsConfig) -> CemConfig:
    """CEM with as many simulated lives as the rounds log together."""
    cem = CemConfig()
    return dataclasses.replace(cem, persons=config.persons * (config.rounds + 1) // (cem.population * cem.iterations))


def lives(cem: CemConfig) -> int:
    """How many persons a search simulates."""
    return cem.persons * cem.population * cem.iterations


if __name__ == "__main__":
    main(start(RoundsConfig, description=__doc__, choose=choose_algorithm))
