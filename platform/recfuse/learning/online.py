"""Learning while serving, in an environment: env runners roll the current policy, the learners climb what it brought.

The on-policy reading of maths 1.4: the same critics, losses and learners as offline, on requests that the policy has
just answered, whose ratios start at 1. Runners and learners are RLlib's; columns go from one to the other.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import gymnasium as gym
import numpy as np
import ray
import ray.data
import torch
from numpy.typing import NDArray
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.env_runner import EnvRunner

from recfuse.behaviours import Vocabulary
from recfuse.config import require
from recfuse.fusion.networks import GaussianPolicies
from recfuse.fusion.policies import Policy, decide
from recfuse.learning import registry
from recfuse.learning.algorithm import FusionAlgorithm, FusionAlgorithmConfig, plain_metrics
from recfuse.learning.config import OnlineSettings
from recfuse.learning.samples import InMemory, SampleSet
from recfuse.learning.settings import LearningSettings
from recfuse.runtime.placement import required_share, shares

logger = logging.getLogger("recfuse")
_RUNNER_CPUS = 0.2
Columns = dict[str, NDArray[np.float32]]


class SessionEnv(Protocol):
    """B sessions at once: what the roll-out uses of a Gymnasium vector environment with autoreset in the same step.

    `info["feedback"]` holds [B, m] in the order of the vocabulary's behaviours, `info["final_obs"]` the last states of
    the sessions that ended.
    """

    num_envs: int

    def reset(self, *, seed: int | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        """States [B, S] of new sessions."""
        ...

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """States, rewards, whether the session ended or was cut, and info."""
        ...


def roll(env: SessionEnv, policy: Policy, requests: int, seed: int) -> Columns:
    """Requests of new sessions under a policy that explores, as columns of samples, each session's in its order."""
    rng = np.random.default_rng([seed, 0x0E])
    state, _ = env.reset(seed=seed)
    steps: list[dict[str, NDArray[Any]]] = []
    for _ in range(requests):
        decision = policy.act(state, True, rng)
        following, _, left, cut, info = env.step(decision.action)
        last = left | cut
        next_state = np.where(last[:, None], info["final_obs"], following) if last.any() else following
        # A session that was cut goes on as far as the critics are concerned.
        steps.append({"state": state, "action": decision.action, "action_logp": decision.action_logp,
                      "feedback": info["feedback"], "next_state": next_state, "done": left})
        state = following
    return {name: np.stack([step[name] for step in steps], 1).astype(np.float32).reshape(
        env.num_envs * requests, *steps[0][name].shape[1:]) for name in steps[0]}


class TorchPolicy:
    """The learner's policy as the environment asks it; a `Policy`."""

    def __init__(self, policy: GaussianPolicies) -> None:
        self._policy = policy

    def act(self, state: NDArray[np.float32], explore: bool, rng: np.random.Generator) -> Any:
        """See `Policy.act`."""
        with torch.no_grad():
            mu, log_sigma = self._policy(torch.from_numpy(state).to(self._policy.action_mean.device))
        return decide(mu[:, 0].cpu().numpy(), log_sigma.exp()[:, 0].cpu().numpy(), explore, rng,
                      self._policy.config.action_range)


class FusionEnvRunner(EnvRunner):
    """Rolls the current policy in one environment of its own."""

    config: OnlineConfig

    def __init__(self, *, config: AlgorithmConfig, **kwargs: Any) -> None:
        super().__init__(config=config, **kwargs)
        assert self.config.make_env is not None
        self.env = self.config.make_env(self.worker_index or 0)
        self.module = self.config.build_module()
        torch.set_num_threads(1)

    def assert_healthy(self) -> None:
        """Nothing can be missing once it is built."""

    def get_spaces(self) -> dict[str, tuple[gym.Space, gym.Space]]:
        """Of the policy; one of the environments is like another."""
        spaces = (self.config.observation_space, self.config.action_space)
        return {INPUT_ENV_SPACES: spaces, INPUT_ENV_SINGLE_SPACES: spaces, DEFAULT_MODULE_ID: spaces}

    def get_state(self, *_: Any, **__: Any) -> dict[str, Any]:
        """Nothing; see `set_state`."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing: every call of `sample` brings the weights, and its luck hangs on the iteration."""

    def sample(self, *, weights: Any, iteration: int, **_: Any) -> Columns:
        """Requests under these weights; the same iteration and runner meet the same users and luck."""
        if isinstance(weights, ray.ObjectRef):
            weights = ray.get(weights)
        self.module.set_state(weights)
        seed = int(np.random.default_rng([self.config.seed or 0, iteration, self.worker_index or 0]).integers(2**31))
        return roll(self.env, TorchPolicy(self.module.policy), self.config.online.requests, seed)


