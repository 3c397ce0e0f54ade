"""Training fed by Ray Data against the same training from memory: samples/s side by side.

One process, one model, the same steps; rounds are interleaved, medians. `memory` takes batches of encoded rows in this
process, `ray, object store` reads the same rows as blocks of Ray's object store, as Ray Train's workers do, and
`ray, parquet` streams them from files. Ray Data takes a fixed time until its first batch, whatever there is to read,
which is shown apart; `--repeat` lengthens the epoch, to see what remains of it.

    python -m benchmarks.scorer_ingest --exposures DIRECTORY
"""

from __future__ import annotations

import dataclasses
import logging
import tempfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow.parquet as pq
import ray
import ray.data
import torch
import tyro
from pydantic import Field

from recfuse.config import Config
from recfuse.runtime.cluster import cluster, read_parquet
from recfuse.runtime.console import table
from recfuse.scenes.config import ModelConfig
from recfuse.scenes.dataset import EncodedRows, scene_rows
from recfuse.scenes.training.blocks import batches, windows
from recfuse.scenes.training.config import TrainingConfig
from recfuse.scenes.training.problem import Problem, prepare, untrained
from recfuse.scenes.training.step import Stepper
from recfuse.scenes.training.tensors import tensors
from recfuse.simulation.sources import read_source


class IngestConfig(Config):
    """What is compared."""

    exposures: str = Field("embedded", description=(
        "The KuaiRand files are in this directory, or `embedded` generates rows."))
    rounds: int = Field(3, ge=1, description="Every source is read so often.")
    repeat: int = Field(1, ge=1, description="The rows come so often in an epoch.")
    batch_size: int = Field(2048, ge=1, description="The training takes batches of so many rows.")
    threads: int = Field(1, ge=1, description="The training computes on so many threads.")
    # More readers than there are idle cores take the trainer's.
    readers: int = Field(1, ge=1, description="So many tasks read Parquet at a time.")


def main(config: IngestConfig) -> None:
    """Runs the comparison and prints it."""
    torch.set_num_threads(config.threads)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    source = read_source(config.exposures)
    exposures = scene_rows(source.exposures, source.registry)
    problem = prepare(exposures, np.ones(exposures.rows.num_rows, bool), source.registry, ModelConfig(),
                      TrainingConfig(workers=0, batch_size=config.batch_size, threads=config.threads))
    problem = dataclasses.replace(problem, rows=problem.rows.take(np.tile(np.arange(len(problem.rows)), config.repeat)))
    blocks = windows(problem.rows, config.batch_size)
    with cluster(), tempfile.TemporaryDirectory() as directory:
        for number, block in enumerate(blocks):
            pq.write_table(block, f"{directory}/{number:04}.parquet")
        stored, streamed = ray.data.from_arrow(blocks), read_parquet([directory], config.readers)  # anew every epoch
        sources: dict[str, Callable[[], Iterator[EncodedRows]]] = {
            "memory": lambda: from_memory(problem),
            "ray, object store": lambda: batches(stored.iterator(), problem, 0),
            "ray, parquet": lambda: batches(streamed.iterator(), problem, 0)}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in sources}
        for number in range(config.rounds + 1):
            for name, make in sources.items():
                measured = train(problem, make)
                if number:  # the first round warms up
                    times[name].append(measured)
    rates = {name: np.array([len(problem.rows) / seconds for seconds, _ in measured])
             for name, measured in times.items()}
    base = np.median(rates["memory"])
    table(f"{len(problem.rows):,} rows, batch {config.batch_size}, {config.threads} thread(s), {config.rounds} rounds",
          ["source", "samples/s, median", "range", "to memory", "seconds until the first batch"],
          [(name, f"{np.median(one):,.0f}", f"{min(one):,.0f}..{max(one):,.0f}", f"{np.median(one) / base:.2f}",
            f"{np.median([first for _, first in times[name]]):.2f}") for name, one in rates.items()])


def train(problem: Problem, make: Callable[[], Iterator[EncodedRows]]) -> tuple[float, float]:
    """Seconds of one epoch, and of those until the first batch was there."""
    stepper = Stepper(untrained(problem), problem, problem.steps)
    begin, first, seen = time.perf_counter(), 0.0, 0
    for batch in make():
        first = first or time.perf_counter() - begin
        stepper.step(*tensors(batch))
        seen += len(batch)
    assert seen == len(problem.rows), (seen, len(problem.rows))
    return time.perf_counter() - begin, first


def from_memory(problem: Problem) -> Iterator[EncodedRows]:
    """Batches as the training in one process takes them."""
    order = np.random.default_rng(0).permutation(len(problem.rows))
    for start in range(0, len(order), problem.training.batch_size):
        yield problem.rows.take(order[start:start + problem.training.batch_size])


if __name__ == "__main__":
    main(tyro.cli(IngestConfig, description=__doc__))
