"""The RLlib Algorithm that runs the phases of a training, offline from samples in Parquet, and its config."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import ray.data
import safetensors
import safetensors.numpy
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics import LEARNER_RESULTS

from recfuse.config import require
from recfuse.fusion.networks import GaussianPolicies
from recfuse.fusion.policies import FixedGaussian
from recfuse.learning.learner import FusionLearner
from recfuse.learning.module import FusionPolicyModule
from recfuse.learning.phases import Phase
from recfuse.learning.samples import SampleSet
from recfuse.learning.settings import LearningSettings
from recfuse.runtime import ray_compat

_CHECKPOINT = "learner.safetensors"


class FusionAlgorithmConfig(AlgorithmConfig):
    """Config of `FusionAlgorithm`.

        algorithm = FusionAlgorithmConfig().learn(TwoStageConfig(), SampleSet.open("runs/samples")).build_algo()
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or FusionAlgorithm)
        self.settings: LearningSettings | None = None
        self.samples: SampleSet | None = None
        self._is_online = False
        self.env_runners(num_env_runners=0, create_local_env_runner=False)

    def learn(self, settings: LearningSettings, samples: SampleSet) -> FusionAlgorithmConfig:
        """Sets what is learned, from which samples.

        Raises:
            InvalidFieldError: settings and vocabulary do not fit.
        """
        vocabulary = settings.apply_to(samples.vocabulary)
        settings = settings.resolved(samples.has_density)
        self.settings, self.samples = settings, samples
        self.environment(observation_space=_box(vocabulary.state_size), action_space=_box(vocabulary.action_size))
        self.learners(num_learners=settings.num_learners, num_gpus_per_learner=settings.gpus_per_learner,
                      num_cpus_per_learner=ray_compat.cpus_per_learner(settings.num_learners))
        self.debugging(seed=settings.seed)
        return self

    def validate(self) -> None:
        """Raises InvalidFieldError where `learn` was not called."""
        super().validate()
        require(self.settings is not None and self.samples is not None, "settings", self.settings,
                "FusionAlgorithmConfig.learn(settings, samples) before the algorithm is built")

    def get_default_learner_class(self) -> type:
        """The learner that runs phases."""
        return FusionLearner

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """The module with the networks of the algorithm."""
        return RLModuleSpec(module_class=FusionPolicyModule, model_config=self.module_config())

    def build_module(self) -> FusionPolicyModule:
        """A module by itself, with its initial parameters."""
        return FusionPolicyModule(observation_space=self.observation_space, action_space=self.action_space,
                                  model_config=self.module_config())

    def module_config(self) -> dict[str, Any]:
        """What the module is built from, plain values."""
        assert self.settings is not None
        assert self.samples is not None
        settings, samples = self.settings, self.samples
        return {"vocabulary": samples.vocabulary.to_dict(), "network": settings.policy_network.to_dict(),
                "normalisation": asdict(samples.normalisation), "seed": settings.seed,
                "behaviour": settings.estimates_density,
                **asdict(settings.networks(samples.vocabulary, samples.mean_values))}


@dataclass
class Progress:
    """Where a training run stands.

    Attributes:
        phase: index of the current fit among the algorithm's phases; their number when it is finished.
        losses: of the current fit, one per iteration; on the samples held out, where some are.
        stopped: finished fit → why it ended.
        history: one entry per iteration: phase, iteration, metrics.
    """

    phase: int = 0
    losses: list[float] = field(default_factory=list)
    stopped: dict[str, str] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)


