"""How ingest, training, simulation and evaluation scale over workers on one machine.

    python -m benchmarks.scaling [--workers 1 2] [--parts ingest training simulation env_runners evaluation]

Each point is a process with a Ray of its own that has so many CPUs for work (and one more for training, where Ray Data
feeds the learners). Prints rates, and each rate over that of the first point.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import torch

from benchmarks.sweep import VOCABULARY, write_samples
from recfuse.evaluation.held_out import read_held_out
from recfuse.evaluation.ope import ncis
from recfuse.fusion.policies import FixedGaussian
from recfuse.learning.algorithm import FusionAlgorithmConfig
from recfuse.learning.algorithms.actor_critic import ActorCriticConfig
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.config import OnlineSettings
from recfuse.learning.online import FusionEnvRunner, first_samples, online_config
from recfuse.learning.samples import SampleSet
from recfuse.learning.settings import StoppingRule
from recfuse.logs.config import IngestConfig
from recfuse.logs.files import write_parquet
from recfuse.logs.ingest import ingest
from recfuse.logs.schema import VOCABULARY_FILE, complete, session_log_schema
from recfuse.runtime import ray_compat
from recfuse.runtime.console import table
from recfuse.simulation.online import VocabularyEnv
from recfuse.simulation.rollout import live
from recfuse.simulation.world import World

INGEST_ROWS, TRAINING_ROWS, PASSES, PERSONS, ROUNDS, EVALUATIONS = 400_000, 200_000, 6, 8_000, 12, 16
_PLACE = "{"


def of_ingest(workers: int, scratch: Path, arguments: argparse.Namespace) -> float:
    """Rows a second of the whole job: read, check, exchange, write."""
    rows, rng = INGEST_ROWS, np.random.default_rng(0)

    def lists(width: int, low: float = -1.0) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(
            pa.array(rng.uniform(low, 1.0, rows * width).astype(np.float32)), width)

    states, actions = VOCABULARY.state_size, VOCABULARY.action_size
    feedback = pa.StructArray.from_arrays(
        [pa.array(rng.random(rows).astype(np.float32)) for _ in VOCABULARY.behaviour_names],
        names=list(VOCABULARY.behaviour_names))
    log = complete({
        "request_id": pa.array([f"r{n}" for n in range(rows)]),
        "user_id": pa.array([f"u{n}" for n in rng.integers(rows // 20, size=rows)]),
        "ts": pa.array(1_650_000_000_000_000 + np.arange(rows) * 1_000_000).cast(pa.timestamp("us", "UTC")),
        "stage": pa.array(["fine"] * rows), "scene": pa.array(["feed"] * rows), "state": lists(states),
        "mu": lists(actions), "sigma": lists(actions, 0.5), "action": lists(actions),
        "model_version": pa.array(["v"] * rows), "feedback": feedback, "last": pa.array(np.zeros(rows, bool)),
    }, session_log_schema(VOCABULARY))
    (scratch / "logs").mkdir()
    VOCABULARY.save(scratch / "logs" / VOCABULARY_FILE)
    for place in range(16):
        write_parquet(log.slice(place * rows // 16, rows // 16), scratch / "logs" / f"{place}.parquet")
    begin = time.perf_counter()
    result = ingest(IngestConfig(logs=str(scratch / "logs"), output=str(scratch / "samples")))
    return result.account.kept / (time.perf_counter() - begin)


def of_training(workers: int, scratch: Path, arguments: argparse.Namespace) -> float:
    """Samples a second through the critics, from the second pass on: the first one reads."""
    write_samples(scratch / "samples", TRAINING_ROWS)
    settings = TwoStageConfig(num_learners=workers, critics=StoppingRule(iterations=PASSES), minibatch_size=4096)
    algorithm = FusionAlgorithmConfig().learn(settings, SampleSet.open(scratch / "samples")).build_algo()
    algorithm.train()
    begin = time.perf_counter()
    for _ in range(PASSES - 1):
        algorithm.train()
    rate = TRAINING_ROWS * (PASSES - 1) / (time.perf_counter() - begin)
    algorithm.stop()
    return rate


def of_simulation(workers: int, scratch: Path, arguments: argparse.Namespace) -> float:
    """Simulated persons a second under a policy that reads the state; a person's luck does not depend on the worker."""
    world = World.load(Path(arguments.simulation) / "world")
    shared = ray.put(world)
    policy = FixedGaussian(np.full(world.vocabulary.action_size, 0.5), 0.5)
    shares = np.array_split(np.arange(PERSONS), 4 * workers)
    run = ray.remote(num_cpus=1)(live)
    options = {"seed": 1, "explore": True, "rng": np.random.default_rng(1)}
    ray.get([run.remote(shared, policy, share[:50], **options) for share in shares])  # starts the processes
    begin = time.perf_counter()
    ray.get([run.remote(shared, policy, share, **options) for share in shares])
    return PERSONS / (time.perf_counter() - begin)


