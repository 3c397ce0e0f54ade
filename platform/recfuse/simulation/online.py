"""The simulator as the place where a policy learns while it serves: what the job `train_online` runs."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recfuse.config import InvalidFieldError
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.learning.online import SessionEnv, first_samples, online_config, summary
from recfuse.learning.resume import identity_of, write_atomically
from recfuse.runtime.console import Progress
from recfuse.runtime.outputs import claim
from recfuse.simulation.config import TrainOnlineConfig
from recfuse.simulation.environment import FusionVectorEnv
from recfuse.simulation.output import METRICS, WORLD, logged_policy
from recfuse.simulation.world import World

logger = logging.getLogger("recfuse")
JOB = "train_online"
CHECKPOINT, HISTORY = "checkpoint", "history.jsonl"


@dataclass(frozen=True)
class TrainOnlineResult:
    """Attributes:
        bundle: the exported policy.
        history: one entry per iteration.
        change: behaviour, mean feedback per request in the first and in the last iteration.
        resumed_at: iterations that an interrupted run had done before.
    """

    bundle: Path
    history: list[dict[str, Any]]
    change: list[tuple[str, float, float]]
    resumed_at: int


class VocabularyEnv(FusionVectorEnv):
    """The simulator's environment, whose `feedback` is that of the vocabulary's behaviours, in their order."""

    def __init__(self, world: World, num_envs: int, seed: int) -> None:
        super().__init__(world, num_envs, seed)
        self._columns = world.columns(world.vocabulary.behaviour_names)

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """See `FusionVectorEnv.step`."""
        states, reward, left, cut, info = super().step(actions)
        return states, reward, left, cut, {**info, "feedback": info["feedback"][:, self._columns]}


def train_online(config: TrainOnlineConfig, world: World | None = None) -> TrainOnlineResult:
    """Learns in the world on the current Ray and exports the policy. A rerun goes on after the last complete iteration,
    also with more iterations in all.

    Args:
        world: in place of the simulation's.

    Raises:
        InvalidFieldError: no simulation, settings that do not fit, or an output that another job has claimed or is
            writing to.
    """
    with claim(config.output, JOB) as output:
        output.require_unclaimed()
        directory = output.local_directory
        simulation = Path(config.simulation)
        world = world or World.load(simulation / WORLD)
        first = _first_policy(simulation, world)
        output.join()
        return _train(config, world, first, directory)


def _first_policy(simulation: Path, world: World) -> FixedGaussian:
    try:
        return logged_policy(simulation, world)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InvalidFieldError("simulation", str(simulation), f"an output of the job `simulate`, whose {METRICS} "
                                f"declares the policy ({type(error).__name__}: {error})") from None


def _train(config: TrainOnlineConfig, world: World, first: FixedGaussian, output: Path) -> TrainOnlineResult:
    online, settings = config.online, config.learning.replace(holdout=0.0)

    def make_env(index: int) -> SessionEnv:
        return VocabularyEnv(world, online.sessions, settings.seed + index)

    samples = first_samples(make_env(0), first, world.vocabulary, online, settings.seed)
    algorithm = online_config(settings, samples, make_env, online).build_algo()
    checkpoint = output / CHECKPOINT
    try:
        rolled = {name: value for name, value in online.to_dict().items() if name != "iterations"}
        identity = identity_of(JOB, settings.to_dict(), online=rolled, samples=samples.fingerprint)
        if identity.take_up(checkpoint) and algorithm.has_checkpoint(checkpoint):
            algorithm.load_checkpoint(str(checkpoint))
            logger.info("train_online: resuming after %d of %d iterations", len(algorithm.progress.history),
                        online.iterations)
        resumed_at = len(algorithm.progress.history)
        progress = Progress("train_online", online.iterations, "iterations")
        progress.advance(resumed_at)
        while not algorithm.finished:
            algorithm.train()
            algorithm.save_checkpoint(str(checkpoint))
            entry = algorithm.progress.history[-1]
            progress.advance(1, ", ".join(f"{name} {entry[f'feedback/{name}']:.4g}"
                                          for name in world.vocabulary.behaviour_names))
        history = algorithm.progress.history
        bundle = export_policy(output, algorithm.policy(), world.vocabulary, training=config.to_dict(),
                               data_fingerprint=samples.fingerprint, metrics=history[-1])
    finally:
        algorithm.stop()
    write_atomically(output / HISTORY, "".join(json.dumps(entry, sort_keys=True) + "\n" for entry in history))
    return TrainOnlineResult(bundle, history, summary(history, world.vocabulary.behaviour_names), resumed_at)
