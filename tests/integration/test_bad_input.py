"""Bad input ends every job with exit code 1 or 2 and one line that names field, value and what is allowed."""

from __future__ import annotations

import multiprocessing
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import session_logs
from processes import run_file
from session_logs import random_rows, table

from recfuse.bundle.pointer import Pointer, write_pointer
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.runtime.outputs import claim

ROOT = Path(__file__).parents[2]
FORKS = multiprocessing.get_context("forkserver")

# Arguments of a job, what stands in the line; names in braces are made by the fixture.
CASES = [
    ("ingest", "--config {broken.yaml}", "--config: got '{broken.yaml}'; allowed: a YAML file ("),
    ("ingest", "--config {unknown.yaml}", "colour: got 'red'; allowed: one of cut, density"),
    ("ingest", "--logs {nowhere} --output {out}", "logs: got '{nowhere}'; allowed: a directory that exists"),
    ("ingest", "--logs {file} --output {out}", "logs: got '{file}'; allowed: a directory that exists"),
    ("ingest", "--logs {no_parquet} --output {out}", "at least one Parquet file; it has notes.txt"),
    ("ingest", "--logs {broken} --output {out}", "logs: got '{broken}'; allowed: at least one readable row ("),
    ("ingest", "--logs {logs} --output {file}", "output: got '{file}'; allowed: a directory"),
    ("ingest", "--logs {logs} --output {claimed}", "got '{claimed}'; allowed: a directory that no other job is"),
    ("ingest", "--logs {logs} --output {broken}", "output: got 'log.parquet'; allowed: nothing in {broken} but what"),
    ("collect", "--config {broken.yaml}", "--config: got '{broken.yaml}'; allowed: a YAML file ("),
    ("collect", "--decision-log {nowhere} --models {models}", "decision_log: got '{nowhere}'; allowed: a directory"),
    ("collect", "--decision-log {file} --models {models}", "decision_log: got '{file}'; allowed: a directory"),
    ("collect", "--decision-log {no_parquet} --models {models} --output {out}", "there is no *.jsonl in it"),
    ("collect", "--decision-log {decisions} --models {models} --output {logs}", "output: got '{logs}"),
    ("simulate", "--config {unknown.yaml}", "colour: got 'red'; allowed: one of"),
    ("simulate", "--scorer {nowhere} --output {out}", "scenes bundle: got '{nowhere}'"),
    ("export", "--config {unknown.yaml}", "colour: got 'red'; allowed: one of constants, exposures, fusion"),
    ("export", "--fusion {file} --models {out}", "fusion bundle: got '{file}'"),
    ("export", "--fusion {policy} --models {file}", "models: got '{file}'; allowed: a directory"),
    ("export", "--parts catalogue --exposures {no_parquet} --models {out}", "exposures: got '{no_parquet}'; allowed:"),
    ("export", "--parts catalogue --logs {kuairand} --models {out}", "log_standard_1.parquet: got"),
    ("export", "--models {out}", "fusion: got ''; allowed: a fusion bundle; or scenes, or exposures"),
    ("export", "--exposures {no_parquet} --layout native --models {out}", "users.parquet: got 'missing'"),
    ("init", "--logs {logs} --output {out}/v.yaml", "logs: got '{logs}'; allowed: a log without a vocabulary"),
    ("init", "--logs {logs} --output {file}", "output: got '{file}'; allowed: a file that does not exist yet"),
    ("init", "--output {out}/v.yaml", "behaviours: got ''; allowed: behaviours as options, or a session log"),
    ("init", "--behaviours a:dense --predictions p --output {out}/v.yaml", "behaviours.a: got 'dense'; allowed: long_"),
    ("explore", "--weights p0:1 --models {out}", "candidates: got ''; allowed: requests to try σ on"),
    ("explore", "--weights p9:1 --candidates {logs} --models {out}", "weights: got 'p9:1'; allowed: name:number"),
    ("explore", "--weights p0:1 --candidates {logs} --models {out}", "candidates with their predictions in at least"),
    ("explore", "--weights p0:1 --change 1 --candidates {logs}", "change: got 1.0; allowed: a number in (0, 1)"),
    ("check", "{nowhere}", "logs: got '{nowhere}'; allowed: a directory that exists"),
    ("check", "{broken}", "logs: got"),
    ("serve", "--models {nowhere}", "models: got '{nowhere}'; allowed: a directory that `recfuse explore`"),
    ("serve", "--decisions {out} --logs {out}", "logs: got '{out}'; allowed: a directory other than decisions"),
    ("evaluate", "--fusion {policy} --holdout {logs} --output {claimed}", "a directory that no other job is"),
    ("ab_test", "--output {claimed}", "output: got '{claimed}'; allowed: a directory that no other job is"),
    ("train_scenes", "--training.workers 0 --output {claimed}", "allowed: a directory that no other job is writing to"),
    ("ab", "--logs {nowhere}", "logs: got '{nowhere}'; allowed: a directory that exists"),
    ("rollout", "start --candidate {policy} --models {nowhere}", "models: got '{nowhere}'; allowed: a directory with"),
    ("loop", "--every 5x", "every: got '5x'; allowed: a text"),
    ("ab_test", "--config {broken.yaml}", "--config: got '{broken.yaml}'; allowed: a YAML file ("),
    ("ab_test", "--simulation {no_parquet} --output {apart}", "world: got '{no_parquet}/world'; allowed: a directory"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Name → path of what is there, or is not."""
    root = tmp_path_factory.mktemp("bad")
    logs = session_logs.write(root / "logs", table(random_rows(5)))
    for name in ("no_parquet", "broken"):
        session_logs.write(root / name)
    (root / "no_parquet" / "notes.txt").write_text("no log")
    (root / "broken" / "log.parquet").write_text("no Parquet")
    (root / "kuairand").mkdir()
    (root / "kuairand" / "log_standard_1.parquet").write_text("no Parquet")
    (root / "file").write_text("a file")
    (root / "broken.yaml").write_text("logs: [")
    (root / "unknown.yaml").write_text("colour: red")
    policy = export_policy(root / "models", FixedGaussian([0, 0], 1), session_logs.vocabulary(), training={},
                           data_fingerprint="none", metrics={})
    write_pointer(root / "models", Pointer(fusion=policy.name))
    (root / "decisions").mkdir()
    (root / "decisions" / "0123456789ab-00000.jsonl").write_text("")
    names = ("file", "broken.yaml", "unknown.yaml", "no_parquet", "broken", "kuairand", "models", "decisions",
             "nowhere", "out", "apart", "claimed")
    return {"logs": logs, "policy": policy, **{name: root / name for name in names}}


def test_one_line_says_what_is_wrong(places):
    before = {path: path.read_bytes() for path in places["logs"].iterdir()}

    def run(case: tuple[str, str, str]) -> str:
        job, arguments, said = (text.replace("{", "{0[").replace("}", "]}").format(places) for text in case)
        with tempfile.NamedTemporaryFile("r") as errors:
            process = FORKS.Process(target=run_file, args=(ROOT / "jobs" / f"{job}.py", arguments.split(), errors.name))
            process.start()
            process.join(120)
            process.kill()
            stderr = errors.read()
        lines = stderr.strip().splitlines()
        good = process.exitcode in (1, 2) and len(lines) == 1 and lines[0].startswith("error: ") and said in lines[0]
        return "" if good else f"{job} {arguments}: exit {process.exitcode}, {stderr[-600:]!r}, not {said!r}"

    # Imports are done once: a process is forked for every case, and goes through its job's file as Python does.
    FORKS.set_forkserver_preload([f"recfuse.{module}" for module in (
        "evaluation.evaluate", "learning.learner", "scenes.train_scenes", "simulation.simulate", "tune.sweep")])
    with claim(str(places["claimed"]), "ingest"), ThreadPoolExecutor(2) as pool:
        wrong = [problem for problem in pool.map(run, CASES) if problem]
    assert not wrong, "\n".join(wrong)
    assert {path: path.read_bytes() for path in places["logs"].iterdir() if not path.name.startswith(".")} == before
    assert pq.read_table(places["logs"] / "log-0.parquet").num_rows == 5