class OnlineConfig(FusionAlgorithmConfig):
    """Config of `OnlineActorCritic`; `FusionAlgorithmConfig.learn` first, then `roll`."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or OnlineActorCritic)
        self.make_env: Callable[[int], SessionEnv] | None = None
        self.online = OnlineSettings()

    def roll(self, make_env: Callable[[int], SessionEnv], online: OnlineSettings) -> OnlineConfig:
        """Sets where the policy is rolled: the function makes the environment of runner 0, 1, …"""
        self.make_env, self.online = make_env, online
        self._is_online = True
        self.env_runners(env_runner_cls=FusionEnvRunner, num_env_runners=online.runners,
                         create_local_env_runner=online.runners == 0, num_cpus_per_env_runner=_RUNNER_CPUS,
                         merge_env_runner_states=False, broadcast_env_runner_states=False)
        return self


class OnlineActorCritic(FusionAlgorithm):
    """One training step rolls the policy, then fits critics and policy to what it brought."""

    config: OnlineConfig

    def _read(self) -> list[ray.data.DataIterator]:
        """There is no dataset; learners leave CPUs to the runners."""
        learners, runners = self.settings.num_learners, self.config.online.runners
        if learners:
            self._take(required_share("num_learners", learners, shares(
                reads=False, gpus=self.settings.gpus, beside=_RUNNER_CPUS * -(-runners // learners))))
        return []

    @property
    def finished(self) -> bool:
        """Whether all iterations are done."""
        return len(self.progress.history) >= self.config.online.iterations

    def training_step(self) -> None:
        """One iteration; nothing where all are done."""
        if self.finished:
            return
        iteration, online = len(self.progress.history), self.config.online
        parts = self._roll(iteration)
        columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        data = TrainingData(data_iterators=[InMemory(columns)] * max(1, self.config.num_learners))
        phases, requests = self.settings.online, len(columns["done"])
        entry: dict[str, Any] = {"phase": phases[-1], "iteration": iteration, "requests": requests,
                                 "session_length": requests / max(1.0, float(columns["done"].sum()))}
        for index, name in enumerate(self.samples.vocabulary.behaviour_names):
            entry[f"feedback/{name}"] = float(columns["feedback"][:, index].mean())
        for phase in phases:
            for number in range(online.passes):
                results = self.learner_group.update(
                    training_data=data, phase=phase, iteration=iteration * online.passes + number,
                    fresh=phase == phases[0] and number == 0)
            metrics = plain_metrics(results[0])
            self.require_finite(metrics["loss"])
            entry |= metrics
        self.progress.history.append(entry)

    def _roll(self, iteration: int) -> list[Columns]:
        weights = self.learner_group.get_weights()[DEFAULT_MODULE_ID]
        shared = ray.put(weights) if self.config.online.runners else weights
        parts = self.env_runner_group.foreach_env_runner(
            lambda runner: runner.sample(weights=shared, iteration=iteration),
            local_env_runner=self.config.online.runners == 0)
        if not parts:
            raise RuntimeError(f"iteration {iteration}: every env runner was lost")
        return parts


def first_samples(
    env: SessionEnv, policy: Policy, vocabulary: Vocabulary, online: OnlineSettings, seed: int
) -> SampleSet:
    """What a first policy brings: states, actions and rewards are normalised by it, and learning starts near it. Its
    fingerprint is of all of it, so that another world, policy or seed has another one."""
    columns = roll(env, policy, online.requests, seed)
    digest = hashlib.sha256(repr([seed, vocabulary.to_dict()]).encode())
    for name in sorted(columns):
        digest.update(np.ascontiguousarray(columns[name]).tobytes())
    return SampleSet.of(columns, vocabulary, f"online-{digest.hexdigest()[:20]}")


def online_config(
    settings: LearningSettings, samples: SampleSet, make_env: Callable[[int], SessionEnv], online: OnlineSettings
) -> OnlineConfig:
    """The config of an online run.

    Raises:
        InvalidFieldError: the algorithm does not learn online.
    """
    names = [name for name in registry.names() if registry.find(name).online]
    require(bool(settings.online), "algorithm", settings.algorithm, f"online, one of {', '.join(names)}")
    config = OnlineConfig()
    config.learn(settings, samples)
    return config.roll(make_env, online)


def summary(history: list[Mapping[str, Any]], names: tuple[str, ...]) -> list[tuple[str, float, float]]:
    """Behaviour, its mean feedback per request in the first and in the last iteration."""
    return [(name, history[0][f"feedback/{name}"], history[-1][f"feedback/{name}"]) for name in names]
