"""Trains the multi-scene model: in this process, or with Ray Train over Ray Data on one or more workers."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import ray
import ray.data
import ray.train
import ray.train.torch
import torch
from torch import Tensor

from recfuse.config import require
from recfuse.logs.exposures import Exposures
from recfuse.runtime import ray_compat
from recfuse.runtime.console import Progress
from recfuse.scenes.dataset import EncodedRows, count_pairs, encode_exposures
from recfuse.scenes.features import Encoded, Feature, FeatureEncoder, declared_features
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.loss import multi_scene_loss
from recfuse.scenes.model import ModelConfig, SceneModel
from recfuse.scenes.registry import Registry
from recfuse.scenes.rivals import build_model
from recfuse.scenes.weights import STRATEGIES, task_weights

logger = logging.getLogger("recfuse")

_CHECKPOINT = "checkpoint.pt"
_WINDOW_ROWS = 16_384


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the model is fitted.

    Attributes:
        epochs: passes over the training rows; 0 leaves the model that training starts from as it is.
        batch_size: rows of a step, over all workers.
        embedding_rate: learning rate of Adagrad on the embedding table. Its accumulator starts at zero: with any
            larger start, ids that come a few times in an epoch hardly move.
        dense_rate: learning rate of Adam on everything else.
        final_rate: both rates fall linearly to this share of themselves; the last steps then average over more rows.
        strategy: of the weights (maths 3.3).
        largest_positive_weight: bound on p_t; None for none.
        positive_weight, task_weight: with the strategy `manual`, p_t and ω_t by task (`order`) or by pair
            (`cart/order`, which goes before); every pair needs a p_t, ω_t is 1 where none is given.
        minimum_positives: an optional pair with fewer in training is left out.
        patience: stops after so many epochs without a lower loss on the last training day, which then does not train,
            and takes the best epoch; 0 trains every epoch on every day.
        calibration_days: the last training days whose rates the predictions are shifted to; 0 for no shift.
        seed: of initial weights and order of rows.
        workers: of Ray Train; 0 trains in the calling process, without Ray.
        gpu: each worker trains on a GPU of its own.
        threads: of torch in each worker. More than there are idle cores is far slower than one: the threads spin.
        bfloat16: matmuls in bfloat16; None: where the processor has instructions for it.
    """

    epochs: int = 1
    batch_size: int = 512
    embedding_rate: float = 0.05
    dense_rate: float = 1e-3
    final_rate: float = 1.0
    strategy: Literal["balanced", "sqrt", "uniform", "manual"] = "uniform"
    largest_positive_weight: float | None = 3.0
    positive_weight: dict[str, float] = field(default_factory=dict)
    task_weight: dict[str, float] = field(default_factory=dict)
    minimum_positives: int = 20
    patience: int = 0
    calibration_days: int = 1
    seed: int = 0
    workers: int = 1
    gpu: bool = False
    threads: int = 1
    bfloat16: bool | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "minimum_positives", "threads"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "an integer ≥ 1")
        for name in ("epochs", "workers", "patience", "calibration_days"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "an integer ≥ 0")
        require(0 < self.final_rate <= 1, "final_rate", self.final_rate, "a number in (0, 1]")
        for name in ("embedding_rate", "dense_rate"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a number > 0")
        require(self.strategy in STRATEGIES, "strategy", self.strategy, ", ".join(STRATEGIES))
        given = bool(self.positive_weight or self.task_weight)
        require(given <= (self.strategy == "manual"), "strategy", self.strategy, "manual, with weights of one's own")


@dataclass(frozen=True)
class Problem:
    """Everything a training needs.

    Attributes:
        registry: the pairs that the training rows support.
        encoder: features, fitted on the training rows.
        rows: the training rows, encoded.
        positive_weight, task_weight: p_t and ω_t [T].
        prior_logits: log(p_t N_t⁺ / N_t⁻) [T], where the towers start.
        recent: positions in `rows` of the last training days, whose rates the predictions are shifted to.
        validation: the rows that early stopping watches; empty without it.
        start: the scorer that training goes on from, with the registry's pairs; None from scratch.
    """

    registry: Registry
    encoder: FeatureEncoder
    rows: EncodedRows
    positive_weight: Tensor
    task_weight: Tensor
    prior_logits: Tensor
    recent: np.ndarray
    validation: EncodedRows
    model: ModelConfig
    training: TrainingConfig
    start: SceneScorer | None = None

    @property
    def steps(self) -> int:
        """Of one epoch."""
        return -(-len(self.rows) // self.training.batch_size)


def prepare(exposures: Exposures, training_rows: np.ndarray, registry: Registry, model: ModelConfig,
            training: TrainingConfig, features: tuple[Feature, ...] = (), start: SceneScorer | None = None) -> Problem:
    """Decides the pairs, fits features and weights, and encodes the training rows.

    Args:
        exposures: rows of registered scenes; those outside the training rows only lend their histories.
        training_rows: bool[rows].
        features: declared features; empty takes every column of users and items.
        start: a scorer to go on from; its features and sizes are taken instead of `features` and `model`.

    Raises:
        InvalidFieldError: a pair without positives or negatives, a missing column, no training row, or a scene that
            `start` neither has nor finds under the name of `like`.
    """
    require(training.epochs > 0 or start is not None, "epochs", training.epochs, "an integer ≥ 1 without a start")
    training_rows, validation_rows = _hold_out(exposures, training_rows, training)
    chosen = exposures.filter(training_rows)
    require(chosen.rows.num_rows > 0, "training rows", 0, "at least one")
    registry = registry.supported(count_pairs(chosen.rows, registry)[0], training.minimum_positives)
    start = start and start.for_registry(registry)
    model = start.model_config if start else model
    positives, negatives = count_pairs(chosen.rows, registry)
    plus, minus = (torch.tensor([float(counts[pair]) for pair in registry.pairs]) for counts in (positives, negatives))
    positive_weight, task_weight = _weights(registry, training, plus, minus)
    # A product of probabilities (ESMM) has no room for weights of positives, and a number has no positives.
    plain = torch.tensor([model.architecture == "esmm" or pair.task in registry.numbers for pair in registry.pairs])
    positive_weight = torch.where(plain, torch.ones_like(positive_weight), positive_weight)
    encoder = start.encoder if start else FeatureEncoder.fit(
        features or declared_features(exposures), exposures, training_rows, model.history_length)
    encoded = encode_exposures(exposures, registry, encoder)
    days = exposures.column("day")[training_rows]
    recent = np.flatnonzero(np.isin(days, np.unique(days)[len(np.unique(days)) - training.calibration_days:])
                            & (training.calibration_days > 0))
    return Problem(registry, encoder, encoded.take(np.flatnonzero(training_rows)), positive_weight, task_weight,
                   torch.log(positive_weight * plus / minus), recent, encoded.take(np.flatnonzero(validation_rows)),
                   model, training, start)


def _weights(registry: Registry, training: TrainingConfig, plus: Tensor, minus: Tensor) -> tuple[Tensor, Tensor]:
    """p_t and ω_t [T] by the config's strategy."""
    own: dict[str, list[float] | None] = {"positive_weight": None, "task_weight": None}
    if training.strategy == "manual":
        for name, default in (("positive_weight", None), ("task_weight", 1.0)):
            given = getattr(training, name)
            values = [given.get(f"{pair.scene}/{pair.task}", given.get(pair.task, default)) for pair in registry.pairs]
            for pair, value in zip(registry.pairs, values, strict=True):
                require(value is not None, f"{name} of {pair}", value, "a number, by task or by scene/task")
            own[name] = values
    return task_weights(plus, minus, training.strategy, names=registry.pairs, **own,
                        largest_positive_weight=training.largest_positive_weight)


def _hold_out(exposures: Exposures, training_rows: np.ndarray,
              training: TrainingConfig) -> tuple[np.ndarray, np.ndarray]:
    """Training and validation rows, bool[rows] each: with patience the last training day validates."""
    days = exposures.column("day")
    if not training.patience or not training_rows.any():
        return training_rows, np.zeros_like(training_rows)
    last = days[training_rows].max()
    return training_rows & (days < last), training_rows & (days == last)


def train(problem: Problem, storage: str | Path, name: str = "scenes") -> SceneScorer:
    """Trains, with Ray Train unless `workers` is 0.

    Args:
        storage: where checkpoints go; a training of the same name that was cut off goes on from its last epoch.
    """
    if problem.start and not problem.training.epochs:
        return problem.start
    if problem.training.workers == 0:
        model = fit_in_process(problem, Path(storage).resolve() / name)
    else:
        model = _fit_on_ray(problem, Path(storage).resolve(), name)
    return SceneScorer(model, problem.registry, problem.encoder, problem.positive_weight,
                       shift=recent_shift(model, problem))


def untrained(problem: Problem) -> SceneModel:
    """The network that training starts with: from the problem's seed, or the one it goes on from."""
    torch.manual_seed(problem.training.seed)
    ids = [one for one in problem.encoder.fitted if one.offset >= 0]
    item = next((i for i, one in enumerate(ids) if one is problem.encoder.item_feature), 0)
    model = build_model(problem.model, table_rows=problem.encoder.table_rows, fields=problem.encoder.fields,
                        numeric=problem.encoder.numeric, item_field=item, pair_scene=problem.registry.pair_scene,
                        pair_task=problem.registry.pair_task, field_rows=[(one.offset, one.size) for one in ids],
                        prior_logits=problem.prior_logits)
    if problem.start:
        model.load_state_dict(problem.start.parameters())
    return model


def recent_shift(model: SceneModel, problem: Problem, deviation: float = 0.1) -> Tensor:
    """Log-odds [T] to add to a pair's predictions, so that they sum to the positives of the last training days.

    The last steps of a training leave a bias of their own, and rates drift from day to day. The maximum of the
    likelihood with a normal prior of this deviation on the shift: pairs with few rows stay where they are.
    """
    shift = torch.zeros(len(problem.registry.pairs), dtype=torch.float64)
    if not len(problem.recent):
        return shift
    rows = problem.rows.take(problem.recent)
    logits = predict_logits(model, rows).double() - problem.positive_weight.log().double()
    for index, (scene, task) in enumerate(zip(problem.registry.pair_scene, problem.registry.pair_task, strict=True)):
        own = torch.from_numpy(rows.scene == scene)
        z, positives = logits[own, index], float(rows.labels[own.numpy(), task].sum())
        for _ in range(20):  # Newton's method; the function is concave
            p = torch.sigmoid(z + shift[index])
            slope = positives - p.sum() - shift[index] / deviation**2
            shift[index] += slope / ((p * (1 - p)).sum() + 1 / deviation**2)
    return shift


def predict_logits(model: SceneModel, rows: EncodedRows, batch: int = 8192) -> Tensor:
    """float32 [N, T], without gradients."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        inputs = (tensors(rows.take(np.arange(start, min(start + batch, len(rows)))))[:4]
                  for start in range(0, len(rows), batch))
        parts = [model(*_moved(part, _device(model))).cpu() for part in inputs]
    model.train(was_training)
    return torch.cat(parts) if parts else torch.zeros(0, len(model.pair_scene))


class Stepper:
    """One optimiser step at a time: Adagrad on the embedding table, Adam on the rest.

    Args:
        model: the network, or a DDP wrapper of it.
        steps: of one epoch.
    """

    def __init__(self, model: torch.nn.Module, problem: Problem, steps: int) -> None:
        config = problem.training
        self._model = model
        self._total, self._final_rate = config.epochs * steps, config.final_rate
        self.taken = 0
        self._device = _device(model)
        self._weights = _moved((problem.positive_weight, problem.task_weight), self._device)
        self._pair_scene = torch.tensor(problem.registry.pair_scene, device=self._device)
        self._pair_task = torch.tensor(problem.registry.pair_task, device=self._device)
        table = [p for name, p in model.named_parameters() if name.endswith("embedding")]
        dense = [p for name, p in model.named_parameters() if not name.endswith("embedding")]
        # With the whole table in one fused step, rows without a gradient stay as they are: the same result as a
        # sparse update, and faster up to a few hundred thousand rows.
        self.optimizers = (torch.optim.Adagrad(table, lr=config.embedding_rate, fused=self._device.type == "cpu"),
                           torch.optim.Adam(dense, lr=config.dense_rate, fused=True))
        self._rates = config.embedding_rate, config.dense_rate
        wanted = config.bfloat16
        self._bfloat16 = (self._device.type != "cpu" or _has_bfloat16()) if wanted is None else wanted

    def step(self, ids: Tensor, numbers: Tensor, history: Tensor, scene: Tensor, labels: Tensor) -> float:
        """One step on a batch; returns the loss per row. `labels` is [B, tasks]."""
        ids, numbers, history, scene, labels = _moved((ids, numbers, history, scene, labels), self._device)
        mask = scene[:, None] == self._pair_scene
        with torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=self._bfloat16):
            logits = self._model(ids, numbers, history, scene)
        loss = multi_scene_loss(logits, labels[:, self._pair_task], mask, *self._weights) / len(scene)
        done = min(self.taken / max(self._total, 1), 1.0)
        self.taken += 1
        for optimizer, rate in zip(self.optimizers, self._rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * (1 - done * (1 - self._final_rate))
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        for optimizer in self.optimizers:
            optimizer.step()
        return loss.item()


class Best:
    """The parameters of the best epoch on the validation rows; without such rows, of the last one."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self.loss, self.waited = float("inf"), 0
        self.parameters: dict[str, Tensor] = {}

    def update(self, model: SceneModel) -> bool:
        """Looks at the model after an epoch; True where training is to end."""
        patience = self._problem.training.patience
        loss = validation_loss(model, self._problem) if patience else -float("inf")
        self.waited = 0 if loss < self.loss or not patience else self.waited + 1
        if not self.waited:
            self.loss = loss
            self.parameters = {name: value.cpu().clone() for name, value in model.state_dict().items()}
        if patience:
            logger.info("scenes: loss %.4f on the validation day, best %.4f", loss, self.loss)
        return bool(patience and self.waited >= patience)


def validation_loss(model: SceneModel, problem: Problem) -> float:
    """The training loss per validation row."""
    rows, registry = problem.validation, problem.registry
    mask = torch.from_numpy(rows.scene)[:, None] == torch.tensor(registry.pair_scene)
    labels = torch.from_numpy(rows.labels).float()[:, torch.tensor(registry.pair_task)]
    logits = predict_logits(model, rows)
    loss = multi_scene_loss(logits, labels, mask, problem.positive_weight, problem.task_weight)
    return loss.item() / max(len(rows), 1)


def fit_in_process(problem: Problem, directory: Path) -> SceneModel:
    """Trains in the calling process, from memory; goes on from the checkpoint in the directory, if there is one."""
    config = problem.training
    require(not config.gpu or torch.cuda.is_available(), "gpu", config.gpu, "False where torch sees no GPU")
    model = untrained(problem).to("cuda" if config.gpu else "cpu")
    stepper, best = Stepper(model, problem, problem.steps), Best(problem)
    progress = Progress("scenes", config.epochs * len(problem.rows), "samples")
    epoch, ended = load_checkpoint(directory, model, stepper, best)
    while epoch < config.epochs and not ended:
        order = np.random.default_rng([config.seed, epoch]).permutation(len(problem.rows))
        for start in range(0, len(order), config.batch_size):
            batch = problem.rows.take(order[start: start + config.batch_size])
            progress.advance(len(batch), f"loss {stepper.step(*tensors(batch)):.4f}")
        epoch, ended = epoch + 1, best.update(model)
        save_checkpoint(directory, model, stepper, best, epoch, ended)
    progress.finish()
    model.load_state_dict(best.parameters)
    return model.cpu()


def _device(model: torch.nn.Module) -> torch.device:
    return next(model.parameters()).device


def _moved(parts: Iterable[Tensor], device: torch.device) -> tuple[Tensor, ...]:
    return tuple(part.to(device, non_blocking=True) for part in parts)


def save_checkpoint(directory: Path, model: SceneModel, stepper: Stepper, best: Best, epoch: int, ended: bool) -> None:
    """Writes what `load_checkpoint` reads, under a temporary name first."""
    directory.mkdir(parents=True, exist_ok=True)
    temporary = directory / f".{_CHECKPOINT}.{os.getpid()}"
    torch.save({"model": model.state_dict(), "best": best.parameters, "best_loss": best.loss, "waited": best.waited,
                "epoch": epoch, "ended": ended, "taken": stepper.taken,
                "optimizers": [optimizer.state_dict() for optimizer in stepper.optimizers]}, temporary)
    temporary.replace(directory / _CHECKPOINT)


def load_checkpoint(directory: Path, model: SceneModel, stepper: Stepper, best: Best) -> tuple[int, bool]:
    """Epochs that an earlier attempt completed, and whether it had ended; (0, False) without a checkpoint."""
    path = directory / _CHECKPOINT
    if not path.is_file():
        return 0, False
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(stepper.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    best.parameters, best.loss, best.waited = state["best"], state["best_loss"], state["waited"]
    stepper.taken = state["taken"]
    return int(state["epoch"]), bool(state["ended"])


def tensors(batch: EncodedRows) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """ids, numbers, history, scene, labels."""
    return (torch.from_numpy(batch.ids()), torch.from_numpy(batch.numbers()), torch.from_numpy(batch.history),
            torch.from_numpy(batch.scene), torch.from_numpy(batch.labels).float())


def to_table(rows: EncodedRows) -> pa.Table:
    """The rows as Arrow columns; matrices are fixed-size lists, so that a batch is viewed without a copy."""
    matrices: dict[str, np.ndarray] = {
        "context_ids": rows.context.ids, "context_numbers": rows.context.numbers, "history": rows.history,
        "labels": rows.labels}
    # Arrow has no fixed-size lists of no elements; `from_table` takes an absent column for an empty one.
    lists = {name: pa.FixedSizeListArray.from_arrays(pa.array(matrix.reshape(-1)), matrix.shape[1])
             for name, matrix in matrices.items() if matrix.shape[1]}
    return pa.table({"user": rows.user, "item": rows.item, "scene": rows.scene, **lists})


def from_table(table: pa.Table, users: Encoded, items: Encoded) -> EncodedRows:
    """The inverse of `to_table`, a view of its memory, which may be read-only: torch wants a copy (`take`)."""
    def matrix(name: str, dtype: type) -> np.ndarray:
        if name not in table.column_names:
            return np.zeros((table.num_rows, 0), dtype)
        column = table[name].combine_chunks()
        return column.flatten().to_numpy().reshape(len(column), column.type.list_size)
    context = Encoded(matrix("context_ids", np.int32), matrix("context_numbers", np.float32))
    return EncodedRows(users, items, table["user"].to_numpy(), table["item"].to_numpy(), context,
                       matrix("history", np.int32), table["scene"].to_numpy(), matrix("labels", np.float32))


def _has_bfloat16() -> bool:
    return bool(torch.cpu._is_avx512_bf16_supported())


@ray.remote(num_cpus=0)
class _Board:
    """Where the workers write how far they are, and the caller reads it."""

    def __init__(self) -> None:
        self._done, self._note = 0, ""

    def write(self, done: int, note: str) -> None:
        self._done, self._note = done, note

    def read(self) -> tuple[int, str]:
        return self._done, self._note


def _fit_on_ray(problem: Problem, storage: Path, name: str) -> SceneModel:
    """Trains with Ray Train; what is finished under this name is read, without starting workers for nothing."""
    finished, model = storage / f"{name}.pt", untrained(problem)
    saved = torch.load(finished, weights_only=True) if finished.is_file() else {}
    if saved.get("epochs") == problem.training.epochs:
        model.load_state_dict(saved["model"])
        return model
    model.load_state_dict(_trained_on_ray(problem, storage, name))
    temporary = finished.with_suffix(f".{os.getpid()}")
    torch.save({"epochs": problem.training.epochs, "model": model.state_dict()}, temporary)
    temporary.replace(finished)
    return model


def _trained_on_ray(problem: Problem, storage: Path, name: str) -> dict[str, Tensor]:
    """The best epoch's parameters."""
    config = problem.training
    ray_compat.patient_start()
    order = np.random.default_rng([config.seed, 0]).permutation(len(problem.rows))
    shares = deal(order, config.batch_size, config.workers)
    # The rows travel as a dataset for each worker, everything else once through the object store.
    datasets = {_dataset_of(rank): ray.data.from_arrow(windows(problem.rows.take(share), rows_per_worker(problem)))
                for rank, share in enumerate(shares)}
    nothing = np.zeros(0, np.int64)
    shared = dataclasses.replace(problem, rows=problem.rows.take(nothing), recent=nothing)
    board = _Board.remote()  # type: ignore[attr-defined]
    trainer = ray_compat.torch_trainer(
        _worker, train_loop_config={"problem": ray.put(shared), "rows": config.workers * len(shares[0]),
                                    "steps": -(-len(shares[0]) // rows_per_worker(problem)), "board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers, use_gpu=config.gpu,
            resources_per_worker={"CPU": 1, "GPU": 1} if config.gpu else {"CPU": 1}),
        run_config=ray.train.RunConfig(name=name, storage_path=str(storage)),
        datasets=datasets, dataset_config=ray.train.DataConfig(datasets_to_split=[]))
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, config.epochs * len(problem.rows), stop), daemon=True)
    watcher.start()
    try:
        result = trainer.fit()
    finally:
        stop.set()
        watcher.join()
        ray.kill(board)
    with result.checkpoint.as_directory() as directory:
        best: dict[str, Tensor] = torch.load(Path(directory) / _CHECKPOINT, weights_only=True)["best"]
        return best


def _watch(board: Any, total: int, stop: threading.Event) -> None:
    """Logs the workers' progress in the caller's process, where somebody reads it."""
    progress, seen = Progress("scenes, workers starting", total, "samples"), 0
    ended = False
    while not ended:
        ended = stop.wait(0.5)
        done, note = ray.get(board.read.remote())
        if done and not seen:
            progress = Progress("scenes", total, "samples")  # the rate is that of training, not of starting
        if seen < total:
            progress.advance(done - seen, note)
            if done >= total:
                progress.finish(f"{note}; Ray Train takes some seconds to close")
        seen = done
    if seen < total:  # early stopping
        progress.finish(note)


def _worker(loop: dict[str, Any]) -> None:
    problem: Problem = ray.get(loop["problem"])
    config = problem.training
    torch.set_num_threads(config.threads)
    context = ray.train.get_context()
    workers, rank = context.get_world_size(), context.get_world_rank()
    first = rank == 0
    model = ray.train.torch.prepare_model(untrained(problem))
    stepper, best = Stepper(model, problem, loop["steps"]), Best(problem)
    epoch, ended = _restore(model, stepper, best)
    done = epoch * loop["rows"]
    shard = ray.train.get_dataset_shard(_dataset_of(rank))
    while epoch < config.epochs and not ended:
        loss = 0.0
        for step, batch in enumerate(batches(shard, problem, epoch)):
            loss = stepper.step(*tensors(batch))
            done += len(batch) * workers
            if first and step % 10 == 0:
                loop["board"].write.remote(min(done, (epoch + 1) * loop["rows"]), f"loss {loss:.4f}")
        epoch += 1
        if first:
            ray.get(loop["board"].write.remote(epoch * loop["rows"], f"loss {loss:.4f}"))
        ended = _agreed(best.update(_plain(model)), workers)
        _report(model, stepper, best, epoch, ended, first)


def deal(order: np.ndarray, batch_size: int, workers: int) -> list[np.ndarray]:
    """Each worker's rows, in its order: of every batch an equal part.

    So the workers' batches side by side are the batches of one process, and the averaged gradients are its own. Of a
    last batch that the workers cannot share equally, the rest (fewer rows than workers) is left out.
    """
    size = max(1, batch_size // workers) * workers
    whole = order[: len(order) // workers * workers]
    parts = [whole[start:start + size].reshape(workers, -1) for start in range(0, len(whole), size)]
    return list(np.concatenate(parts, axis=1)) if parts else [whole] * workers


def rows_per_worker(problem: Problem) -> int:
    """Of a batch."""
    return max(1, problem.training.batch_size // max(problem.training.workers, 1))


def windows(rows: EncodedRows, size: int) -> list[pa.Table]:
    """The rows as tables of some thousand, each a multiple of the batch of `size` rows."""
    table, step = to_table(rows), _rows_per_window(size)
    return [table.slice(start, step) for start in range(0, table.num_rows, step)]


def batches(shard: Any, problem: Problem, epoch: int) -> Iterator[EncodedRows]:
    """Batches of one epoch; rows come shuffled, later epochs shuffle every window again.

    Ray Data hands over windows, in which batches are taken from memory: its cost a call is that of dozens of rows.
    """
    size, rng = rows_per_worker(problem), np.random.default_rng([problem.training.seed, epoch])
    for table in shard.iter_batches(batch_size=_rows_per_window(size), batch_format="pyarrow", prefetch_batches=1):
        rows = from_table(table, problem.rows.users, problem.rows.items)
        order = rng.permutation(len(rows)) if epoch else np.arange(len(rows))
        for start in range(0, len(order), size):
            yield rows.take(order[start:start + size])


def _rows_per_window(size: int) -> int:
    return max(1, _WINDOW_ROWS // size) * size


def _dataset_of(rank: int) -> str:
    """The name of a worker's dataset."""
    return f"rows of worker {rank}"


def _plain(model: torch.nn.Module) -> SceneModel:
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model  # type: ignore[return-value]


def _agreed(ended: bool, workers: int) -> bool:
    """What the first worker says: a worker that went on alone would wait for the others for ever."""
    if workers == 1:
        return ended
    said = torch.tensor([float(ended)], device=ray.train.torch.get_device())
    torch.distributed.broadcast(said, src=0)
    return bool(said.item())


def _restore(model: torch.nn.Module, stepper: Stepper, best: Best) -> tuple[int, bool]:
    """`load_checkpoint` of this worker's training."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0, False
    with checkpoint.as_directory() as directory:
        return load_checkpoint(Path(directory), _plain(model), stepper, best)


def _report(model: torch.nn.Module, stepper: Stepper, best: Best, epoch: int, ended: bool, first: bool) -> None:
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = None
        if first:
            save_checkpoint(Path(directory), _plain(model), stepper, best, epoch, ended)
            checkpoint = ray.train.Checkpoint.from_directory(directory)
        ray.train.report({"epoch": epoch}, checkpoint=checkpoint)
