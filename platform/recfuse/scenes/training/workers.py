"""Training with Ray Train over Ray Data, on one or more workers."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import ray
import ray.data
import ray.train
import ray.train.torch
import torch
from ray.exceptions import RayError
from torch import Tensor

from recfuse.runtime import ray_compat
from recfuse.runtime.console import Progress
from recfuse.runtime.devices import chosen
from recfuse.runtime.limits import WAIT_LIMIT_SECONDS
from recfuse.runtime.placement import Share, described, most_workers, nodes, required_share, shares
from recfuse.runtime.waiting import Watch
from recfuse.scenes.model import SceneModel
from recfuse.scenes.training.blocks import batches, deal, rows_per_worker, windows
from recfuse.scenes.training.checkpoint import CHECKPOINT, load_checkpoint, save_checkpoint
from recfuse.scenes.training.problem import Problem, untrained
from recfuse.scenes.training.step import Stepper
from recfuse.scenes.training.stop import Best
from recfuse.scenes.training.tensors import tensors

logger = logging.getLogger("recfuse")
# How often the workers are started anew where some were lost.
RESTARTS = 3
_RECOUNT_SECONDS = 5.0


def fit_on_ray(problem: Problem, storage: Path, name: str, wait_limit: float = WAIT_LIMIT_SECONDS) -> SceneModel:
    """Trains with Ray Train; what is finished under this name is read, without starting workers for nothing.

    Args:
        wait_limit: seconds that the training waits for room or workers at most.

    Raises:
        InvalidFieldError: no nodes have room for the workers.
        WaitedTooLongError: the limit is reached.
    """
    finished, model = storage / f"{name}.pt", untrained(problem)
    saved = torch.load(finished, weights_only=True) if finished.is_file() else {}
    if saved.get("epochs") == problem.training.epochs:
        model.load_state_dict(saved["model"])
        return model
    with Watch("train_scenes", wait_limit) as watch:
        model.load_state_dict(_trained_on_ray(problem, storage, name, watch))
    temporary = finished.with_suffix(f".{os.getpid()}")
    torch.save({"epochs": problem.training.epochs, "model": model.state_dict()}, temporary)
    temporary.replace(finished)
    return model


def _trained_on_ray(problem: Problem, storage: Path, name: str, watch: Watch) -> dict[str, Tensor]:
    """The best epoch's parameters. Where workers are lost, as many as the nodes that are left hold go on from the last
    epoch."""
    wanted = problem.training.workers
    device = chosen("training.device", problem.training.device, gpus_of_nodes(), wanted)
    logger.info("train_scenes: %d workers train, on %s", wanted, device)
    allowed = shares(reads=False, gpus=float(device == "cuda"))
    ray_compat.patient_start()
    for attempt in itertools.count(1):
        share = required_share("training.workers", problem.training.workers, allowed)
        try:
            return _attempt(problem, storage, name, share)
        except ray.train.TrainingFailedError as error:
            if attempt > RESTARTS or not _was_cut_off(error):
                raise
            logger.warning("train_scenes: a worker was lost; starting the workers anew from the last complete epoch")
        workers = _workers_left(wanted, allowed, watch)
        if workers != problem.training.workers:
            logger.info("train_scenes: going on with %d of %d workers; %s", workers, wanted, described(nodes()))
        problem = dataclasses.replace(problem, training=problem.training.replace(workers=workers))
    raise AssertionError


def gpus_of_nodes() -> float:
    """How many GPUs the current Ray has."""
    return sum(node.total.get("GPU", 0.0) for node in nodes())


def _was_cut_off(error: Exception) -> bool:
    """Whether a worker has died. Its peers fail with errors of their own, and may be heard first."""
    failures = getattr(error, "worker_failures", {})
    return len(failures) > 1 or any(isinstance(each, RayError | RuntimeError) for each in failures.values())


def _workers_left(wanted: int, allowed: tuple[Share, ...], watch: Watch) -> int:
    """How many workers the nodes that are left hold, at least one: waits while there is no room for one."""
    while True:
        # Ray gives up a node that does not answer some seconds after its workers were missed.
        time.sleep(_RECOUNT_SECONDS)
        workers = wanted if ray_compat.may_grow() else most_workers(wanted, nodes(), allowed)
        if workers:
            watch.wants = ""
            return workers
        watch.wants = "a node with room for a worker"


def _attempt(problem: Problem, storage: Path, name: str, share: Share) -> dict[str, Tensor]:
    config = problem.training
    order = np.random.default_rng([config.seed, 0]).permutation(len(problem.rows))
    shares = deal(order, config.batch_size, config.workers)
    # The rows travel as a dataset for each worker, everything else once through the object store.
    datasets = {_dataset_of(rank): ray.data.from_arrow(windows(problem.rows.take(share), rows_per_worker(problem)))
                for rank, share in enumerate(shares)}
    no_rows = np.zeros(0, np.int64)
    shared = dataclasses.replace(problem, rows=problem.rows.take(no_rows), recent=no_rows)
    board = _Board.remote()  # type: ignore[attr-defined]
    trainer = ray_compat.torch_trainer(
        _worker, train_loop_config={"problem": ray.put(shared), "rows": config.workers * len(shares[0]),
                                    "steps": -(-len(shares[0]) // rows_per_worker(problem)), "board": board},
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.workers, use_gpu=share.gpus > 0, resources_per_worker=share.bundle),
        run_config=ray.train.RunConfig(name=name, storage_path=str(storage)), torch_config=ray_compat.torch_config(),
        datasets=datasets, dataset_config=ray.train.DataConfig(datasets_to_split=[]))
    with _watched(board, config.epochs * len(problem.rows)):
        result = trainer.fit()
    with result.checkpoint.as_directory() as directory:
        best: dict[str, Tensor] = torch.load(Path(directory) / CHECKPOINT, weights_only=True)["best"]
        return best


@ray.remote(num_cpus=0)
class _Board:
    """Where the workers write how far they are, and the caller reads it."""

    def __init__(self) -> None:
        self._done, self._note = 0, ""

    def write(self, done: int, note: str) -> None:
        self._done, self._note = done, note

    def read(self) -> tuple[int, str]:
        return self._done, self._note


@contextmanager
def _watched(board: Any, total: int) -> Iterator[None]:
    """Inside, the workers' progress is logged in this process; the board ends with it."""
    stop = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, total, stop), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        ray.kill(board)


