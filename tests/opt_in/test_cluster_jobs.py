"""Every job, one after the other, by `ray job submit` on a real cluster of three raylets; `-m cluster`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import clusters
import pytest
from clusters import ROOT

from recfuse.bundle import newest_bundle

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(1200)]
FEW = [f"--learning.{phase}.iterations=3" for phase in ("critics", "cloning", "stage-one", "stage-two")]


def test_every_job_runs_as_it_is_submitted(tmp_path: Path, say: Callable[[str], None]) -> None:
    out = {name: str(tmp_path / name) for name in (
        "scenes", "simulation", "samples", "fusion", "online", "ab_test", "models", "report", "served", "sweep")}
    (tmp_path / "decisions").mkdir()
    jobs = {
        "train_scenes": ["--output", out["scenes"]],
        "simulate": ["--scorer", f"{out['scenes']}/bundles", "--output", out["simulation"], "--persons", "3000",
                     "--holdout-persons", "1000"],
        "ingest": ["--logs", f"{out['simulation']}/logs", "--output", out["samples"]],
        "train_fusion": ["--samples", out["samples"], "--output", out["fusion"], "--learning.num-learners", "2", *FEW],
        "train_online": ["--simulation", out["simulation"], "--output", out["online"], "--online.runners", "2",
                         "--online.iterations", "2"],
        "ab_test": ["--simulation", out["simulation"], "--output", out["ab_test"], "--persons", "2000", "--policies",
                    "logged", f"two_stage={out['fusion']}"],
        "export": ["--fusion", out["fusion"], "--scenes", out["scenes"], "--world", f"{out['simulation']}/world",
                   "--models", out["models"]],
        "evaluate": ["--fusion", out["fusion"], "--holdout", f"{out['simulation']}/holdout", "--samples",
                     out["samples"], "--output", out["report"]],
        "collect": ["--decision-log", str(tmp_path / "decisions"), "--models", out["models"], "--output",
                    out["served"]],
    }
    assert set(jobs) == {path.stem for path in (ROOT / "jobs").glob("[!_]*.py")} - {"demo"}
    commands = {name: [f"jobs/{name}.py", *arguments] for name, arguments in jobs.items()}
    commands["sweep"] = ["-m", "tune.sweep", "--config", "tune/config/fusion.yaml", "--samples", out["samples"],
                         "--simulation", out["simulation"], "--output", out["sweep"], "--search.searcher", "random",
                         "--search.samples", "3", "--persons", "1000", "--last-persons", "1000", *FEW]
    with clusters.running() as cluster:
        for name, arguments in commands.items():
            begin = time.monotonic()
            done = clusters.submit(cluster, *arguments)
            assert done.returncode == 0, f"{name}: {(done.stdout + done.stderr)[-4000:]}"
            say(f"{name}: {time.monotonic() - begin:.0f} s")
        assert all(packages > 0 for packages in cluster.unpacked()), "work went to every node"
    assert newest_bundle(out["fusion"], "fusion").is_dir()
    assert (tmp_path / "report" / "report.html").is_file()
    assert (tmp_path / "models" / "current.json").is_file()
    trials = [json.loads(line) for line in (tmp_path / "sweep" / "trials.jsonl").read_text().splitlines()]
    assert [trial["status"] for trial in trials] == ["finished"] * 3
