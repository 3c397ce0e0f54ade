"""Small exposures and a small trained problem for the tests of the scenes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recfuse.logs.exposures import Exposures
from recfuse.scenes.config import ModelConfig
from recfuse.scenes.registry import Registry, Scene
from recfuse.scenes.training.config import TrainingConfig
from recfuse.scenes.training.problem import Problem, prepare
from recfuse.simulation.exposures import generate

REGISTRY = Registry(scenes=(
    Scene(name="0", tasks=("click",)), Scene(name="1", tasks=("click", "long_view"), optional_tasks=("like", "hate")),
    Scene(name="4", tasks=("long_view", "click")),
))
MODEL = ModelConfig(embedding_size=4, history_length=5, experts=3, expert_layers=(8, 6), tower_layers=(5,))
TRAINING = TrainingConfig(workers=0, threads=1, batch_size=32, bfloat16=False, minimum_positives=5)


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def exposures() -> Exposures:
    from recfuse.scenes.dataset import scene_rows

    return scene_rows(generate(seed=1, users=120, items=60, rows=1_500), REGISTRY)


@pytest.fixture(scope="session")
def training_rows(exposures: Exposures) -> np.ndarray:
    return exposures.column("day") < exposures.column("day").max()


@pytest.fixture(scope="session")
def problem(exposures: Exposures, training_rows: np.ndarray) -> Problem:
    return prepare(exposures, training_rows, REGISTRY, MODEL, TRAINING)