def _watch(board: Any, total: int, stop: threading.Event) -> None:
    """Logs the workers' progress in the caller's process, where somebody reads it."""
    progress, seen = Progress("scenes, workers starting", total, "samples"), 0
    ended = False
    while not ended:
        ended = stop.wait(0.5)
        done, note = ray.get(board.read.remote())
        if done and not seen:
            progress = Progress("scenes", total, "samples")  # The rate is that of training, not of starting.
        if seen < total:
            progress.advance(done - seen, note)
            if done >= total:
                progress.finish(f"{note}; Ray Train takes some seconds to close")
        seen = done
    if seen < total:  # Training stopped early.
        progress.finish(note)


def _worker(loop: dict[str, Any]) -> None:
    """What every worker runs: its batches of every epoch, until the first worker says that training has ended."""
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


def _dataset_of(rank: int) -> str:
    """The name of a worker's dataset."""
    return f"rows of worker {rank}"


def _plain(model: torch.nn.Module) -> SceneModel:
    """The network inside its wrapper for several workers."""
    return model.module if isinstance(model, torch.nn.parallel.DistributedDataParallel) else model  # type: ignore[return-value]


def _agreed(ended: bool, workers: int) -> bool:
    """What the first worker says: a worker that went on alone would wait for the others for ever."""
    if workers == 1:
        return ended
    decision = torch.tensor([float(ended)], device=ray.train.torch.get_device())
    torch.distributed.broadcast(decision, src=0)
    return bool(decision.item())


def _restore(model: torch.nn.Module, stepper: Stepper, best: Best) -> tuple[int, bool]:
    """`load_checkpoint` of this worker's training."""
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return 0, False
    with checkpoint.as_directory() as directory:
        return load_checkpoint(Path(directory), _plain(model), stepper, best)


def _report(model: torch.nn.Module, stepper: Stepper, best: Best, epoch: int, ended: bool, first: bool) -> None:
    """Tells Ray Train that an epoch has ended; the first worker adds the checkpoint."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = None
        if first:
            save_checkpoint(Path(directory), _plain(model), stepper, best, epoch, ended)
            checkpoint = ray.train.Checkpoint.from_directory(directory)
        ray.train.report({"epoch": epoch}, checkpoint=checkpoint)
