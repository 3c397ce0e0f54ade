"""The RLlib Algorithm that runs the phases of a training, offline from samples in Parquet, and its config."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import ray
import ray.data
import safetensors
import safetensors.numpy
import torch
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.utils.metrics import LEARNER_RESULTS

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError, require
from recfuse.fusion.networks import GaussianPolicies
from recfuse.fusion.policies import FixedGaussian, LinearGaussian
from recfuse.learning.divergence import finite_or_raise
from recfuse.learning.learner import FusionLearner
from recfuse.learning.module import FusionPolicyModule
from recfuse.learning.phases import Phase
from recfuse.learning.samples import SampleSet
from recfuse.learning.settings import LearningSettings
from recfuse.learning.stopping import ITERATION_LIMIT
from recfuse.runtime import ray_compat
from recfuse.runtime.devices import chosen
from recfuse.runtime.placement import Seats, Share, nodes, required_share, shares
from recfuse.runtime.waiting import Watch

_CHECKPOINT = "learner.safetensors"


class FusionAlgorithmConfig(AlgorithmConfig):
    """Config of `FusionAlgorithm`.

        algorithm = FusionAlgorithmConfig().learn(TwoStageConfig(), SampleSet.open("runs/samples")).build_algo()
    """

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or FusionAlgorithm)
        self.settings: LearningSettings | None = None
        self.samples: SampleSet | None = None
        self.seats: Seats | None = None
        self._is_online = False
        self.env_runners(num_env_runners=0, create_local_env_runner=False)

    def learn(self, settings: LearningSettings, samples: SampleSet) -> FusionAlgorithmConfig:
        """Sets what is learned, from which samples.

        Raises:
            InvalidFieldError: settings and vocabulary do not fit.
        """
        vocabulary = settings.apply_to(samples.vocabulary)
        settings = on_device(settings.resolved(samples.has_density, samples.has_candidates))
        self.settings, self.samples = settings, samples
        self.environment(observation_space=_box(vocabulary.state_size), action_space=_box(vocabulary.action_size))
        self.learners(num_learners=settings.num_learners, num_gpus_per_learner=settings.gpus)
        self.debugging(seed=settings.seed)
        return self

    def take(self, seats: Seats) -> FusionAlgorithmConfig:
        """Sets where the learners sit."""
        self.seats = seats
        self.learners(num_cpus_per_learner=seats.share.cpus)
        return self

    def build_learner_group(self, **options: Any) -> LearnerGroup:
        """The learners, in the seats that were taken for them."""
        group = None if self.seats is None else self.seats.group
        return super().build_learner_group(**{**options, "placement_group": group})

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


def on_device(settings: LearningSettings) -> LearningSettings:
    """The settings with `device` decided: by the GPUs that this process sees, or that nodes have for their learners.

    Raises:
        InvalidFieldError: they ask for a GPU that is not there.
    """
    if settings.num_learners and ray.is_initialized():
        gpus: float = sum(node.total.get("GPU", 0.0) for node in nodes())
    else:
        gpus = float(torch.cuda.device_count())
    return settings.replace(device=chosen("device", settings.device, gpus, settings.num_learners))


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

    def losses_of(self, phase: str) -> list[float]:
        """What the stopping rule of a fit looks at, of every pass that it took."""
        return [judged_loss(entry) for entry in self.history if entry["phase"] == phase]


def judged_loss(metrics: Mapping[str, Any]) -> float:
    """The loss on the samples held out, where some are."""
    loss: float = metrics.get("holdout_loss", metrics["loss"])
    return loss


class FusionAlgorithm(Algorithm):
    """Fits the phases of the algorithm one after the other; one training step is one pass over the samples.

    RLlib's episodes are gone around: samples are columns already.
    """

    config: FusionAlgorithmConfig

    def setup(self, config: AlgorithmConfig) -> None:
        """Builds the dataset, and the learners that read it.

        Raises:
            InvalidFieldError: no nodes have room for the learners.
            NoRoomError: those that had it are gone, or others have held it too long.
        """
        self.progress, self._nodes = Progress(), frozenset[str]()
        assert self.config.samples is not None
        assert self.config.settings is not None
        self.settings, self.samples = self.config.settings, self.config.samples
        self._iterators = self._read()
        try:
            super().setup(self.config)
            if self.settings.num_learners:
                self._nodes = frozenset(result.get() for result in self.learner_group.foreach_learner(
                    lambda learner: ray.get_runtime_context().get_node_id()))
        except BaseException:
            self._release()
            raise

    def _read(self) -> list[ray.data.DataIterator]:
        """Every learner reads all samples in the same order and takes its share of each minibatch."""
        settings = self.settings
        if settings.num_learners == 0:
            return [self.samples.dataset(settings.reads_replay).iterator()]
        share = required_share("num_learners", settings.num_learners, shares(gpus=settings.gpus))
        # Its first tasks take whole CPUs, which there are before the learners have them. Those that read take none:
        # what they need is reserved with the learners.
        data = self.samples.dataset(settings.reads_replay, cpus=0)
        self._take(share)
        return [data.iterator() for _ in range(settings.num_learners)]

    def _take(self, share: Share) -> None:
        """Room for the learners, reserved; their config knows it from now on."""
        seats = Seats(share, self.settings.num_learners)
        seats.wait()
        self.config = self.config.copy(copy_frozen=False).take(seats)
        self.config.freeze()

    def cleanup(self) -> None:
        """Ends the learners, and gives their room back."""
        try:
            super().cleanup()
        finally:
            self._release()

    def _release(self) -> None:
        if self.config.seats is not None:
            self.config.seats.release()

    def listen(self, watch: Watch) -> None:
        """From now on the learners tell the watch that they go on."""
        if self.settings.num_learners == 0:
            self.learner_group.foreach_learner(lambda learner: learner.tell(watch))
            return
        board = None if watch.workers is None else watch.workers.board
        self.learner_group.foreach_learner(lambda learner, board=board: learner.tell_board(board))

    def has_lost_node(self) -> bool:
        """Whether a node that a learner was on is gone."""
        return not self._nodes <= {node.key for node in nodes()}

    def end_learners(self) -> None:
        """Kills them, so that whoever waits for them goes on with an error."""
        ray_compat.end_learners(self.learner_group)

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
        self.require_finite(metrics["loss"])
        progress.history.append({"phase": phase.name, "iteration": len(progress.losses), **metrics})
        progress.losses.append(judged_loss(metrics))
        self._end_phase_where_due()

    def require_finite(self, loss: float) -> None:
        """Raises DivergedError where the loss of a pass is no number; nothing is kept of the pass."""
        if not np.isfinite(loss):
            results = self.learner_group.foreach_learner(lambda learner: learner.diverged)
            finite_or_raise(loss, [result.get() for result in results])

    def _end_phase_where_due(self) -> bool:
        phase, progress = self.phase, self.progress
        reason = phase.rule(self.settings).reason_to_stop(progress.losses)
        if reason:
            progress.stopped[phase.name] = reason
            progress.phase, progress.losses = progress.phase + 1, []
        return bool(reason)

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Writes parameters, optimizers and progress into one file that appears whole; nothing is pickled. What a fit
        ended with is kept in a file of its own, to which a run with more passes goes back."""
        results = self.learner_group.foreach_learner(lambda learner: learner.snapshot())
        progress = {**asdict(self.progress), "training_iteration": self.iteration, "samples": self.samples.fingerprint}
        target = Path(checkpoint_dir) / _CHECKPOINT
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_suffix(".writing")
        safetensors.numpy.save_file(next(iter(results)).get(), temporary, {"progress": json.dumps(progress)})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if self.progress.phase > 0 and not self.progress.losses:
            _copy(temporary, target.parent / _end_of(self.settings.phases[self.progress.phase - 1]))
        os.replace(temporary, target)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Continues where `save_checkpoint` left off, with any number of learners.

        Raises:
            InvalidFieldError: there is no checkpoint, it cannot be read, or it belongs to other samples.
        """
        self._load(Path(checkpoint_dir) / _CHECKPOINT)

    def _load(self, file: Path) -> None:
        require(file.is_file(), "checkpoint", str(file), "a file that exists")
        try:
            with safetensors.safe_open(file, framework="np") as content:
                progress = json.loads(content.metadata()["progress"])
            tensors = safetensors.numpy.load_file(file)
        except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidFieldError("checkpoint", str(file), f"a checkpoint that can be read ({error}); move it away "
                                                             "to start anew") from None
        fingerprint = progress.pop("samples")
        require(fingerprint == self.samples.fingerprint, "checkpoint", fingerprint,
                f"a checkpoint of these samples ({self.samples.fingerprint})")
        snapshot = ray.put(tensors)
        for result in self.learner_group.foreach_learner(lambda learner, ref=snapshot: learner.restore(ray.get(ref))):
            result.get()
        self._iteration = progress.pop("training_iteration")
        self.progress = Progress(**progress)

    @staticmethod
    def has_checkpoint(directory: Path) -> bool:
        """Whether the directory holds a checkpoint."""
        return (directory / _CHECKPOINT).is_file()

    def follow_limits(self, directory: Path) -> list[str]:
        """After a checkpoint was loaded, whose run may have had other limits of passes: where a fit that has ended at
        its limit now has a higher one, goes back to its end, so that it and those after it end as if the limit had
        always been this. Fits that took more passes than they now may stay as they are.

        Args:
            directory: of the checkpoint.

        Returns:
            What is done because of that, in sentences.
        """
        progress = self.progress
        lines: list[str] = []
        for index, phase in enumerate(self.settings.phases[: progress.phase]):
            done, limit = len(progress.losses_of(phase.name)), phase.rule(self.settings).iterations
            if progress.stopped[phase.name] == ITERATION_LIMIT and done < limit and self._go_back(directory, index):
                later = [each.name for each in self.settings.phases[index + 1 :] if progress.losses_of(each.name)]
                anew = f"; {', '.join(later)}, which build on it, are fitted anew" if later else ""
                return [*lines, f"{phase.name} goes on after pass {done} of now {limit}{anew}"]
            if done > limit:
                lines.append(f"{phase.name} took {done} passes, which stay, though now {limit} are allowed")
        if not self.finished and progress.losses and self._end_phase_where_due():
            name = self.settings.phases[progress.phase - 1].name
            lines.append(f"{name} ends after its {len(progress.losses_of(name))} passes")
        return lines

    def _go_back(self, directory: Path, index: int) -> bool:
        """Stands at the end of a fit, which is open again; false where nothing was kept of it."""
        phase = self.settings.phases[index]
        if self.progress.phase > index + 1 or self.progress.losses:
            file = directory / _end_of(phase)
            if not file.is_file():
                return False
            self._load(file)
        self.progress.phase, self.progress.losses = index, self.progress.losses_of(phase.name)
        self.progress.stopped.pop(phase.name)
        return True

    def policy(self) -> GaussianPolicies | FixedGaussian | LinearGaussian:
        """The policy that serves as it stands, on the CPU."""
        return self._module().served()

    def auxiliaries(self) -> GaussianPolicies:
        """The policies of stage one as they stand, on the CPU."""
        return self._module().auxiliaries

    def vocabulary(self) -> Vocabulary:
        """By which that policy reads states and ranks."""
        return self._module().served_vocabulary()

    def _module(self) -> FusionPolicyModule:
        module = self.config.build_module()
        module.set_state(self.learner_group.get_weights()[DEFAULT_MODULE_ID])
        return module


def _end_of(phase: Phase) -> str:
    """The file that holds what a fit ended with."""
    return f"learner-{phase.name}.safetensors"


def _copy(source: Path, target: Path) -> None:
    """A second name of the same content, which appears whole."""
    temporary = target.with_suffix(".writing")
    temporary.unlink(missing_ok=True)
    try:
        os.link(source, temporary)
    except OSError:  # a filesystem without links
        shutil.copyfile(source, temporary)
    os.replace(temporary, target)


def _box(size: int) -> gym.spaces.Box:
    return gym.spaces.Box(-np.inf, np.inf, (size,), np.float32)


def plain_metrics(result: dict[str, Any]) -> dict[str, float]:
    """Numbers of one learner's pass; all learners log the same, averaged among them."""
    numbers = {name: float(value.peek() if hasattr(value, "peek") else value)
               for name, value in result[DEFAULT_MODULE_ID].items()}
    # RLlib keeps the names of earlier phases, with NaN; and the loss must not vanish among them.
    return {name: number for name, number in numbers.items()
            if name == "loss" or (not np.isnan(number) and not name.startswith("num_"))}
