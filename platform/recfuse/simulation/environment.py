"""The simulator as Gymnasium environments: an episode is a session, an action the fusion parameters of a request."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from recfuse.config import require
from recfuse.simulation.sessions import SessionEngine, Sessions
from recfuse.simulation.world import World

Reset = tuple[np.ndarray, dict[str, Any]]


def rewards(world: World, feedback: np.ndarray) -> np.ndarray:
    """float64[B] of feedback `[B, F]`: the long-term behaviours, transformed, scaled and weighted."""
    behaviours = world.vocabulary.long_term
    total = np.zeros(len(feedback))
    for behaviour in behaviours:
        value = feedback[:, world.feedback.index(behaviour.name)].astype(np.float64)
        value = np.log1p(value) if behaviour.transform == "log1p" else value
        total += behaviour.weight * value / behaviour.scale
    return total / sum(behaviour.weight for behaviour in behaviours)


def _spaces(world: World) -> tuple[gymnasium.spaces.Box, gymnasium.spaces.Box]:
    vocabulary = world.vocabulary
    return (gymnasium.spaces.Box(-np.inf, np.inf, (vocabulary.state_size,), np.float32),
            gymnasium.spaces.Box(-np.inf, np.inf, (vocabulary.action_size,), np.float32))


class FusionVectorEnv(gymnasium.vector.VectorEnv):
    """B environments in one: an episode is a session of a random user, an action the fusion parameters of a request.

    The reward is that of the vocabulary's long-term behaviours; `info["feedback"]` holds all of `World.feedback`. An
    episode that ends begins anew in the same step; its last state is in `info["final_obs"]`.
    """

    metadata: dict[str, Any] = {"autoreset_mode": AutoresetMode.SAME_STEP, "render_modes": []}  # noqa: RUF012 (gymnasium's form)

    def __init__(self, world: World, num_envs: int = 64, seed: int = 0) -> None:
        require(num_envs >= 1, "num_envs", num_envs, "an integer ≥ 1")
        self.world, self.num_envs, self._seed = world, num_envs, seed
        self.single_observation_space, self.single_action_space = _spaces(world)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._begin(seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """States `[B, S]` of new sessions."""
        if seed is not None:
            self._begin(seed)
        self._sessions = self._draw(self.num_envs)
        return self._engine.observe(self._sessions), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """States, rewards, terminations, truncations `[B]` and info of one request in every session."""
        actions = np.asarray(actions, np.float32)
        expected = (self.num_envs, self.world.vocabulary.action_size)
        require(actions.shape == expected, "actions", actions.shape, f"an array {expected}")
        require(bool(np.isfinite(actions).all()), "actions", actions[~np.isfinite(actions)][:1].tolist(),
                "finite numbers")
        page = self._engine.step(self._sessions, actions)
        over = page.left | page.cut
        states = self._engine.observe(self._sessions)
        info: dict[str, Any] = {"feedback": page.feedback}
        if over.any():
            info |= {"final_obs": states.copy(), "_final_obs": over}
            self._sessions.put(np.flatnonzero(over), self._draw(int(over.sum())))
            states[over] = self._engine.observe(self._sessions.take(np.flatnonzero(over)))
        return states, rewards(self.world, page.feedback), page.left, page.cut, info

    def _begin(self, seed: int) -> None:
        self._engine = SessionEngine(self.world, seed)
        self._rng = np.random.default_rng([seed, 0xE1])
        self._episodes = 0

    def _draw(self, count: int) -> Sessions:
        user = self._rng.integers(0, self.world.users, count)
        # Numbers no other episode has had, so that a user's second episode is not the first again.
        number = self._episodes + np.arange(count)
        self._episodes += count
        return self._engine.start(user, user, number, self._rng.random(count) * self.world.config.horizon_days,
                                  np.zeros(count))


class FusionEnv(gymnasium.Env):
    """One session at a time; see FusionVectorEnv, whose dynamics it shares."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (gymnasium's form)

    def __init__(self, world: World, seed: int = 0) -> None:
        self.world = world
        self.observation_space, self.action_space = _spaces(world)
        self._vector = FusionVectorEnv(world, 1, seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Reset:
        """The state of a new session."""
        super().reset(seed=seed)
        states, _ = self._vector.reset(seed=seed)
        return states[0], {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        """One request."""
        states, reward, left, cut, info = self._vector.step(np.asarray(action)[None])
        state = info["final_obs"][0] if "final_obs" in info else states[0]
        return state, float(reward[0]), bool(left[0]), bool(cut[0]), {"feedback": info["feedback"][0]}


def make_env(config: Mapping[str, Any]) -> FusionEnv:
    """The environment from a config, as RLlib asks for it: `ray.tune.register_env("fusion", make_env)`.

    Args:
        config: `world`, the directory that the job `simulate` wrote it to; `seed`, 0 where absent. Each of RLlib's
            workers (`config.worker_index`) has luck of its own.
    """
    require("world" in config, "env_config", sorted(config), "a mapping with world: the directory of a world")
    return FusionEnv(World.load(config["world"]), int(config.get("seed", 0)) + getattr(config, "worker_index", 0))


# `gymnasium.make(ENVIRONMENT, world=…)`, `gymnasium.make_vec(ENVIRONMENT, 64, world=…)`.
ENVIRONMENT = "recfuse/Fusion-v0"
gymnasium.register(id=ENVIRONMENT, entry_point=f"{__name__}:FusionEnv",
                   vector_entry_point=f"{__name__}:FusionVectorEnv")
