"""Our learner, fed by Ray Data through RLlib's LearnerGroup, against a bare torch loop, RLlib's MARWIL, d3rlpy's IQL.

(a) is what `jobs/train_fusion.py` runs. (b) is the ceiling: the same networks, losses, optimizers, minibatches and
threads, the samples in memory as tensors from the start, and nothing else: no metrics, no windows, no RLlib. What stage
one and two need of the frozen networks, (b) is given for nothing. The first pass of a phase, in which (a) reads the
samples or asks the frozen networks, stands in a column of its own. Passes of (a) and (b) take turns, so that a busy
minute of the machine hits both; the ratio is the median over the rounds. Seconds of the wall and seconds of this
process' arithmetic (CPU time) are given both: on a machine that others use too, the latter says more.

(c) and (d) learn one behaviour's value and one policy, (a) a critic per behaviour, the cloned policy, an auxiliary
policy per short-term behaviour and the long-term policy. So each peer stands beside three of ours: one pass of all four
phases; the same counted as samples × networks trained; and what is like the peer (one critic and its policy; our IQL).
The peers run on fewer samples, and a sample is a logged request everywhere.

    python -m benchmarks.learner                                # phases, peers, curve, at 1M samples
    python -m benchmarks.learner --parts memory --memory-rows 1000000 10000000
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
import tyro
from ray.rllib.core.learner.training_data import TrainingData
from torch import Tensor

from benchmarks import learner_d3rlpy, learner_marwil
from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.fusion import losses
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.networks import Critics, GaussianPolicies
from recfuse.learning import registry
from recfuse.learning.algorithm import FusionAlgorithm, FusionAlgorithmConfig
from recfuse.learning.samples import SampleSet, arrays
from recfuse.learning.settings import LearningSettings
from recfuse.logs.files import write_parquet
from recfuse.logs.schema import VOCABULARY_FILE, complete, sample_schema
from recfuse.runtime import ray_compat
from recfuse.runtime.console import table

FILE_ROWS = 250_000
PHASES: tuple[str, ...] = ("critics", "cloning", "stage_one", "stage_two")
Part = Literal["phases", "peers", "curve", "memory"]


@dataclass(frozen=True)
class Arguments:
    """Attributes:
        rows: samples.
        state, actions: widths.
        batch: samples of a step.
        rounds: passes of each contender after the first.
        threads: of each contender's arithmetic.
        device: `cpu`, or `cuda` for both contenders.
        arithmetic: of (a) and (b); the peers stand beside our IQL in bfloat16 too.
        behaviours: one of them long-term.
        parts: what is measured.
        peer_updates: minibatches of d3rlpy after its warm-up; peer_passes: of MARWIL after its first one.
        peer_rows: samples that the peers read.
        peer_environment: where d3rlpy is installed; made where it is missing.
        curve: numbers of behaviours; curve_rows: samples of each measurement.
        memory_rows: samples of each measurement; memory_state: width of their state, which decides how long it takes.
    """

    rows: int = 1_000_000
    state: int = 64
    actions: int = 8
    batch: int = 4096
    rounds: int = 3
    threads: int = 1
    device: str = "cpu"
    arithmetic: Literal["float32", "bfloat16"] = "float32"
    behaviours: int = 5
    parts: tuple[Part, ...] = ("phases", "peers", "curve")
    peer_updates: int = 50
    peer_passes: int = 2
    peer_rows: int = 250_000
    peer_environment: Path = Path("runs/benchmarks/d3rlpy")
    curve: tuple[int, ...] = (1, 2, 5, 10)
    curve_rows: int = 100_000
    memory_rows: tuple[int, ...] = (1_000_000, 10_000_000)
    memory_state: int = 64


def write_samples(directory: Path, arguments: Arguments) -> None:
    """Random samples in Parquet; what is learned from them does not matter here."""
    vocabulary = Vocabulary(
        behaviours=(Behaviour(name="watch_time", kind="long_term"),
                    *(Behaviour(name=f"short_{k}", kind="short_term") for k in range(1, arguments.behaviours))),
        fusion_parameters=tuple(f"p{k}" for k in range(arguments.actions)), state_size=arguments.state)
    vocabulary.save(directory / VOCABULARY_FILE)
    schema = sample_schema(vocabulary)
    rng = np.random.default_rng(0)
    for number, start in enumerate(range(0, arguments.rows, FILE_ROWS)):
        rows = min(FILE_ROWS, arguments.rows - start)
        action = rng.standard_normal((rows, arguments.actions), np.float32)
        columns = {
            "state": rng.standard_normal((rows, arguments.state), np.float32), "action": action,
            "action_logp": -.5 * (action**2 + np.log(2 * np.pi)).sum(1).astype(np.float32),
            "feedback": rng.random((rows, arguments.behaviours), np.float32) + .1 * action[:, :1],
            "next_state": rng.standard_normal((rows, arguments.state), np.float32),
            "done": (rng.random(rows) < .1).astype(np.float32),
        }
        names = pa.array(np.arange(start, start + rows).astype(str))
        arrays = {"user_id": names, "request_id": names, **{name: _arrow(values) for name, values in columns.items()}}
        write_parquet(complete(arrays, schema), directory / f"part-{number:05d}.parquet")


def _arrow(values: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.ndim == 2 else flat


class BareLoop:
    """The ceiling: tensors in memory, networks, losses, Adam."""

    def __init__(self, samples: SampleSet, settings: LearningSettings, device: str) -> None:
        self._settings = settings
        columns = arrays(pq.ParquetDataset(list(samples.files)).read())
        self._columns = {name: torch.from_numpy(np.array(values)).to(device) for name, values in columns.items()}
        short_term = [behaviour.name for behaviour in samples.vocabulary.short_term]
        self._columns["advantage"] = torch.randn(samples.rows, len(short_term), device=device)
        self._columns["weight"] = torch.rand(samples.rows, device=device)
        moments, network = samples.normalisation, settings.network
        self._critics = Critics(samples.vocabulary.behaviour_names, network, moments).to(device)
        self._auxiliaries = GaussianPolicies(short_term or ["none"], network, moments).to(device)
        self._policy = GaussianPolicies(("policy",), network, moments).to(device)
        self._discount = torch.tensor([b.gamma for b in samples.vocabulary.behaviours], device=device)
        rates = {self._critics: settings.critic_learning_rate, self._auxiliaries: settings.auxiliary_learning_rate,
                 self._policy: settings.policy_learning_rate}
        self._optimizers = {network: torch.optim.Adam(network.parameters(), lr=rate, fused=True)
                            for network, rate in rates.items()}
        self._phases: dict[str, tuple[torch.nn.Module, tuple[str, ...], Callable[..., Tensor]]] = {
            "critics": (self._critics, ("state", "feedback", "next_state", "done"), self._critics_loss),
            "cloning": (self._policy, ("state", "action"), self._cloning_loss),
            "stage_one": (self._auxiliaries, ("state", "action", "action_logp", "advantage"), self._stage_one_loss),
            "stage_two": (self._policy, ("state", "action", "weight"), self._stage_two_loss),
        }

    def run_pass(self, phase: str) -> None:
        """One pass in random order."""
        network, names, loss_of = self._phases[phase]
        optimizer, size = self._optimizers[network], self._settings.minibatch_size
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(self._columns["done"])))
        order = order.to(self._columns["done"].device)
        for start in range(0, len(order) - size + 1, size):
            rows = order[start : start + size]
            loss = loss_of(*(self._columns[name].index_select(0, rows) for name in names))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), self._settings.max_gradient_norm, foreach=True)
            optimizer.step()

    def _critics_loss(self, state: Tensor, feedback: Tensor, next_state: Tensor, done: Tensor) -> Tensor:
        value = self._critics(state)
        with torch.no_grad():
            next_value = torch.zeros_like(value)
            next_value[:, :1] = self._critics(next_state, slice(0, 1))  # only watch time has a discount
        return losses.critic_loss(value, next_value, feedback, done, self._discount).loss

    def _cloning_loss(self, state: Tensor, action: Tensor) -> Tensor:
        return -self._policy.log_prob(state, action).mean()

    def _stage_one_loss(self, state: Tensor, action: Tensor, action_logp: Tensor, advantage: Tensor) -> Tensor:
        log_prob = self._auxiliaries.log_prob(state, action)
        return losses.auxiliary_policy_loss(log_prob, action_logp, advantage, self._settings.rho_max).loss

    def _stage_two_loss(self, state: Tensor, action: Tensor, weight: Tensor) -> Tensor:
        return losses.weighted_likelihood_loss(self._policy.log_prob(state, action)[:, 0], weight)


@dataclass(frozen=True)
class Pass:
    """Seconds of one pass: of the wall, and of this process' CPU."""

    wall: float
    cpu: float


