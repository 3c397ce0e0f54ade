"""Two nodes of one CPU each: workers are counted per node, and a job that waits says for what and ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import clusters
import samples as toy
from clusters import ROOT

PROGRAM = '''
import sys, time
import pytest, ray, torch
from recfuse.bundle import read_bundle
from recfuse.config import InvalidFieldError
from recfuse.fusion.config import NetworkConfig
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.config import TrainFusionConfig
from recfuse.learning.settings import StoppingRule
from recfuse.learning.training import train_fusion
from recfuse.runtime import ray_compat
from recfuse.runtime.cluster import cluster
from recfuse.runtime.placement import NoRoomError, Seats, Share, nodes
from recfuse.runtime.waiting import WaitedTooLongError, Watch

samples, output = sys.argv[1:]
once = StoppingRule(iterations=1)
settings = TwoStageConfig(network=NetworkConfig(hidden=(16,)), critics=once, cloning=once, stage_one=once,
                          stage_two=once, minibatch_size=128)

def train(learners):
    config = TrainFusionConfig(samples=samples, output=f"{output}/{learners}",
                               learning=settings.replace(num_learners=learners))
    return read_bundle(train_fusion(config).bundle).tensors["policy"]

with cluster():
    assert [node.total["CPU"] for node in nodes()] == [node.free["CPU"] for node in nodes()] == [1, 1]
    assert not ray_compat.may_grow() and not ray_compat.unmet_requests()
    with pytest.raises(InvalidFieldError, match=r"num_learners: got 8; allowed: at most 6, each with 0.3 CPUs of one "
                                                r"node; nodes: 127.0.0.1 1 CPU \\(1 free\\), 127.0.0.1 1 CPU "):
        train(8)
    with pytest.raises(NoRoomError, match="no room for 1 × 2 CPUs; nodes: "):
        Seats(Share(2.0), 1).wait()
    with pytest.raises(WaitedTooLongError, match="^test: waited . s .wait_limit 3. for a place for 1 × 2 CPUs; no"), \\
            Watch("test", limit=3, say_after=1):
        ray.get(ray.util.placement_group([{"CPU": 2.0}]).ready())
    two = train(2)
one = train(0)
assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
print("as it should be")
'''


def test_two_nodes_of_one_cpu(tmp_path: Path) -> None:
    samples = toy.write(tmp_path / "samples", toy.bandit(1024), files=2)
    with clusters.running(head_cpus=1, workers=1, cpus=1, path=f"{ROOT}/platform:{ROOT}") as cluster:
        environment = cluster.environment | {"RAY_ADDRESS": cluster.gcs}
        done = subprocess.run([sys.executable, "-c", PROGRAM, str(samples), str(tmp_path)], env=environment,
                              capture_output=True, text=True, check=False, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("as it should be\n")
