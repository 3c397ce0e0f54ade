"""The simulator as an RLlib environment: registered by name, sampled from and learned in by RLlib's own PPO."""

import numpy as np
import pytest
import ray
from ray.rllib.algorithms.ppo import PPOConfig
from ray.tune import register_env

from recfuse.simulation.environment import make_env
from tests.unit.simulation import worlds


@pytest.mark.usefixtures("local_ray")
def test_ppo_learns_in_the_registered_environment(tmp_path):
    worlds.world().save(tmp_path)
    register_env("recfuse_fusion", make_env)
    config = (PPOConfig()
              .environment("recfuse_fusion", env_config={"world": str(tmp_path), "seed": 3})
              .env_runners(num_env_runners=0, num_envs_per_env_runner=4)
              .training(train_batch_size_per_learner=256, minibatch_size=128, num_epochs=1)
              .debugging(seed=0))
    algorithm = config.build_algo()
    try:
        found = algorithm.train()
        sampled = found["env_runners"]
        assert sampled["num_env_steps_sampled"] >= 256
        assert sampled["num_episodes"] > 10
        assert np.isfinite(sampled["episode_return_mean"])
        assert 1 <= sampled["episode_len_mean"] <= worlds.world().config.max_requests
        assert np.isfinite(found["learners"]["default_policy"]["policy_loss"])
    finally:
        algorithm.stop()
    assert ray.is_initialized()
