"""Every job as its Kubernetes manifest calls it, by `ray job submit` on a cluster of three raylets; `-m cluster`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import clusters
import pytest
import yaml
from clusters import ROOT

from recfuse.bundle import newest_bundle

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
MANIFESTS = ROOT / "serving" / "kubernetes" / "jobs"
FEW = " ".join(f"--learning.{phase}.iterations 3" for phase in ("critics", "cloning", "stage-one", "stage-two"))
# In the order of the flow, with what makes each of them small.
SMALLER = {
    "train-scenes": "", "simulate": "--persons 3000 --holdout-persons 1000", "ingest": "", "train-fusion": FEW,
    "train-online": "--online.runners 2 --online.iterations 2", "ab-test": "--persons 2000", "export": "",
    "evaluate": "", "collect": "",
    "sweep": f"--search.searcher random --search.samples 3 --persons 1000 --last-persons 1000 {FEW}",
}
# What a user brings: here exposures of the embedded simulator, and what it simulates from them.
BROUGHT = {"/data/exposures": "embedded", "/data/session_logs": "/data/simulation/logs",
           "/data/holdout": "/data/simulation/holdout", "num-learners 4": "num-learners 2"}


def test_every_job_runs_as_its_manifest_calls_it(tmp_path: Path, say: Callable[[str], None]) -> None:
    assert set(SMALLER) == {path.stem for path in MANIFESTS.glob("*.yaml")}
    (tmp_path / "decisions").mkdir()
    with clusters.running() as cluster:
        for name, smaller in SMALLER.items():
            words = yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text())["spec"]["entrypoint"]
            for placeholder, found in BROUGHT.items():
                words = words.replace(placeholder, found)
            words = words.replace("/app/", "").replace("/data/", f"{tmp_path}/")
            begin = time.monotonic()
            done = clusters.submit(cluster, *f"{words} {smaller}".split()[1:])
            assert done.returncode == 0, f"{name}: {(done.stdout + done.stderr)[-4000:]}"
            say(f"{name}: {time.monotonic() - begin:.0f} s")
        assert all(packages > 0 for packages in cluster.unpacked()), "work went to every node"
    assert newest_bundle(tmp_path / "fusion", "fusion").is_dir()
    assert newest_bundle(tmp_path / "fusion_online", "fusion").is_dir()
    assert (tmp_path / "report" / "report.html").is_file()
    assert (tmp_path / "models" / "current.json").is_file()
    trials = [json.loads(line) for line in (tmp_path / "sweep" / "trials.jsonl").read_text().splitlines()]
    assert [trial["status"] for trial in trials] == ["finished"] * 3
