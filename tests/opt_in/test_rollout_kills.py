"""A rollout's steps and the loop's cycles, killed with −9 anywhere, come to the same end as undisturbed ones."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import session_logs
import yaml
from processes import MARK, marked_environment

from recfuse.bundle.pointer import Pointer, read_pointer, write_pointer
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.rollout.cycle import STATE
from recfuse.rollout.store import Store

pytestmark = pytest.mark.chaos
ROOT = Path(__file__).parents[2]
# Takes steps as fast as it can: a canary, rolled back, a canary, …
STEPPER = """
import sys
from dataclasses import replace
from recfuse.rollout.config import Plan
from recfuse.rollout.store import Rollout, Row, Store
store = Store(sys.argv[1])
print("ready", flush=True)
while True:
    with store.locked():
        before = store.read()
        state = "canary" if before is None or before.state != "canary" else "rolled back"
        row = store.row("stepper", 0.0, "new", state, "why", {"numbers": list(range(200))})
        store.step(Rollout("new", "base", "fusion", state, 1, 0.0, 0.0, Plan(), row))
"""


def test_steps_that_are_killed_leave_state_audit_and_pointer_together(tmp_path: Path) -> None:
    write_pointer(tmp_path, Pointer(fusion="base"))
    rng = random.Random(0)
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", STEPPER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
        process.stdout.readline()
        time.sleep(rng.uniform(.02, .3))
        process.kill()
        process.wait()
        store = Store(tmp_path)
        with store.locked():
            rollout = store.read()
        audit = store.audit()
        assert [row.number for row in audit] == list(range(1, len(audit) + 1))
        assert audit[-1] == rollout.row
        assert not rollout.pending
        assert [row.step for row in audit] == [("canary", "rolled back")[k % 2] for k in range(len(audit))]
        pointer = read_pointer(tmp_path)
        assert (pointer.fusion_canary, pointer.canary_share) == (
            ("new", .05) if rollout.state == "canary" else (None, 0.0))
    assert len(audit) > 50


def end(mark: str) -> None:
    """Ends what is left of the Ray that a killed driver had started."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"{MARK}={mark}".encode() in (process / "environ").read_bytes():
                os.kill(int(process.name), signal.SIGKILL)


def logged(directory: Path, rows: int = 3_000) -> str:
    rng = np.random.default_rng(0)
    made = [session_logs.row(
        number, user=f"u{number % 300}", session=f"s{number // 3}", action_logp=None, last=number % 3 == 2,
        action=rng.standard_normal(2).astype(np.float32).astype(float).tolist(),
        feedback={"watch_time": float(rng.gamma(2.0)), "like": float(rng.random() < .3)}) for number in range(rows)]
    return str(session_logs.write(directory, session_logs.table(made)))


def test_a_loop_that_is_killed_in_every_step_begins_one_canary(tmp_path: Path) -> None:
    models, state = tmp_path / "models", tmp_path / "loop" / STATE
    base = export_policy(models, FixedGaussian([0.0, 0.0], 1.0), session_logs.vocabulary(), training={},
                         data_fingerprint="", metrics={})
    write_pointer(models, Pointer(fusion=base.name))
    training, config = tmp_path / "training.yaml", tmp_path / "loop.yaml"
    training.write_text(yaml.safe_dump({"learning": {
        "algorithm": "behaviour_cloning", "cloning": {"iterations": 4}, "network": {"hidden": [8]}}}))
    config.write_text(yaml.safe_dump({
        "models": str(models), "decision_log": "", "output": str(tmp_path / "loop"), "training": str(training),
        "cycles": 1, "plan": {"logs": logged(tmp_path / "log"), "targets": {
            "goals": {"watch_time": 0.0}, "floors": {"watch_time": -.5}}}}))

    def run(until: int) -> int | None:
        """Kills the loop a second after so many steps are done; its exit status where it ended by itself."""
        mark, environment = marked_environment()
        process = subprocess.Popen([sys.executable, "-m", "jobs.loop", "--config", str(config)], cwd=ROOT,
                                   env=environment, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 400
            while process.poll() is None and time.monotonic() < deadline:
                done = len(json.loads(state.read_text())["done"]) if state.exists() else -1
                if done >= until:
                    time.sleep(1.0)
                    process.kill()
                    process.wait()
                    return None
                time.sleep(.05)
            return process.wait(1)
        finally:
            end(mark)

    for steps in range(4):
        assert run(steps) is None, "it ended before it was killed"
    assert run(99) == 0
    rollout = Store(models).read()
    assert rollout.state == "canary"
    assert [row.step for row in Store(models).audit()] == ["candidate → gate", "gate → canary at 0.01"]
    assert read_pointer(models) == Pointer(fusion=base.name, fusion_canary=rollout.candidate, canary_share=.01)
    assert json.loads(state.read_text())["number"] == 1