def timed(action: Callable[[], object]) -> Pass:
    """Runs it once."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Pass(time.perf_counter() - wall, time.process_time() - cpu)


def passes(algorithm: FusionAlgorithm, bare: BareLoop, phase: str, rounds: int) -> Iterator[tuple[Pass, Pass]]:
    """A pass of (a) and of (b), round after round."""
    data = TrainingData(data_iterators=algorithm._iterators)
    for number in range(rounds + 1):
        ours = timed(lambda n=number: algorithm.learner_group.update(training_data=data, phase=phase, iteration=n))
        yield ours, timed(lambda: bare.run_pass(phase))


def settings_of(arguments: Arguments, algorithm: str = "two_stage") -> LearningSettings:
    """What the job would run, with nothing held out."""
    return registry.settings(
        algorithm, threads=arguments.threads,
        network=NetworkConfig(hidden=learner_marwil.HIDDEN, arithmetic=arguments.arithmetic),
        minibatch_size=arguments.batch, holdout=0.0, memory_mib=8192,
        device=arguments.device)


def measure(directory: Path, arguments: Arguments, phases: tuple[str, ...]) -> dict[str, list[tuple[Pass, Pass]]]:
    """Every round of every phase; the first one, in which samples are read and frozen networks asked, comes first."""
    samples = SampleSet.open(directory)
    settings = settings_of(arguments, "two_stage" if "stage_one" in phases else "actor_critic")
    algorithm = FusionAlgorithmConfig().learn(settings, samples).build_algo()
    bare = BareLoop(samples, settings, arguments.device)
    try:
        found = {}
        for phase in phases:
            found[phase] = list(passes(algorithm, bare, phase, arguments.rounds))
            seconds = "; ".join(f"{a.wall:.1f} / {b.wall:.1f} ({a.cpu:.1f} / {b.cpu:.1f})" for a, b in found[phase])
            print(f"{samples.rows:,} samples, {phase}: seconds of (a) / (b), of CPU in brackets: {seconds}", flush=True)
        return found
    finally:
        algorithm.stop()


def speed_of(
    directory: Path, arguments: Arguments, name: str, phases: tuple[str, ...], memory_mib: int = 8192
) -> tuple[float, float]:
    """Samples/s of one pass of all these phases of one of our algorithms: the first ones, and later ones."""
    samples = SampleSet.open(directory)
    settings = settings_of(arguments, name).replace(memory_mib=memory_mib)
    algorithm = FusionAlgorithmConfig().learn(settings, samples).build_algo()
    data, first, later = TrainingData(data_iterators=algorithm._iterators), 0.0, 0.0
    try:
        for phase in phases:
            times = [timed(lambda n=number, p=phase: algorithm.learner_group.update(
                training_data=data, phase=p, iteration=n)).wall for number in range(arguments.rounds + 1)]
            first, later = first + times[0], later + float(np.median(times[1:]))
    finally:
        algorithm.stop()
    return samples.rows / first, samples.rows / later


def show_phases(found: dict[str, list[tuple[Pass, Pass]]], rows: int) -> float:
    """Prints the table; returns (a)'s samples/s of one pass of all phases."""
    lines, total = [], 0.0
    for phase, (first, *rounds) in found.items():
        ours, ceiling = (float(np.median([pair[side].wall for pair in rounds])) for side in (0, 1))
        total += ours
        wall = sorted(b.wall / a.wall for a, b in rounds)
        cpu = sorted(b.cpu / a.cpu for a, b in rounds)
        lines.append((phase, f"{rows / first[0].wall:,.0f}", f"{rows / ours:,.0f}", f"{rows / ceiling:,.0f}",
                      *(f"{np.median(each):.2f} [{each[0]:.2f}, {each[-1]:.2f}]" for each in (wall, cpu))))
    table("samples/s of a pass", ["phase", "(a) first pass", "(a) ours", "(b) bare torch", "a/b, wall", "a/b, CPU"],
          lines)
    print(f"(a) one pass of all phases: {rows / total:,.0f} samples/s")
    return rows / total


