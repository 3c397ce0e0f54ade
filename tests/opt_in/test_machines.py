"""Jobs on two hosts of their own: equal bits, a cable pulled for 20 and 90 s, a host that is killed; `-m chaos`.

`machines.py` says what a host is here. Skipped where none can be made.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import machines
import pytest
import samples as toy
import session_logs
from machines import Hosts

from recfuse.bundle import newest_bundle, read_bundle

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(900),
              pytest.mark.skipif(bool(machines.why_not()), reason=machines.why_not() or "there are hosts")]
PASSES = 150


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    with machines.running() as found:
        yield found


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy.write(tmp_path_factory.mktemp("samples"), toy.bandit(rows=20_000), files=2)


def training(samples: Path, output: Path, learners: int, passes: int = PASSES) -> list[str]:
    """Arguments of a training of many short passes."""
    few = [argument for phase in ("cloning", "stage-one", "stage-two")
           for argument in (f"--learning.{phase}.iterations", "2")]
    return ["jobs/train_fusion.py", "--samples", str(samples), "--output", str(output), *few,
            "--learning.num-learners", str(learners), "--learning.critics.iterations", str(passes),
            "--learning.critics.change-below", "0", "--learning.critics.patience", str(passes)]


def until(log: Path, pattern: str, job: subprocess.Popen[bytes], seconds: float = 240) -> str:
    """The first line of the log that has the pattern, as soon as it is there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for line in log.read_text().splitlines() if log.exists() else []:
            if re.search(pattern, line):
                return line
        assert job.poll() is None, f"the job has ended: {log.read_text()[-3000:]}"
        time.sleep(0.5)
    raise AssertionError(f"no line has {pattern}: {log.read_text()[-3000:]}")


def finished(job: subprocess.Popen[bytes], log: Path, seconds: float = 600) -> str:
    """What a job printed that ended well."""
    assert job.wait(seconds) == 0, log.read_text()[-4000:]
    return log.read_text()


def outcome(output: Path) -> tuple[list[tuple[str, int]], dict[str, list]]:
    """The passes, and the policy to the last bit."""
    entries = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    policy = read_bundle(newest_bundle(output, "fusion")).tensors["policy"]
    return [(entry["phase"], entry["iteration"]) for entry in entries], {
        name: tensor.tolist() for name, tensor in policy.items()}


@pytest.fixture(scope="module")
def calm(samples: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple:
    """What a training ends with that nobody disturbs, in one process."""
    output = tmp_path_factory.mktemp("calm")
    with machines.running() as hosts:
        finished(hosts.start_job(output / "log", *training(samples, output / "out", 0)), output / "log")
    return outcome(output / "out")


def test_two_learners_on_two_hosts_end_with_the_bits_of_one_process(hosts: Hosts, samples, calm, tmp_path, say) -> None:
    begin = time.monotonic()
    finished(hosts.start_job(tmp_path / "log", *training(samples, tmp_path / "out", 2)), tmp_path / "log")
    assert outcome(tmp_path / "out") == calm
    say(f"two learners on two hosts: {time.monotonic() - begin:.0f} s, to the last bit")


@pytest.mark.parametrize("seconds", [20, 90])
def test_training_outlives_a_cable_that_is_pulled(hosts: Hosts, samples, calm, tmp_path, say, seconds) -> None:
    log = tmp_path / "log"
    job = hosts.start_job(log, *training(samples, tmp_path / "out", 2))
    until(log, "critics: .*passes", job)
    begin = time.monotonic()
    hosts.second.link("down")
    time.sleep(seconds)
    hosts.second.link("up")
    printed = finished(job, log)
    assert outcome(tmp_path / "out") == calm, "to the last bit"
    say(f"cable pulled for {seconds} s: ended {time.monotonic() - begin:.0f} s after, "
        f"{printed.count('a learner was lost')} times lost, {printed.count('going on with')} times counted anew")
    if seconds == 90:
        assert "going on with 1 of 2 learners; nodes: 10.77.0.1" in printed


def test_training_goes_on_with_fewer_and_takes_a_host_back(hosts: Hosts, samples, calm, tmp_path, say) -> None:
    log = tmp_path / "log"
    job = hosts.start_job(log, *training(samples, tmp_path / "out", 2))
    until(log, "critics: .*passes", job)
    begin = time.monotonic()
    hosts.second.kill()
    until(log, "going on with 1 of 2 learners", job)
    without = time.monotonic() - begin
    hosts.revive()
    until(log, "going on with 2 of 2 learners", job)
    back = time.monotonic() - begin
    finished(job, log)
    assert outcome(tmp_path / "out") == calm, "to the last bit"
    say(f"a host killed: one learner went on after {without:.0f} s, two after {back:.0f} s")


def test_ingest_outlives_a_host(tmp_path, say: Callable[[str], None]) -> None:
    logs = session_logs.write_many(tmp_path / "logs", 200_000, files=12)
    accounts = []
    for name in ("calm", "killed"):
        with machines.running(cpus=2) as hosts:
            log, begin = tmp_path / f"{name}.log", time.monotonic()
            job = hosts.start_job(log, "jobs/ingest.py", "--logs", str(logs), "--output", str(tmp_path / name),
                                  "--quarantine-limit", "0.1")
            if name == "killed":
                until(log, "ingest: .*rows", job)
                hosts.second.kill()
                hosts.revive()
            finished(job, log)
            say(f"ingest, {name}: {time.monotonic() - begin:.0f} s")
            accounts.append(json.loads((tmp_path / name / "account.json").read_text()))
    assert accounts[0]["fingerprint"] == accounts[1]["fingerprint"]


def test_the_scorer_outlives_a_host(tmp_path, say: Callable[[str], None]) -> None:
    arguments = ["jobs/train_scenes.py", "--training.workers", "2", "--training.epochs", "6", "--intervals", "0",
                 "--output", str(tmp_path / "out")]
    with machines.running() as hosts:
        log, begin = tmp_path / "log", time.monotonic()
        job = hosts.start_job(log, *arguments)
        until(log, r"scenes: .*samples.*loss", job)
        hosts.second.kill()
        printed = finished(job, log)
    assert "going on with 1 of 2 workers" in printed
    assert newest_bundle(tmp_path / "out" / "bundles", "scenes").is_dir()
    say(f"the scorer, one host of two killed: {time.monotonic() - begin:.0f} s")
