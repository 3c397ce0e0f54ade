"""The loop closed several times: the learned policy serves and explores, its own logs train the next one.

Every round simulates new persons under the policy of the round before, with exploration on, and learns from these logs
alone. The test is on users whom no log held; there every arm but `logged` plays its mean. CEM searches the same
simulator twice: with its own budget of simulated lives, and with no more of them than the rounds took together. Prints,
per seed and over the seeds, the relative difference per user to the logged policy.

    python -m benchmarks.rounds --exposures DIR --scorer BUNDLE --seeds 3 --rounds 3
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from benchmarks.policies import show
from benchmarks.seeds import repeat
from recfuse.bundle import read_bundle
from recfuse.config import Config
from recfuse.fusion.inference import FusionActor
from recfuse.learning import registry
from recfuse.learning.config import TrainFusionConfig
from recfuse.learning.options import choose_algorithm
from recfuse.learning.settings import LearningSettings
from recfuse.learning.training import train_fusion
from recfuse.logs.config import IngestConfig
from recfuse.logs.ingest import ingest
from recfuse.runtime.console import start
from recfuse.simulation.ab_test import run_ab_test
from recfuse.simulation.cem import cem_bundle
from recfuse.simulation.config import AbTestConfig, CemConfig, SimulateConfig
from recfuse.simulation.persons import held_out, persons_of
from recfuse.simulation.session_logs import write_logs
from recfuse.simulation.simulate import simulate
from recfuse.simulation.world import World, WorldConfig
from recfuse.stats.experiment import AbResult


class RoundsConfig(Config):
    """How often the loop is closed, and over how many seeds."""

    exposures: str = Field("embedded", description=(
        "A directory with KuaiRand files is read; `embedded` is a generator."))
    scorer: str = Field(
        "runs/demo/scenes/bundles", description="Predictions of this bundle, or of one in this directory, are fused.")
    output: str = Field("runs/rounds", description="Everything that is made lies beneath this directory.")
    rounds: int = Field(
        3, description="After the logged policy's, so many logs of learned policies are learned from.", ge=1)
    persons: int = Field(6_000, description="Each round logs the lives of so many persons.", ge=1)
    test_persons: int = Field(120_000, description="Each A/B test takes so many persons.", ge=2)
    seeds: int = Field(3, description="There are so many repetitions, each with other seeds for everything.", ge=1)
    first_seed: int = Field(300, description="The first repetition has this seed, and the others follow.", ge=0)
    world: WorldConfig = Field(WorldConfig(), description="This is what the simulator assumes.")
    learning: LearningSettings = Field(
        default_factory=registry.settings, description="Every round learns with these settings.")


def main(config: RoundsConfig) -> list[AbResult]:
    """Runs the repetitions and prints the table."""
    results = repeat(config, repetition, show)
    print(f"simulated lives: {config.persons * (config.rounds + 1):,} logged in all rounds, "
          f"{lives(CemConfig()):,} searched by cem, {lives(same_budget(config)):,} by cem_same")
    return results


def repetition(config: RoundsConfig, seed: int) -> AbResult:
    """World, rounds and test of one seed."""
    out = Path(config.output) / f"seed-{seed}"
    simulated = simulate(SimulateConfig(
        exposures=config.exposures, scorer=config.scorer, output=f"{out}/simulation", persons=config.persons,
        holdout_persons=0, world=config.world.replace(seed=seed), seed=seed))
    world = World.load(simulated.world)
    persons = persons_of(~held_out(world, SimulateConfig().held_out_users), config.persons)
    logs, policies = Path(simulated.logs), []
    for number in range(config.rounds + 1):
        directory = out / f"round-{number}"
        samples = ingest(IngestConfig(logs=str(logs), output=f"{directory}/samples")).samples
        trained = train_fusion(TrainFusionConfig(samples=samples, output=f"{directory}/fusion",
                                                 learning=config.learning.replace(seed=seed)))
        policies.append(f"round_{number}={trained.bundle}")
        if number < config.rounds:
            logs = directory / "logs"
            actor = FusionActor.from_bundle(read_bundle(trained.bundle, "fusion"))
            # Another seed each round: other luck for the same tastes.
            write_logs(world, actor, logs, persons=persons, seed=1_000 * (number + 1) + seed,
                       model_version=actor.version)
    small = cem_bundle(world, out / "simulation", same_budget(config).replace(seed=seed), out / "cem_same")
    return run_ab_test(AbTestConfig(
        simulation=f"{out}/simulation", output=f"{out}/ab_test", persons=config.test_persons, seed=seed,
        users="held_out", explore=False, cem=CemConfig(seed=seed),
        policies=("logged", "logged_mean", "cem", f"cem_same={small}", *policies))).result


def same_budget(config: RoundsConfig) -> CemConfig:
    """CEM with as many simulated lives as the rounds log together."""
    cem = CemConfig()
    return cem.replace(persons=config.persons * (config.rounds + 1) // (cem.population * cem.iterations))


def lives(cem: CemConfig) -> int:
    """How many persons a search simulates."""
    return cem.persons * cem.population * cem.iterations


if __name__ == "__main__":
    main(start(RoundsConfig, description=__doc__, choose=choose_algorithm))
