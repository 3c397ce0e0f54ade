"""RLlib's stock MARWIL, new API stack, on a copy of our samples.

Its reward is the sum of the feedback, because it has one value function where ours has a critic per behaviour.
Networks and minibatch are ours; the samples are read as RLlib's documentation says, one step a row. By MARWIL's
defaults the rows stay in the object store (`materialize_data`), and in every pass workers of Ray Data make episodes of
them and run the learner's connectors, because its advantages need the value function as it stands
(`materialize_mapped_data` is False).

Every episode of one step becomes two rows there, of which `loss_mask` takes out the second. RLlib counts both as
trained on; here a sample is a logged step, and a batch holds as many of those as ours.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray.rllib.algorithms.marwil import MARWILConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
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
    """Logged samples/s of the first pass and of later ones, each with the start of its workers; and how often RLlib
    counted a logged sample as trained on."""

    first: float
    later: float
    counted: float


def measure(directory: Path, state: int, actions: int, batch: int, rows: int, passes: int) -> Speed:
    """A pass over the samples and `passes` more. Ray is running."""
    def box(size: int) -> gym.spaces.Box:
        return gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)

    config = (
        MARWILConfig()
        .environment(observation_space=box(state), action_space=box(actions))
        .api_stack(enable_rl_module_and_learner=True, enable_env_runner_and_connector_v2=True)
        .env_runners(num_env_runners=0)
        .learners(num_learners=0)
        .offline_data(input_=[str(directory)], dataset_num_iters_per_learner=1, input_read_method="read_parquet")
        .training(train_batch_size_per_learner=2 * batch, beta=1.0, lr=1e-3)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=list(HIDDEN), fcnet_activation="relu"))
    )
    algorithm = config.build_algo()
    sample = algorithm.offline_data.sample
    masks: list[float] = []
    batches: list[Any] = []

    def counting(**arguments: Any) -> Any:
        found = sample(**arguments)
        if not batches or batches[-1] is not found:  # at the end of a pass it calls itself
            batches[:] = [found]
            masks.append(float(np.asarray(found[DEFAULT_MODULE_ID][Columns.LOSS_MASK]).sum()))
        return found

    algorithm.offline_data.sample = counting

    def run_pass() -> tuple[float, float]:
        """Logged samples/s, and what RLlib says it has trained on so far."""
        masks.clear()
        begin = time.perf_counter()
        while sum(masks) < rows:
            result = algorithm.train()
        trained = float(result[LEARNER_RESULTS][ALL_MODULES][NUM_ENV_STEPS_TRAINED_LIFETIME])
        return sum(masks) / (time.perf_counter() - begin), trained

    try:
        first, trained = run_pass()
        counted = trained / sum(masks)
        return Speed(first, float(np.median([run_pass()[0] for _ in range(passes)])), counted)
    finally:
        algorithm.stop()
