"""RLlib's stock MARWIL, new API stack, on a copy of our samples.

Its reward is the sum of the feedback, because it has one value function where ours has a critic per behaviour. Networks
and minibatch are ours; the samples are read as RLlib's documentation says, one step a row.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray.rllib.algorithms.marwil import MARWILConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
from ray.rllib.utils.metrics import ALL_MODULES, LEARNER_RESULTS, NUM_ENV_STEPS_TRAINED_LIFETIME

HIDDEN = (256, 128)


def write_steps(samples: Path, directory: Path, rows: int) -> None:
    """The first `rows` samples in RLlib's columns."""
    table = pq.ParquetDataset(sorted(samples.glob("*.parquet"))).read().slice(0, rows)
    feedback = np.stack(table["feedback"].to_numpy())
    steps = pa.table({
        "eps_id": pa.array(np.arange(table.num_rows).astype(str)), "obs": table["state"],
        "new_obs": table["next_state"], "actions": table["action"], "rewards": pa.array(feedback.sum(1)),
        "terminateds": pa.array(table["done"].to_numpy() > 0), "truncateds": pa.array(np.zeros(table.num_rows, bool)),
    })
    directory.mkdir(parents=True, exist_ok=True)
    pq.write_table(steps, directory / "steps.parquet", row_group_size=50_000)


@dataclass(frozen=True)
class Speed:
    """Samples/s of the first pass, in which RLlib maps the steps to batches that it keeps, and of later ones; by
    RLlib's own count of samples trained on."""

    first: float
    later: float
    trained: int


def measure(directory: Path, state: int, actions: int, batch: int, rows: int, updates: int) -> Speed:
    """A pass over the samples and `updates` minibatches more. Ray is running."""
    def box(size: int) -> gym.spaces.Box:
        return gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    config = (
        MARWILConfig()
        .environment(observation_space=box(state), action_space=box(actions))
        .api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
        .env_runners(num_env_runners=0)
        .learners(num_learners=0)
        .offline_data(input_=[str(directory)], dataset_num_iters_per_learner=1, input_read_method="read_parquet")
        .training(train_batch_size_per_learner=batch, beta=1.0, lr=1e-3)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=list(HIDDEN), fcnet_activation="relu"))
    )
    algorithm = config.build_algo()

    def train(samples: int, before: int) -> tuple[float, int]:
        begin, trained = time.perf_counter(), before
        while trained - before < samples:
            result = algorithm.train()
            trained = int(result[LEARNER_RESULTS][ALL_MODULES][NUM_ENV_STEPS_TRAINED_LIFETIME])
        return (trained - before) / (time.perf_counter() - begin), trained

    try:
        first, trained = train(rows, 0)
        later, total = train(updates * batch, trained)
        return Speed(first, later, total)
    finally:
        algorithm.stop()
