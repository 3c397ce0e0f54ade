"""The learner by itself: an RLlib Learner in this process, fed from Parquet without Ray."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset
import ray
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.multi_rl_module import MultiRLModuleSpec

from recfuse.fusion.config import NetworkConfig
from recfuse.learning import registry
from recfuse.learning.algorithm import FusionAlgorithmConfig
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.learner import FusionLearner
from recfuse.learning.phases import names_of
from recfuse.learning.samples import SampleSet
from recfuse.learning.settings import LearningSettings, StoppingRule

SETTINGS = TwoStageConfig(
    network=NetworkConfig(hidden=(32,), sigma_min=0.2),
    critics=StoppingRule(iterations=10), cloning=StoppingRule(iterations=2), stage_one=StoppingRule(iterations=10),
    stage_two=StoppingRule(iterations=25), minibatch_size=256, window_rows=2048,
    critic_learning_rate=5e-3, auxiliary_learning_rate=2e-3, policy_learning_rate=5e-3,
)


PHASES = names_of(SETTINGS.phases)


def settings_of(algorithm: str = "two_stage", **changes: Any) -> LearningSettings:
    """SETTINGS, as far as the algorithm has them, with these changes."""
    return registry.adapted(SETTINGS, algorithm).replace(**changes)


class Reader:
    """What the learner uses of a Ray DataIterator, over the same files."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def iter_batches(self, *, batch_size: int, batch_format: str, prefetch_batches: int) -> Iterator[pa.Table]:
        assert batch_format == "pyarrow"
        table = pyarrow.dataset.dataset(sorted(self._directory.glob("*.parquet"))).to_table()
        yield from (table.slice(start, batch_size) for start in range(0, table.num_rows, batch_size))


def build(directory: Path, settings: LearningSettings) -> FusionLearner:
    before = ray.is_initialized()
    config = FusionAlgorithmConfig().learn(settings, SampleSet.open(directory, settings.network.action_range))
    spec = config.get_default_rl_module_spec()
    spec.observation_space, spec.action_space = config.observation_space, config.action_space
    learner = FusionLearner(config=config, module_spec=MultiRLModuleSpec(rl_module_specs={"default_policy": spec}))
    learner.build()
    assert ray.is_initialized() == before, "a learner by itself starts no Ray"
    return learner


def fit(learner: FusionLearner, directory: Path, phase: str, passes: int) -> list[dict[str, float]]:
    data = TrainingData(data_iterators=[Reader(directory)])
    results = [learner.update(data, phase=phase, iteration=number) for number in range(passes)]
    return [{name: float(value.peek() if hasattr(value, "peek") else value)
             for name, value in result["default_policy"].items()} for result in results]


def fit_all(learner: FusionLearner, directory: Path, settings: LearningSettings) -> dict[str, list[dict[str, float]]]:
    return {phase.name: fit(learner, directory, phase.name, phase.rule(settings).iterations)
            for phase in settings.phases}