def show_peers(arguments: Arguments, ours: float, root: Path) -> None:
    """(c) and (d) on samples of one behaviour, beside ours: the whole of it, and what is like the peer."""
    directory, steps = root / "peers", root / "steps"
    directory.mkdir()
    write_samples(directory, dataclasses.replace(arguments, rows=arguments.peer_rows, behaviours=1))
    learner_marwil.write_steps(directory, steps, arguments.peer_rows)
    ours_like = speed_of(directory, arguments, "actor_critic", ("critics", "policy"))
    streamed = speed_of(directory, arguments, "actor_critic", ("critics", "policy"), memory_mib=0)
    like_iql = speed_of(directory, arguments, "iql", ("action_values", "extraction"))
    halved = speed_of(directory, dataclasses.replace(arguments, arithmetic="bfloat16"), "iql",
                      ("action_values", "extraction"))
    marwil = learner_marwil.measure(steps, arguments.state, arguments.actions, arguments.batch, arguments.peer_rows,
                                    arguments.peer_passes)
    python = learner_d3rlpy.prepare(arguments.peer_environment)
    iql = learner_d3rlpy.samples_per_second(python, directory, arguments.peer_rows, arguments.batch,
                                            arguments.peer_updates, arguments.threads)
    networks = 2 * arguments.behaviours + 1  # critics, the cloned policy, auxiliaries, the long-term policy
    table(f"Peers, {arguments.peer_rows:,} samples; (c): {arguments.peer_passes} passes after the first, (d): "
          f"{arguments.peer_updates} minibatches",
          ["samples/s", "networks", "first pass", "later passes", "ratio of later passes"], [
        (f"(a) all phases, {arguments.behaviours} behaviours", networks, "", f"{ours:,.0f}",
         f"a/c {ours / marwil.later:.2f}, a/d {ours / iql:.2f}"),
        ("the same, samples × networks", networks, "", f"{networks * ours:,.0f}",
         f"to (c) {networks * ours / marwil.later / 2:.2f}, to (d) {networks * ours / iql / 4:.2f}"),
        ("ours, one critic and its policy", 2, f"{ours_like[0]:,.0f}", f"{ours_like[1]:,.0f}",
         f"to (c) {ours_like[1] / marwil.later:.1f}; first pass {ours_like[0] / marwil.first:.1f}"),
        ("the same, streamed in every pass", 2, f"{streamed[0]:,.0f}", f"{streamed[1]:,.0f}",
         f"to (c) {streamed[1] / marwil.later:.1f}"),
        ("(c) RLlib MARWIL, new API stack", 2, f"{marwil.first:,.0f}", f"{marwil.later:,.0f}", ""),
        ("ours, IQL", 4, f"{like_iql[0]:,.0f}", f"{like_iql[1]:,.0f}", f"to (d) {like_iql[1] / iql:.1f}"),
        ("the same, products in bfloat16", 4, f"{halved[0]:,.0f}", f"{halved[1]:,.0f}",
         f"to (d) {halved[1] / iql:.1f}"),
        ("(d) d3rlpy IQL", 4, "", f"{iql:,.0f}", "")])
    print(f"RLlib counts {marwil.counted:.2f} of a logged sample as trained on")