def of_env_runners(workers: int, scratch: Path, arguments: argparse.Namespace) -> float:
    """Requests a second that RLlib's env runners bring under the current policy, from its weights to columns."""
    world = World.load(Path(arguments.simulation) / "world")
    online, settings = OnlineSettings(runners=workers, sessions=256), ActorCriticConfig()
    first = FixedGaussian(np.full(world.vocabulary.action_size, 0.5), 0.5)
    samples = first_samples(VocabularyEnv(world, online.sessions, 0), first, world.vocabulary, online, 0)
    algorithm = online_config(settings, samples, lambda index: VocabularyEnv(world, online.sessions, index),
                              online).build_algo()
    [weights] = algorithm.learner_group.get_weights().values()

    def rounds(numbers: range) -> int:
        requests = 0
        for number in numbers:
            shared = ray.put(weights)
            for part in algorithm.env_runner_group.foreach_env_runner(
                    functools.partial(FusionEnvRunner.sample, weights=shared, iteration=number),
                    local_env_runner=False):
                requests += len(part["done"])
        return requests

    rounds(range(2))
    begin = time.perf_counter()
    rate = rounds(range(2, 2 + ROUNDS)) / (time.perf_counter() - begin)
    algorithm.stop()
    return rate


def of_evaluation(workers: int, scratch: Path, arguments: argparse.Namespace) -> float:
    """Off-policy estimates a minute on 200,000 requests, with bootstrap intervals over users."""
    write_samples(scratch / "samples", TRAINING_ROWS)
    log = read_held_out(str(scratch / "samples"), VOCABULARY).log
    shared = ray.put((log.log_prob, log.feedback, log.user_id.astype(str)))

    @ray.remote(num_cpus=1)
    def estimate(data: tuple[np.ndarray, np.ndarray, np.ndarray], shift: float) -> float:
        log_prob, feedback, users = data
        return float(ncis(log_prob + shift, log_prob, feedback, 10.0, users).estimate[0])

    ray.get([estimate.remote(shared, 0.0) for _ in range(workers)])
    begin = time.perf_counter()
    ray.get([estimate.remote(shared, 0.01 * number) for number in range(EVALUATIONS)])
    return 60 * EVALUATIONS / (time.perf_counter() - begin)


PARTS: dict[str, tuple[str, int, Callable[[int, Path, argparse.Namespace], float]]] = {
    "ingest": ("rows/s", 0, of_ingest), "training": ("samples/s", 1, of_training),
    "simulation": ("persons/s", 0, of_simulation), "env_runners": ("requests/s", 0, of_env_runners),
    "evaluation": ("estimates/min", 0, of_evaluation)}


def measure(part: str, workers: int, arguments: argparse.Namespace) -> None:
    """One point, printed as JSON."""
    torch.set_num_threads(1)
    _, spare, run = PARTS[part]
    with tempfile.TemporaryDirectory() as scratch:
        ray_compat.start_local(logging.ERROR, num_cpus=workers + spare, object_store_memory=1 << 30)
        rate = run(workers, Path(scratch), arguments)
        ray.shutdown()
    print(json.dumps({"rate": rate}), flush=True)


def main() -> None:
    """Measures every point in a process of its own and prints the curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--simulation", default="runs/demo/simulation")
    parser.add_argument("--point", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.point:
        measure(arguments.point[0], int(arguments.point[1]), arguments)
        return
    rows = []
    for part in arguments.parts:
        rates = []
        for workers in arguments.workers:
            done = subprocess.run(
                [sys.executable, "-m", "benchmarks.scaling", "--point", part, str(workers), "--simulation",
                 arguments.simulation], text=True, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})
            lines = [line for line in done.stdout.splitlines() if line.startswith(_PLACE)]
            rates.append(json.loads(lines[-1])["rate"] if done.returncode == 0 and lines else float("nan"))
        rows.append([f"{part}, {PARTS[part][0]}", *(f"{rate:,.0f} ({rate / rates[0]:.2f} ×)" for rate in rates)])
    table(f"Scaling over workers on {os.cpu_count()} cores", ["", *(f"{n} worker(s)" for n in arguments.workers)], rows)


if __name__ == "__main__":
    main()
