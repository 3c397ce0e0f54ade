"""Peak resident set of a learner that streams its samples: one pass of the critics, and stage one with all that it asks
the frozen critics. Run as a process of its own by `python -m benchmarks.learner --parts memory`.

The networks are small here, because memory does not depend on how long a pass takes.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
import time
from pathlib import Path


def resident_mib() -> tuple[float, float]:
    """Resident set of this process in MiB, and the part of it that is its own (not Ray's shared object store)."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmRSS"].split()[0]) / 1024, int(status["RssAnon"].split()[0]) / 1024


def measure(samples: str) -> dict[str, float]:
    """Passes over the samples; the peaks."""
    import ray
    import torch
    from ray.rllib.core.learner.training_data import TrainingData

    from recfuse.fusion.config import NetworkConfig
    from recfuse.learning.algorithm import FusionAlgorithmConfig
    from recfuse.learning.algorithms.two_stage import TwoStageConfig
    from recfuse.learning.samples import SampleSet
    from recfuse.runtime import ray_compat

    torch.set_num_threads(1)
    ray_compat.silence()
    ray_compat.no_progress_bars()
    ray_compat.start_local(logging.ERROR, num_cpus=2, object_store_memory=1 << 30)
    peaks, done = [0.0, 0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.1):
            peaks[:] = [max(pair) for pair in zip(peaks, resident_mib(), strict=True)]

    watcher = threading.Thread(target=watch)
    watcher.start()
    begin = time.perf_counter()
    opened = SampleSet.open(samples)
    settings = TwoStageConfig(network=NetworkConfig(hidden=(8,)), minibatch_size=4096, memory_mib=0, holdout=0.0,
                              advantage="sampled")
    algorithm = FusionAlgorithmConfig().learn(settings, opened).build_algo()
    data = TrainingData(data_iterators=algorithm._iterators)
    for phase in ("critics", "stage_one"):
        algorithm.learner_group.update(training_data=data, phase=phase, iteration=0)
    done.set()
    watcher.join()
    seconds = time.perf_counter() - begin
    algorithm.stop()
    ray.shutdown()
    return {"rows": opened.rows, "peak_mib": peaks[0], "peak_own_mib": peaks[1], "seconds": seconds}


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1])))