def show_curve(arguments: Arguments, root: Path) -> None:
    """Cost over the number of behaviours, and over the number of samples."""
    lines = []
    cases = [(m, arguments.curve_rows) for m in arguments.curve]
    cases += [(arguments.behaviours, factor * arguments.curve_rows) for factor in (2, 4)]
    for behaviours, rows in cases:
        directory = root / f"curve-{behaviours}-{rows}"
        directory.mkdir()
        some = dataclasses.replace(arguments, behaviours=behaviours, rows=rows, rounds=2)
        write_samples(directory, some)
        phases: tuple[str, ...] = ("critics", "cloning", "stage_one") if behaviours > 1 else ("critics", "cloning")
        found = measure(directory, some, phases)
        seconds = {phase: float(np.median([pair[0].cpu for pair in rounds[1:]])) for phase, rounds in found.items()}
        lines.append((behaviours, f"{rows:,}", *(f"{1e6 * seconds[phase] / rows:.1f}" if phase in seconds else "–"
                                                  for phase in ("critics", "cloning", "stage_one"))))
    table("CPU microseconds per sample and pass", ["behaviours", "samples", "critics", "cloning", "stage one"], lines)


def show_memory(arguments: Arguments, root: Path) -> None:
    """Peak resident sets, each measured in a process of its own."""
    lines = []
    for rows in arguments.memory_rows:
        directory = root / f"memory-{rows}"
        directory.mkdir()
        write_samples(directory, dataclasses.replace(arguments, rows=rows, state=arguments.memory_state))
        done = subprocess.run([sys.executable, "-m", "benchmarks.learner_memory", str(directory)], check=True,
                              stdout=subprocess.PIPE, text=True)
        found = json.loads(done.stdout.strip().splitlines()[-1])
        lines.append((f"{found['rows']:,}", f"{found['peak_mib']:,.0f}", f"{found['peak_own_mib']:,.0f}",
                      f"{found['seconds']:,.0f}"))
    table(f"Streamed samples, state {arguments.memory_state}: peak resident set of the learner, MiB",
          ["samples", "resident", "of it not shared", "seconds"], lines)


def main(arguments: Arguments) -> None:
    """Measures and prints the tables."""
    torch.set_num_threads(arguments.threads)
    print(f"learner: {dataclasses.asdict(arguments)}, torch {torch.__version__}, Ray {ray.__version__}, "
          f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        if "phases" in arguments.parts or "peers" in arguments.parts:
            directory = root / "samples"
            directory.mkdir()
            write_samples(directory, arguments)
            with _ray():
                ours = show_phases(measure(directory, arguments, PHASES), arguments.rows)
                if "peers" in arguments.parts:
                    show_peers(arguments, ours, root)
        if "curve" in arguments.parts:
            with _ray():
                show_curve(arguments, root)
        if "memory" in arguments.parts:
            show_memory(arguments, root)
    print(f"load at the end {os.getloadavg()[0]:.1f}")


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    ray_compat.silence()
    ray_compat.no_progress_bars()
    ray_compat.start_local(logging.ERROR, num_cpus=2)
    try:
        yield
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__))
