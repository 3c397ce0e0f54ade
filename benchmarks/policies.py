"""Fusion policies beside each other in the simulator: fresh seeds of world, logs, learner and test.

Prints, per policy and behaviour, the relative difference per user to the logged policy as mean and range over the
seeds, and how often its 95% interval lay above and below zero. CEM and the learned policies play their means, without
exploration, and so does `logged_mean`: what a learned policy gains beyond it is what it has learned.

    python -m benchmarks.policies --exposures DIR --scorer BUNDLE --seeds 3
    python -m benchmarks.policies --world.stay-effect 0       # what is shown has no consequences beyond its page
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydantic import Field

from benchmarks.seeds import repeat
from recfuse.config import Config
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.training import TrainFusionConfig, train_fusion
from recfuse.logs.ingest import IngestConfig, ingest
from recfuse.runtime.console import start, table
from recfuse.simulation.ab_test import AbTestConfig, run_ab_test
from recfuse.simulation.cem import CemConfig
from recfuse.simulation.responses import FEED
from recfuse.simulation.simulate import SimulateConfig, simulate
from recfuse.simulation.world import WorldConfig
from recfuse.stats.experiment import AbResult

SHOWN = ("watch_time", "click", "long_view", "like", "comment", "forward", "follow", "hate")


class PoliciesConfig(Config):
    """What is repeated over seeds."""

    exposures: str = Field("embedded", description=(
        "A directory with KuaiRand files is read; `embedded` is a generator."))
    scorer: str = Field(
        "runs/demo/scenes/bundles", description="Predictions of this bundle, or of one in this directory, are fused.")
    output: str = Field("runs/policies", description="Everything that is made lies beneath this directory.")
    seeds: int = Field(3, description="There are so many repetitions, each with other seeds for everything.", ge=1)
    first_seed: int = Field(100, description="The first repetition has this seed, and the others follow.", ge=0)
    persons: int = Field(50_000, description="Each A/B test takes so many persons.", ge=2)
    world: WorldConfig = Field(WorldConfig(), description="This is what the simulator assumes.")


def main(config: PoliciesConfig) -> list[AbResult]:
    """Runs the repetitions and prints the table."""
    return repeat(config, repetition, show)


def repetition(config: PoliciesConfig, seed: int) -> AbResult:
    """World, logs, samples, policies and test of one seed."""
    out = Path(config.output) / f"seed-{seed}"
    world = config.world.replace(seed=seed)
    simulated = simulate(SimulateConfig(exposures=config.exposures, scorer=config.scorer, output=f"{out}/simulation",
                                        world=world, holdout_persons=0, seed=seed))
    samples = ingest(IngestConfig(logs=str(simulated.logs), output=f"{out}/samples")).samples
    policies = []
    for advantage in ("regressed", "sampled"):
        settings = TwoStageConfig(advantage=advantage, seed=seed)
        trained = train_fusion(TrainFusionConfig(samples=samples, output=f"{out}/{advantage}", learning=settings))
        policies.append(f"two_stage_{advantage}={trained.bundle}")
    return run_ab_test(AbTestConfig(
        simulation=f"{out}/simulation", output=f"{out}/ab_test", persons=config.persons, seed=seed, explore=False,
        policies=("logged", "logged_mean", "cem", *policies), cem=CemConfig(seed=seed))).result


def show(title: str, results: list[AbResult]) -> None:
    """Mean and range over the seeds, and how often the interval excluded zero."""
    arms = [arm.name for arm in results[0].arms[1:]]
    rows = []
    for measure in SHOWN:
        cells = []
        for arm in arms:
            effects = np.array([result.effect(arm, measure) for result in results])
            mean, low, high = effects[:, 0].mean(), effects[:, 0].min(), effects[:, 0].max()
            above, below = int((effects[:, 1] > 0).sum()), int((effects[:, 2] < 0).sum())
            cells.append(f"{mean:+.1%} [{low:+.1%}, {high:+.1%}] {above}↑{below}↓")
        rows.append([measure, *cells])
    assert set(SHOWN) <= set(FEED.measures)
    table(f"{title}: difference to the logged policy, mean [range] over {len(results)} seeds, "
          "intervals above↑ and below↓ zero", ["behaviour", *arms], rows)


if __name__ == "__main__":
    main(start(PoliciesConfig, description=__doc__))
