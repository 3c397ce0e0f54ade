"""The simulator's speed: simulated requests per minute on one core, 50 candidates and a page of 6 each.

Three ways to run it: a roll-out whose policy reads no state (as CEM's search does), one whose policy is the default
network (states are encoded, two hidden layers of 64), and the vectorised Gymnasium environment. The last column is the
rate over that of the plain Gymnasium environment, which answers one request at a time.

    python -m benchmarks.simulator --world runs/demo/simulation/world
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
from pydantic import Field

from recfuse.config import Config
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.inference import FusionActor
from recfuse.fusion.networks import GaussianPolicies, Normalisation
from recfuse.fusion.policies import FixedGaussian
from recfuse.runtime.console import start, table
from recfuse.simulation.environment import FusionEnv, FusionVectorEnv
from recfuse.simulation.rollout import Act, policy_act, steps
from recfuse.simulation.sessions import SessionEngine
from recfuse.simulation.world import World

WANTED = 100_000  # requests per minute


class SimulatorConfig(Config):
    """What is simulated to measure it."""

    world: str = Field("runs/demo/simulation/world", description="This is a world as the job `simulate` writes it.")
    persons: int = Field(5_000, description="A roll-out simulates so many persons at once.", ge=1)
    environments: int = Field(256, description="The vectorised environment holds so many sessions.", ge=1)
    rounds: int = Field(3, description="Each measurement is taken so often, and the best counts.", ge=1)


def main(config: SimulatorConfig) -> dict[str, float]:
    """Prints, and returns, requests per minute of every way."""
    world = World.load(config.world)
    size = world.vocabulary.action_size
    fixed, rng = FixedGaussian(np.linspace(1.0, .3, size), .7), np.random.default_rng(0)
    learned = network(world)
    ways: dict[str, Callable[[], int]] = {
        "one at a time": lambda: play_one(world, 300),
        "roll-out, fixed weights": lambda: roll(world, config.persons, policy_act(fixed, True, rng), False),
        "roll-out, network": lambda: roll(world, config.persons, policy_act(learned, True, rng), True),
        f"{config.environments} environments": lambda: play(world, config.environments, 60)}
    rates = {name: max(rate(way) for _ in range(config.rounds)) for name, way in ways.items()}
    table(f"Simulated requests per minute, {world.config.candidates} candidates, page of {world.config.page}, one core "
          f"of {os.cpu_count()}", ["way", "requests/min", f"over {WANTED:,}", "over one at a time"], [
              (name, f"{value:,.0f}", f"{value / WANTED:.1f}", f"{value / rates['one at a time']:.0f}")
              for name, value in rates.items()])
    return rates


def rate(way: Callable[[], int]) -> float:
    """Requests per minute of processor time."""
    begin = time.process_time()  # of this process, whatever else runs on the machine
    requests = way()
    return 60 * requests / (time.process_time() - begin)


def roll(world: World, persons: int, act: Act, observe: bool) -> int:
    """Requests of a roll-out."""
    some = np.arange(persons)
    simulation = steps(SessionEngine(world, 1), some % world.users, act, persons=some, observe=observe)
    return sum(len(step.slot) for step in simulation)


def play(world: World, environments: int, requests: int) -> int:
    """Requests of the vectorised environment."""
    env = FusionVectorEnv(world, environments, seed=1)
    env.reset()
    action = np.ones((environments, world.vocabulary.action_size), np.float32)
    for _ in range(requests):
        env.step(action)
    return environments * requests


def play_one(world: World, requests: int) -> int:
    """Requests of the environment that answers one at a time."""
    env = FusionEnv(world, seed=1)
    env.reset()
    action = np.ones(world.vocabulary.action_size, np.float32)
    for _ in range(requests):
        _, _, left, cut, _ = env.step(action)
        if left or cut:
            env.reset()
    return requests


def network(world: World) -> FusionActor:
    """An untrained policy of the default size."""
    vocabulary, config = world.vocabulary, NetworkConfig()
    policy = GaussianPolicies(("policy",), config, Normalisation.identity(vocabulary.state_size,
                                                                         vocabulary.action_size), seed=0)
    tensors = {name: tensor.double().numpy() for name, tensor in policy.state_dict().items()}
    return FusionActor("untrained", vocabulary, {"type": "gaussian_mlp", **config.to_dict()}, tensors)


if __name__ == "__main__":
    main(start(SimulatorConfig, description=__doc__))