class FusionAlgorithm(Algorithm):
    """Fits the phases of the algorithm one after the other; one training step is one pass over the samples.

    RLlib's episodes are gone around: samples are columns already.
    """

    config: FusionAlgorithmConfig

    def setup(self, config: AlgorithmConfig) -> None:
        """Builds the learners and the dataset they read."""
        self.progress = Progress()
        super().setup(config)
        assert self.config.samples is not None
        assert self.config.settings is not None
        self.settings, self._samples = self.config.settings, self.config.samples
        self._iterators = self._read()

    def _read(self) -> list[ray.data.DataIterator]:
        """Every learner reads all samples in the same order and takes its share of each minibatch."""
        data = self._samples.dataset()
        return [data.iterator() for _ in range(max(1, self.config.num_learners))]

    @property
    def finished(self) -> bool:
        """Whether every fit has ended."""
        return self.progress.phase >= len(self.settings.phases)

    @property
    def phase(self) -> Phase:
        """The current fit."""
        return self.settings.phases[self.progress.phase]

    def training_step(self) -> None:
        """One pass; nothing where every fit has ended."""
        if self.finished:
            return
        phase, progress = self.phase, self.progress
        results = self.learner_group.update(
            training_data=TrainingData(data_iterators=self._iterators), phase=phase.name,
            iteration=len(progress.losses))
        self.metrics.aggregate(results, key=LEARNER_RESULTS)
        metrics = plain_metrics(results[0])
        if not np.isfinite(metrics["loss"]):
            raise FloatingPointError(f"{phase.name}, iteration {len(progress.losses)}: loss is {metrics['loss']}")
        progress.history.append({"phase": phase.name, "iteration": len(progress.losses), **metrics})
        progress.losses.append(metrics.get("holdout_loss", metrics["loss"]))
        reason = phase.rule(self.settings).reason_to_stop(progress.losses)
        if reason:
            progress.stopped[phase.name] = reason
            progress.phase, progress.losses = progress.phase + 1, []

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes parameters, optimizers and progress into one file that appears whole; nothing is pickled."""
        results = self.learner_group.foreach_learner(lambda learner: learner.snapshot())
        progress = {**asdict(self.progress), "training_iteration": self.iteration, "samples": self._samples.fingerprint}
        target = Path(checkpoint_dir) / _CHECKPOINT
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(".writing")
        safetensors.numpy.save_file(next(iter(results)).get(), temporary, {"progress": json.dumps(progress)})
        os.replace(temporary, target)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Continues where `save_checkpoint` left off, with any number of learners.

        Raises:
            InvalidFieldError: there is no checkpoint, or it belongs to other samples.
        """
        file = Path(checkpoint_dir) / _CHECKPOINT
        require(file.is_file(), "checkpoint", str(file), "a file that exists")
        with safetensors.safe_open(file, framework="np") as content:
            progress = json.loads(content.metadata()["progress"])
        fingerprint = progress.pop("samples")
        require(fingerprint == self._samples.fingerprint, "checkpoint", fingerprint,
                f"a checkpoint of these samples ({self._samples.fingerprint})")
        snapshot = ray.put(safetensors.numpy.load_file(file))
        for result in self.learner_group.foreach_learner(lambda learner, ref=snapshot: learner.restore(ray.get(ref))):
            result.get()
        self._iteration = progress.pop("training_iteration")
        self.progress = Progress(**progress)

    @staticmethod
    def has_checkpoint(directory: Path) -> bool:
        """Whether the directory holds a checkpoint."""
        return (directory / _CHECKPOINT).is_file()

    @staticmethod
    def discard_checkpoint(directory: Path) -> None:
        """Removes the checkpoint from the directory, if there is one."""
        (directory / _CHECKPOINT).unlink(missing_ok=True)

    def policy(self) -> GaussianPolicies | FixedGaussian:
        """The policy that serves as it stands, on the CPU."""
        module = self.config.build_module()
        module.set_state(self.learner_group.get_weights()[DEFAULT_MODULE_ID])
        return module.served()


def _box(size: int) -> gym.spaces.Box:
    return gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)


def plain_metrics(result: dict[str, Any]) -> dict[str, float]:
    """Numbers of one learner's pass; all learners log the same, averaged among them."""
    numbers = {name: float(value.peek() if hasattr(value, "peek") else value)
               for name, value in result[DEFAULT_MODULE_ID].items()}
    # RLlib keeps the names of earlier phases, with NaN; and the loss must not vanish among them.
    return {name: number for name, number in numbers.items()
            if name == "loss" or (not np.isnan(number) and not name.startswith("num_"))}
