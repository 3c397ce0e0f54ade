"""Our learner, fed by Ray Data through RLlib's LearnerGroup, against a bare torch loop: samples/s of every phase.

(a) is what `jobs/train_fusion.py` runs. (b) is the ceiling: the same networks, losses, optimizers, minibatches and
threads, the samples in memory as tensors from the start, and nothing else: no metrics, no windows, no RLlib. What stage
one and two need of the frozen networks, (b) is given for nothing. The first pass of a phase, in which (a) reads the
samples or asks the frozen networks, stands in a column of its own. Passes of (a) and (b) take turns, so that a busy
minute of the machine hits both; the ratio is the median over the rounds.

    python -m benchmarks.learner --rows 1000000 --rounds 3
"""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
import tyro
from ray.rllib.core.learner.training_data import TrainingData
from torch import Tensor

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.console import table
from recfuse.fusion import losses
from recfuse.fusion.networks import Critics, GaussianPolicies, NetworkConfig
from recfuse.learning.algorithm import TwoStage, TwoStageConfig
from recfuse.learning.samples import SampleSet, arrays
from recfuse.learning.settings import LearningSettings, Phase
from recfuse.logs.schema import VOCABULARY_FILE, sample_schema

SHORT_TERM = ("like", "comment", "forward", "follow")
FILE_ROWS = 250_000


@dataclass(frozen=True)
class Arguments:
    """Attributes:
        rows: samples.
        state, actions: widths.
        batch: samples of a step.
        rounds: passes of each contender after the first.
        threads: of each contender's arithmetic.
        device: `cpu`, or `cuda` for both contenders.
    """

    rows: int = 1_000_000
    state: int = 64
    actions: int = 8
    batch: int = 4096
    rounds: int = 3
    threads: int = 1
    device: str = "cpu"


def write_samples(directory: Path, arguments: Arguments) -> None:
    """Random samples in Parquet; what is learned from them does not matter here."""
    vocabulary = Vocabulary(
        behaviours=(Behaviour(name="watch_time", kind="long_term"),
                    *(Behaviour(name=name, kind="short_term") for name in SHORT_TERM)),
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
            "feedback": rng.random((rows, 1 + len(SHORT_TERM)), np.float32) + .1 * action[:, :1],
            "next_state": rng.standard_normal((rows, arguments.state), np.float32),
            "done": (rng.random(rows) < .1).astype(np.float32),
        }
        values = [pa.array(np.arange(start, start + rows).astype(str)) if field.name == "user_id" else
                  _arrow(columns[field.name]) for field in schema]
        pq.write_table(pa.Table.from_arrays(values, schema=schema), directory / f"part-{number:05d}.parquet")


def _arrow(values: np.ndarray) -> pa.Array:
    flat = pa.array(np.ascontiguousarray(values, np.float32).ravel())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1]) if values.ndim == 2 else flat


class BareLoop:
    """The ceiling: tensors in memory, networks, losses, Adam."""

    def __init__(self, samples: SampleSet, settings: LearningSettings, device: str) -> None:
        self._settings = settings
        files = sorted(samples.directory.glob("*.parquet"))
        columns = arrays(pq.ParquetDataset(files).read())
        self._columns = {name: torch.from_numpy(np.array(values)).to(device) for name, values in columns.items()}
        self._columns["advantage"] = torch.randn(samples.rows, len(SHORT_TERM), device=device)
        self._columns["weight"] = torch.rand(samples.rows, device=device)
        moments, network = samples.normalisation, settings.network
        self._critics = Critics(samples.vocabulary.behaviour_names, network, moments).to(device)
        self._auxiliaries = GaussianPolicies(SHORT_TERM, network, moments).to(device)
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

    def run_pass(self, phase: Phase) -> None:
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


def passes(algorithm: TwoStage, bare: BareLoop, phase: Phase, arguments: Arguments) -> Iterator[tuple[float, float]]:
    """Seconds of a pass of (a) and of (b), round after round."""
    data = TrainingData(data_iterators=algorithm._iterators)
    for number in range(arguments.rounds + 1):
        ours = _seconds(lambda n=number: algorithm.learner_group.update(training_data=data, phase=phase, iteration=n))
        yield ours, _seconds(lambda: bare.run_pass(phase))


def _seconds(action: Callable[[], object]) -> float:
    begin = time.perf_counter()
    action()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def main(arguments: Arguments) -> None:
    """Measures and prints the table."""
    torch.set_num_threads(arguments.threads)
    settings = LearningSettings(
        network=NetworkConfig(hidden=(256, 128)), minibatch_size=arguments.batch, holdout=0.0, memory_mib=8192,
        threads=arguments.threads, gpus_per_learner=1.0 if arguments.device == "cuda" else 0.0)
    print(f"learner: {dataclasses.asdict(arguments)}, torch {torch.__version__}, Ray {ray.__version__}, "
          f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory() as directory:
        write_samples(Path(directory), arguments)
        samples = SampleSet.open(directory)
        algorithm = TwoStageConfig().learn(settings, samples).build_algo()
        bare = BareLoop(samples, settings, arguments.device)
        rows = []
        for phase in settings.phases:
            first, *seconds = passes(algorithm, bare, phase, arguments)
            ours, ceiling = (float(np.median([times[side] for times in seconds])) for side in (0, 1))
            ratios = sorted(times[1] / times[0] for times in seconds)
            rows.append((phase, f"{samples.rows / first[0]:,.0f}", f"{samples.rows / ours:,.0f}",
                         f"{samples.rows / ceiling:,.0f}", f"{np.median(ratios):.2f}",
                         f"{ratios[0]:.2f}-{ratios[-1]:.2f}"))
        algorithm.stop()
    table("samples/s of a pass", ["phase", "(a) first pass", "(a) ours", "(b) bare torch", "a/b", "range"], rows)


if __name__ == "__main__":
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    chosen = tyro.cli(Arguments, description=__doc__)
    for name in ("ray.rllib", "ray.tune", "ray.data", "ray._common.deprecation"):
        logging.getLogger(name).setLevel(logging.ERROR)
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    try:
        main(chosen)
    finally:
        ray.shutdown()
