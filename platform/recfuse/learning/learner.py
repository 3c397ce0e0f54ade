"""The RLlib Learner of fusion: one pass of a phase over windows of samples, whatever the algorithm."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from torch import Tensor

from recfuse.config import require
from recfuse.learning.allocation import keep_freed_memory
from recfuse.learning.columns import CHUNK
from recfuse.learning.context import Context
from recfuse.learning.divergence import describe_divergence, has_diverged
from recfuse.learning.gradients import Batch, split, take_step
from recfuse.learning.metrics import (
    GRADIENT_NORM,
    LOSS,
    HeldOut,
    Metric,
    Metrics,
    join_steps,
    means_over_pass,
    steps_of_pass,
)
from recfuse.learning.module import FusionPolicyModule
from recfuse.learning.phases import Phase, Prepared, Step, names_of
from recfuse.learning.rewards import Rewards
from recfuse.learning.samples import InMemory
from recfuse.learning.settings import LearningSettings
from recfuse.learning.snapshots import restore_snapshot, take_snapshot
from recfuse.learning.windows import Windows, is_held_out, minibatches
from recfuse.runtime import ray_compat
from recfuse.runtime.waiting import Teller, Watch

# Rows on which the networks are looked at after a pass.
_DIAGNOSTIC_ROWS = 4096


class FusionLearner(TorchLearner):
    """Runs the phases of `LearningSettings`, each of which says what it reads, trains and logs.

    One `update` is one pass over the samples. A global minibatch has `LearningSettings.parts` parts, of which every
    worker takes its share; their gradients are summed pairwise in the order of the parts, after one collective a step.
    So a number of workers that divides them changes not a bit, and another nothing but rounding.

    Attributes:
        diverged: what there is to say of a pass whose loss is no number; "" before there is one.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._teller: Teller | Watch = Teller()
        if self.config.num_learners > 1:
            ray_compat.bind_gloo()

    def build(self) -> None:
        """Builds module and optimizers; see `TorchLearner.build`."""
        with ray_compat.devices_without_ray():
            super().build()
        self._settings: LearningSettings = self.config.settings
        self._workers = max(self.config.num_learners, 1)
        self._context: Context[Any] | None = None
        self._drawn_only = False
        self._states: Tensor | None = None
        self.diverged = ""
        keep_freed_memory()

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """One Adam per kind of network, by name."""
        settings: LearningSettings = self.config.settings
        for name, rate in settings.learning_rates().items():
            parameters = list(getattr(self._module[module_id], name).parameters())
            optimizer = torch.optim.Adam(parameters, lr=rate, fused=True)
            self.register_optimizer(module_id=module_id, optimizer_name=name, optimizer=optimizer, params=parameters)

    def _make_modules_ddp_if_necessary(self) -> None:
        """Nothing: `_step` sums the gradients itself, because each phase trains other parameters."""

    def update(
        self, training_data: TrainingData, *, phase: str, iteration: int, fresh: bool = False, **_: Any
    ) -> dict[str, Any]:
        """One pass over the samples.

        Args:
            training_data: one iterator, over all samples in the same order for every worker.
            phase: name of the fit.
            iteration: of this fit, from 0; with the seed it determines the order of the samples.
            fresh: these are other samples than in the pass before.
        """
        self._check_is_built()
        fit = self._settings.phase(phase)
        with _threads(self._settings.threads):
            if fresh or self._context is None:
                self._context = self._open(training_data)
            self._drawn_only = fit.drawn_only
            if iteration == 0:
                self._begin(fit)
            self._weights_seq_no += 1
            self._log(self._run_search(fit, iteration) if fit.search else self._run_pass(fit, iteration))
            self.context.memory.forget(fit.networks)
        return self.metrics.reduce()

    def compute_loss_for_module(
        self, *, module_id: str, config: Any = None, batch: dict[str, Any], fwd_out: dict[str, Any]
    ) -> Tensor:
        """The loss of the step that `fwd_out` holds; its metrics are left there."""
        step: Step = fwd_out["step"]
        result = step.loss(self.context, batch)
        fwd_out["metrics"] = {**result.metrics, LOSS: result.loss.detach()}
        return result.loss

    def tell(self, watch: Watch) -> None:
        """From now on the watch of this process is told that the learner goes on."""
        self._teller = watch

    def tell_board(self, board: Any) -> None:
        """From now on the board is told."""
        self._teller = Teller(board, self._learner_index or 0)

    @property
    def fusion(self) -> FusionPolicyModule:
        """The only module."""
        return self._module[DEFAULT_MODULE_ID]

    @property
    def context(self) -> Context[Any]:
        """What the hooks of a phase see; there once a pass has begun."""
        assert self._context is not None
        return self._context.of_drawn if self._drawn_only else self._context

    def snapshot(self) -> dict[str, NDArray[Any]]:
        """Parameters and optimizer state, by name, for a checkpoint."""
        return take_snapshot(self.fusion, self._named_optimizers)

    def restore(self, snapshot: dict[str, NDArray[Any]]) -> None:
        """Takes what `snapshot` gave; any number of learners."""
        restore_snapshot(snapshot, self.fusion, self._named_optimizers, self._device)
        if self._context is not None:
            self._context.memory.clear()

    def _open(self, training_data: TrainingData) -> Context[Any]:
        settings, samples, iterator = self._settings, self.config.samples, training_data.data_iterators[0]
        vocabulary = settings.apply_to(samples.vocabulary)
        rows, drawn = samples.rows, samples.rows - samples.not_drawn
        if isinstance(iterator, InMemory):
            rows, drawn = iterator.rows, iterator.drawn
        windows = Windows(iterator, vocabulary.behaviours, samples.reward_std, rows,
                          settings.window_rows_of(vocabulary), settings.memory_mib << 20, self._device, drawn,
                          samples.replay_shape if settings.reads_replay else None, lambda: self._teller.moved())
        rewards = Rewards(settings.scalarisation(vocabulary), settings.mixes_rewards, vocabulary, self.fusion,
                          self._device, samples.reward_std)
        return Context(settings, vocabulary, self.fusion, rewards, windows, self._device, self._learner_index,
                       self._workers)

    def _begin(self, phase: Phase) -> None:
        """Where the fit starts from what those before it have learned."""
        phases = self._settings.phases
        index = names_of(phases).index(phase.name)
        if index > 0 and (leave := phases[index - 1].leave) is not None:
            leave(self.context)
        if phase.begin is not None:
            phase.begin(self.fusion)
            self.context.memory.forget(phase.networks)

    def _run_search(self, phase: Phase, iteration: int) -> Metrics:
        assert phase.search is not None
        rng = np.random.default_rng((self._settings.seed, phase.seed, iteration))
        return phase.search(self.context, rng, iteration)

    def _run_pass(self, phase: Phase, iteration: int) -> Metrics:
        context, settings = self.context, self._settings
        prepared = self._prepare(phase)
        seen: list[Metrics] = []  # of every part of every step
        steps, every = 0, 1 if phase.every is None else phase.every(context)
        explained = phase.fitted.explained if phase.fitted is not None else None
        held_out = HeldOut(explained, len(context.names(explained.per)) if explained is not None else 0, self._device)
        for position, window in context.windows:
            count, seed = len(window["done"]), (settings.seed, phase.seed, iteration, position)
            places = window["row"].cpu().numpy() if "row" in window else None
            out = is_held_out(position, count, settings.holdout, settings.seed, places=places)
            learned = np.flatnonzero(~out)
            drawn = {} if phase.draw is None else phase.draw(context, np.random.default_rng((*seed, 1)), count)
            for places in minibatches(len(learned), settings.minibatch_size, seed, context.rank, context.workers,
                                      settings.parts):
                if steps % every == 0:
                    batch = self._gather(phase, window, position, learned[places], prepared.columns(False), drawn)
                    taken = [self._step(step, context.parts) for step in phase.steps_of(context, batch, steps)]
                    seen += join_steps(taken)
                    self._teller.moved()
                steps += 1
            rows = np.flatnonzero(out)[::every]
            if position == 0:
                self._states = window["state"][:_DIAGNOSTIC_ROWS].clone()  # not the window
                if not settings.holdout:  # a look at what was learned from is better than none
                    rows = np.arange(min(count, _DIAGNOSTIC_ROWS))
            self._judge(held_out, phase, window, position, rows[context.rank :: context.workers], prepared)
        require(bool(seen), "holdout", settings.holdout, "a share that leaves a sample for each shard")
        of_steps = steps_of_pass(seen, context.parts, context.workers)
        means = means_over_pass(of_steps)
        if has_diverged(context, phase, means[LOSS]):
            self.diverged = describe_divergence(context, phase, iteration, of_steps, prepared)
            return {LOSS: means[LOSS] * torch.nan}
        return self._metrics(phase, means, held_out, prepared)

    @torch.no_grad()
    def _prepare(self, phase: Phase) -> Prepared:
        return Prepared() if phase.prepare is None else phase.prepare(self.context)

    def _step(self, step: Step, parts: int) -> list[Metrics]:
        """One step; the metrics of each of this worker's parts."""
        seen: list[dict[Metric, Tensor]] = []

        def losses() -> Iterator[Tensor]:
            for part in split(step.batch, parts):
                fwd_out: dict[str, Any] = {"step": step}
                loss = self.compute_loss_for_module(module_id=DEFAULT_MODULE_ID, batch=part, fwd_out=fwd_out)
                seen.append(fwd_out["metrics"])
                yield loss

        optimizers = [self.get_optimizer(DEFAULT_MODULE_ID, name) for name in step.networks]
        norm = take_step(losses(), optimizers, parts, self._workers, self._settings.max_gradient_norm)
        if step.follow is not None:
            step.follow(self.context)
        return [{**metrics, GRADIENT_NORM: norm} for metrics in seen]

    @torch.no_grad()
    def _judge(
        self, held_out: HeldOut, phase: Phase, window: Batch, position: int, rows: NDArray[np.int64],
        prepared: Prepared,
    ) -> None:
        """Adds what the networks say about rows that are not learned from."""
        judge = phase.judge or phase.loss
        for start in range(0, len(rows), CHUNK):
            batch = self._gather(phase, window, position, rows[start : start + CHUNK], prepared.columns(True), {})
            if phase.fitted is not None:
                held_out.add_values(*phase.fitted.values(self.context, batch))
            if self._settings.holdout and judge is not None:
                result = judge(self.context, batch)
                held_out.add_loss(result.loss if result.judged is None else result.judged, len(batch["state"]))

    def _gather(
        self, phase: Phase, window: Batch, position: int, rows: NDArray[Any], prepared: Mapping[str, Tensor],
        drawn: Batch,
    ) -> Batch:
        """Columns of some rows of a window: of the samples, and by their place what was prepared and drawn."""
        index, places = torch.from_numpy(rows).to(self._device), torch.from_numpy(rows + position)
        batch = {name: window[name].index_select(0, index) for name in phase.columns if name not in prepared}
        batch |= {name: column.index_select(0, places).to(self._device) for name, column in prepared.items()}
        return batch | {name: column[torch.from_numpy(rows)].to(self._device) for name, column in drawn.items()}

    @torch.no_grad()
    def _metrics(
        self, phase: Phase, means: dict[Metric, Tensor], held_out: HeldOut, prepared: Prepared
    ) -> Metrics:
        """Everything that is known after a pass."""
        metrics: dict[Metric, Tensor] = {**means, **held_out.metrics(self._workers), **prepared.metrics}
        if phase.finish is not None:
            metrics |= phase.finish(self.context, means)
        if phase.diagnose is not None and self._states is not None:
            metrics |= phase.diagnose(self.context, self._states)
        return metrics

    def _log(self, metrics: Metrics) -> None:
        for metric, value in metrics.items():
            for name, number in metric.numbers(value, self.context.names(metric.per)).items():
                self.metrics.log_value((DEFAULT_MODULE_ID, name), number, reduce="mean", window=1)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Runs with so many threads, and puts the process back to what it had."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
