"""The simulator as Gymnasium environments, and the rewards that they give."""

import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from recfuse.config import InvalidFieldError
from recfuse.simulation.environment import ENVIRONMENT, FusionEnv, FusionVectorEnv, make_env, rewards
from recfuse.simulation.responses import FEED
from tests.unit.simulation import worlds


def test_gymnasium_accepts_the_environment():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it advises against unbounded spaces, which states and fusion vectors have
        check_env(FusionEnv(worlds.world(), seed=2), skip_render_check=True)


def test_gymnasium_makes_it_by_its_name():
    world = worlds.world()
    one = gymnasium.make(ENVIRONMENT, world=world, seed=2)
    many = gymnasium.make_vec(ENVIRONMENT, 3, world=world, seed=2)
    assert one.reset()[0].shape == (world.vocabulary.state_size,)
    assert many.reset()[0].shape == (3, world.vocabulary.state_size)


def test_a_world_on_disk_becomes_an_environment(tmp_path):
    worlds.world().save(tmp_path)
    state, _ = make_env({"world": str(tmp_path), "seed": 2}).reset()
    np.testing.assert_array_equal(state, FusionEnv(worlds.world(), seed=2).reset()[0])
    with pytest.raises(InvalidFieldError, match=r"env_config: got \['seed'\]; allowed: a mapping with world"):
        make_env({"seed": 1})


def test_the_vector_environment_runs_and_resets_itself():
    world = worlds.world()
    env = FusionVectorEnv(world, num_envs=32, seed=1)
    assert isinstance(env, gymnasium.vector.VectorEnv)
    states, _ = env.reset()
    assert states.shape == env.observation_space.shape == (32, world.vocabulary.state_size)
    ended = 0
    for _ in range(20):
        states, reward, terminated, truncated, info = env.step(np.ones((32, 6), np.float32))
        assert np.isfinite(states).all()
        assert states.dtype == np.float32
        np.testing.assert_allclose(reward, rewards(world, info["feedback"]))
        over = terminated | truncated
        ended += int(over.sum())
        if over.any():
            np.testing.assert_array_equal(info["_final_obs"], over)
    assert ended > 0


def test_the_same_seed_gives_the_same_episodes():
    def play(seed):
        env = FusionVectorEnv(worlds.world(), num_envs=8, seed=seed)
        env.reset()
        return np.stack([env.step(np.ones((8, 6), np.float32))[4]["feedback"] for _ in range(10)])

    np.testing.assert_array_equal(play(1), play(1))
    assert not np.array_equal(play(1), play(2))


@pytest.mark.parametrize(("transform", "watched", "reward"), [("identity", 6.0, 6.0), ("log1p", np.exp(2.0) - 1, 2.0)])
def test_rewards_are_transformed_and_scaled(transform, watched, reward):
    """Seconds are divided by their scale, and before that by log1p where the vocabulary says so: ln(1 + e² − 1) = 2."""
    world = worlds.world()
    watch_time, *others = world.vocabulary.behaviours
    behaviours = (watch_time.replace(transform=transform, scale=4.0), *others)
    world = world.replace(vocabulary=world.vocabulary.replace(behaviours=behaviours))
    feedback = np.zeros((1, len(FEED.feedback)))
    feedback[0, 0] = watched
    assert rewards(world, feedback)[0] == pytest.approx(reward / 4.0)


def test_bad_actions_are_refused():
    env = FusionVectorEnv(worlds.world(), num_envs=2)
    env.reset()
    with pytest.raises(InvalidFieldError, match=r"actions: got \(2, 3\); allowed: an array \(2, 6\)"):
        env.step(np.ones((2, 3)))
    with pytest.raises(InvalidFieldError, match=r"actions: got \[nan\]; allowed: finite numbers"):
        env.step(np.full((2, 6), np.nan))
    with pytest.raises(InvalidFieldError, match="num_envs: got 0; allowed: an integer ≥ 1"):
        FusionVectorEnv(worlds.world(), num_envs=0)
