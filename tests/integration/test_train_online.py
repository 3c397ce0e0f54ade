"""Online actor-critic on a real local Ray: in an environment whose optimum is known, and in a small simulated world."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import samples as toy
from learners import SETTINGS, settings_of

from recfuse.bundle import read_bundle
from recfuse.config import InvalidFieldError
from recfuse.fusion.inference import FusionActor
from recfuse.fusion.policies import FixedGaussian
from recfuse.learning.algorithms.actor_critic import ActorCriticConfig
from recfuse.learning.config import OnlineSettings
from recfuse.learning.online import first_samples, online_config, roll
from recfuse.learning.settings import LearningSettings

pytestmark = pytest.mark.usefixtures("local_ray")
FIRST = FixedGaussian(np.zeros(toy.ACTIONS), toy.SIGMA)
LEARNING = settings_of("actor_critic", holdout=0.0, minibatch_size=128)


class Bandit:
    """The bandit of the offline tests: sessions of two requests, rewards quadratic around a known action."""

    def __init__(self, num_envs: int = 128) -> None:
        self.num_envs = num_envs

    def reset(self, *, seed=None):
        self._rng = np.random.default_rng(seed)
        self._number = 0
        self._state = self._draw()
        return self._state, {}

    def step(self, actions):
        watch = -((actions - toy.optimum(self._state)) ** 2).sum(1)
        like = -((actions - toy.LIKED) ** 2).sum(1)
        self._number += 1
        left = np.full(self.num_envs, self._number % 2 == 0)
        following = self._draw()
        info = {"feedback": np.stack([watch, like], 1), "final_obs": following}
        self._state = self._draw() if left[0] else following
        return self._state, watch, left, np.zeros_like(left), info

    def _draw(self):
        return self._rng.standard_normal((self.num_envs, toy.STATES)).astype(np.float32)


def learn(learning: LearningSettings, online: OnlineSettings, checkpoint: Path | None = None, stop_after: int = 99):
    samples = first_samples(Bandit(), FIRST, toy.vocabulary(), online, seed=0)
    algorithm = online_config(learning, samples, lambda index: Bandit(), online).build_algo()
    try:
        if checkpoint is not None and algorithm.has_checkpoint(checkpoint):
            algorithm.load_checkpoint(str(checkpoint))
        while not algorithm.finished and len(algorithm.progress.history) < stop_after:
            algorithm.train()
            if checkpoint is not None:
                algorithm.save_checkpoint(str(checkpoint))
        return algorithm.policy(), algorithm.progress.history
    finally:
        algorithm.stop()


def test_columns_of_a_roll_out_are_sessions_in_their_order():
    columns = roll(Bandit(3), FIRST, 4, seed=1)
    assert {name: values.shape for name, values in columns.items()} == {
        "state": (12, 3), "action": (12, 2), "action_logp": (12,), "feedback": (12, 2), "next_state": (12, 3),
        "done": (12,)}
    np.testing.assert_array_equal(columns["done"], [0, 1] * 6)
    going_on = columns["done"] == 0
    np.testing.assert_array_equal(columns["next_state"][going_on], columns["state"][1:][going_on[:-1]])
    again = roll(Bandit(3), FIRST, 4, seed=1)
    for name, values in columns.items():
        np.testing.assert_array_equal(again[name], values)


@pytest.mark.parametrize("runners", [0, 2])
def test_the_policy_finds_what_the_environment_rewards(runners):
    online = OnlineSettings(iterations=8, runners=runners, sessions=128, requests=8, passes=4)
    _, history = learn(LEARNING, online)
    assert [entry["requests"] for entry in history] == [1024 * max(runners, 1)] * 8
    assert history[-1]["feedback/watch_time"] > 0.6 * history[0]["feedback/watch_time"]
    assert {"explained_variance/watch_time", "entropy", "ess_share", "clipped_share"} <= set(history[-1])


def test_an_interrupted_run_ends_as_if_it_had_not_been(tmp_path):
    online = OnlineSettings(iterations=3, sessions=32, requests=4, passes=1)
    whole, history = learn(LEARNING, online)
    learn(LEARNING, online, tmp_path, stop_after=1)
    resumed, again = learn(LEARNING, online, tmp_path)
    assert again == history
    for one, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        np.testing.assert_array_equal(one.detach().numpy(), other.detach().numpy())


def test_what_does_not_learn_online_is_named():
    online = OnlineSettings(iterations=1)
    samples = first_samples(Bandit(), FIRST, toy.vocabulary(), online, seed=0)
    with pytest.raises(InvalidFieldError, match="algorithm: got 'two_stage'; allowed: online, one of actor_critic, "):
        online_config(SETTINGS, samples, lambda index: Bandit(), online)


def test_the_job_learns_in_the_simulator_and_exports(tmp_path):
    from recfuse.jobs.train_online import main
    from recfuse.simulation.config import TrainOnlineConfig
    from tests.unit.simulation import worlds

    world = worlds.world()
    world.save(tmp_path / "simulation" / "world")
    mu = dict(zip(world.vocabulary.fusion_parameters, worlds.LOGGED.mu.tolist(), strict=True))
    (tmp_path / "simulation" / "metrics.json").write_text(json.dumps(
        {"run": "r1", "behaviour_policy": {"mu": mu, "sigma": 0.5}}))
    config = TrainOnlineConfig(
        simulation=str(tmp_path / "simulation"), output=str(tmp_path / "online"),
        learning=ActorCriticConfig(minibatch_size=128),
        online=OnlineSettings(iterations=2, sessions=32, requests=8, passes=1))
    result = main(config)
    assert [name for name, _, _ in result.change] == list(world.vocabulary.behaviour_names)
    actor = FusionActor.from_bundle(read_bundle(result.bundle))
    assert actor.vocabulary == world.vocabulary
    assert (tmp_path / "online" / "history.jsonl").read_text().count("\n") == 2
    more = main(config.replace(online=config.online.replace(iterations=3)))
    assert (more.resumed_at, len(more.history)) == (2, 3)
    for other in (config.replace(learning=config.learning.replace(rho_max=5.0)),
                  config.replace(learning=config.learning.replace(seed=1)),
                  config.replace(online=config.online.replace(requests=6))):
        assert main(other).resumed_at == 0
    assert main(config).resumed_at == 3, "and the first one's checkpoint is still there"
    (tmp_path / "simulation" / "metrics.json").write_text("{")
    with pytest.raises(InvalidFieldError, match=r"simulation: got .*; allowed: an output of the job `simulate`"):
        main(config)
