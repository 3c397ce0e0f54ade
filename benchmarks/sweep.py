"""A sweep of small trials on Ray Tune against the same trials one after the other in one process.

    python -m benchmarks.sweep --trials 16

Both sides read the same samples from memory, train the same policies and judge them; Tune's side includes the start of
its processes. Prints both times and their ratio, which is to stay below 1.25.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray
import torch

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.fusion.config import NetworkConfig
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.settings import StoppingRule
from recfuse.logs.files import write_parquet
from recfuse.logs.schema import VOCABULARY_FILE, complete, sample_schema
from recfuse.runtime.cluster import cluster
from recfuse.tune.fusion import fusion_study
from recfuse.tune.ledger import FINISHED, Ledger
from recfuse.tune.search import planned, run_trials
from recfuse.tune.settings import SearchConfig, SweepConfig
from recfuse.tune.space import Range
from recfuse.tune.studies import DONE

STATES, ACTIONS = 24, 6
VOCABULARY = Vocabulary(
    behaviours=(Behaviour(name="watch_time", kind="long_term"), Behaviour(name="like", kind="short_term"),
                Behaviour(name="follow", kind="short_term")),
    fusion_parameters=tuple(f"p{k}" for k in range(ACTIONS)), state_size=STATES)


def write_samples(directory: Path, rows: int, vocabulary: Vocabulary = VOCABULARY) -> None:
    """Samples of a logged bandit, ten to a user."""
    rng = np.random.default_rng(0)
    states, actions = vocabulary.state_size, vocabulary.action_size

    def lists(values: np.ndarray) -> pa.Array:
        return pa.FixedSizeListArray.from_arrays(pa.array(values.astype(np.float32).reshape(-1)), values.shape[1])

    state, action = rng.standard_normal((rows, states)), 0.5 * rng.standard_normal((rows, actions))
    density = (-0.5 * (action / 0.5) ** 2 - np.log(0.5 * np.sqrt(2 * np.pi))).sum(1)
    gain = 5 - ((action - 0.3 * np.tanh(state[:, :actions])) ** 2).sum(1, keepdims=True)
    feedback = np.abs(gain + 0.3 * rng.standard_normal((rows, len(vocabulary.behaviours))))
    directory.mkdir(parents=True)
    vocabulary.save(directory / VOCABULARY_FILE)
    columns = {"user_id": pa.array([f"u{n // 10}" for n in range(rows)]), "state": lists(state),
               "action": lists(action), "action_logp": pa.array(density.astype(np.float32)),
               "feedback": lists(feedback), "next_state": lists(np.roll(state, -1, axis=0)),
               "done": pa.array((np.arange(rows) % 10 == 9).astype(np.float32))}
    write_parquet(complete(columns, sample_schema(vocabulary)), directory / "part-00000.parquet")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--cpus", type=float, default=1.0, help="of a trial")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch, cluster():
        directory = Path(scratch)
        write_samples(directory / "samples", arguments.rows)
        passes = StoppingRule(iterations=6)
        config = SweepConfig(
            samples=str(directory / "samples"), output=str(directory / "sweep"), judge="off_policy",
            learning=TwoStageConfig(network=NetworkConfig(hidden=(64, 64)), critics=passes, cloning=passes,
                                    stage_one=passes, stage_two=passes),
            search=SearchConfig(searcher="random", samples=arguments.trials, cpus=arguments.cpus),
            space=({"multipliers.total": Range(low=0.01, high=100.0, log=True)},))
        study, identity, _ = fusion_study(config)
        assignments = planned(config.space, config.search)

        begin = time.perf_counter()
        for assignment in assignments:
            run = study.begin(assignment)
            while not run.step().get(DONE):
                pass
            run.close()
        alone = time.perf_counter() - begin

        ledger = Ledger(directory / "sweep", identity[:16])
        ledger.set_aside()
        begin = time.perf_counter()
        run_trials(study, config.space, config.search, ledger, identity, directory / "tune")
        tuned = time.perf_counter() - begin
        finished = sum(row["status"] == FINISHED for row in ledger.rows)
        print(f"{arguments.trials} trials of {study.samples.rows:,} samples, {arguments.cpus:g} CPUs each, on "
              f"{ray.cluster_resources()['CPU']:g} CPUs: one process {alone:.1f} s, Tune {tuned:.1f} s "
              f"({finished} finished), ratio {tuned / alone:.2f} (at most 1.25)")


if __name__ == "__main__":
    main()
