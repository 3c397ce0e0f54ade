"""`make serve` as a person uses it: it answers, listens on loopback alone, moves its log, exports what the board shows,
and Ctrl-C ends all of it."""

from __future__ import annotations

import html
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import yaml
from clusters import LOOPBACK_ADDRESSES, descendants, free_port, listening
from deltalake import DeltaTable

pytestmark = pytest.mark.load
ROOT = Path(__file__).parents[2]
# Counted where something is wrong, or where a client or an operator does what this test does not.
SELDOM = {"ray_recfuse_action_outliers_total", "ray_recfuse_unlogged_candidates_total"}


@dataclass
class Served:
    process: subprocess.Popen[bytes]
    client: httpx.Client
    directory: Path


def command() -> str:
    """What `make serve` runs, once everything is installed."""
    done = subprocess.run(["make", "--no-print-directory", "-n", "-o", ".venv/.installed", "serve"], cwd=ROOT,
                          check=True, capture_output=True, text=True)
    assert "serving/config.yaml" in done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def served(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    directory, port = tmp_path_factory.mktemp("served"), free_port()
    config = yaml.safe_load((ROOT / "serving" / "config.yaml").read_text())
    config["http_options"]["port"] = port
    config["applications"][0]["args"] |= {
        "models": str(models), "decision_log": str(directory / "decisions"), "session_table": str(directory / "table"),
        "window_minutes": 0.01, "move_seconds": 1.0}
    (directory / "config.yaml").write_text(yaml.safe_dump(config))
    # Two ports of HAProxy are fixed: others, so that a `make serve` may run beside the test.
    fixed = {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("STATS", "METRICS")}
    kept = {name: value for name, value in os.environ.items() if name not in ("RAY_ADDRESS", "PYTHONPATH")}
    # A session of its own, as a terminal gives it: Ctrl-C there reaches its whole foreground group.
    process = subprocess.Popen(["bash", "-c", command().replace("serving/config.yaml", str(directory / "config.yaml"))],
                               cwd=ROOT, env=kept | fixed, stdout=(directory / "out").open("wb"),
                               stderr=subprocess.STDOUT, start_new_session=True,
                               # A shell's background jobs ignore Ctrl-C, and what they start does too.
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            until(lambda: client.get("/v1/models").status_code == 200, 120, lambda: (directory / "out").read_text())
            yield Served(process, client, directory)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)


def until(done: Callable[[], bool], longest: float, why: Callable[[], str] = str) -> None:
    deadline = time.monotonic() + longest
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if done():
                return
        time.sleep(0.2)
    raise AssertionError(f"not within {longest:.0f} s: {why()[-3_000:]}")


def exported(process: int) -> set[str]:
    """Names of the series that the node's metrics agent has now."""
    names: set[str] = set()
    for port in {port for child in descendants(process) for port in ports(child)}:
        with suppress(httpx.HTTPError, UnicodeDecodeError):
            text = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=2).text
            names |= {re.split(r"[{ ]", line)[0] for line in text.splitlines() if line.startswith("ray_")}
    return names


def ports(process: int) -> set[int]:
    """TCP ports that a process listens on."""
    sockets, numbers = set(), set()
    with suppress(OSError):
        for link in Path(f"/proc/{process}/fd").iterdir():
            with suppress(OSError):
                sockets.add(os.readlink(link))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                numbers.add(int(fields[1].split(":")[1], 16))
    return numbers


def ask(served: Served) -> list[str]:
    """Requests of every kind, also refused ones; the ids of the decisions."""
    user: dict[str, Any] = {"user": {"user_id": 9}, "candidates": {"item_id": [1, 2, 3]}}
    predictions = {f"p{k}": [0.1, 0.2, 0.3] for k in range(8)}
    fusion = {"user_id": 9, "candidates": {"item_id": [1, 2, 3], "predictions": predictions}}
    answers = [served.client.post("/v1/recommend", json={**user, "scene": "1"}),
               served.client.post("/v1/fusion/fine/rank", json=fusion)]
    assert served.client.post("/v1/scenes/1/rank", json=user).status_code == 200
    assert served.client.post("/v1/recommend", json={}).status_code == 422
    ids = [answer.json()["request_id"] for answer in answers]
    for request_id in ids:
        feedback = {"request_id": request_id, "feedback": {"like": 1.0}}
        assert served.client.post("/v1/feedback", json=feedback).status_code == 202
    return ids


def test_nothing_listens_beyond_loopback(served: Served, say: Callable[[str], None]) -> None:
    ask(served)
    open_sockets: dict[str, set[str]] = {}
    kinds = ("raylet", "gcs_server", "ray::ServeReplica", "haproxy")

    def all_listen() -> bool:
        open_sockets.clear()
        for process, line in descendants(served.process.pid).items():
            with suppress(OSError):  # it ended while we looked
                open_sockets[f"{process} {line}"] = listening(process)
        return all(any(what in line and addresses for line, addresses in open_sockets.items()) for what in kinds)
    until(all_listen, 20, lambda: str(open_sockets))  # HAProxy starts anew where it hears of a replica
    assert not {line: addresses for line, addresses in open_sockets.items() if not addresses <= LOOPBACK_ADDRESSES}
    say(f"{sum(map(bool, open_sockets.values()))} processes listen, all of them on loopback")


def test_the_log_is_moved_in_the_background(served: Served) -> None:
    ids = set(ask(served))
    table = str(served.directory / "table" / "sessions")

    def moved() -> bool:
        return DeltaTable.is_deltatable(table) and ids <= set(
            DeltaTable(table).to_pyarrow_table(columns=["request_id"])["request_id"].to_pylist())
    until(moved, 30)
    rows = {row["request_id"]: row for row in DeltaTable(table).to_pyarrow_table().to_pylist()}
    assert [rows[request_id]["feedback"]["like"] for request_id in sorted(ids)] == [1.0, 1.0]


def test_the_board_names_what_ray_exports(served: Served, say: Callable[[str], None]) -> None:
    board = orjson.loads((ROOT / "serving" / "grafana.json").read_bytes())
    queries = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    wanted = set(re.findall(r"\bray_[a-z0-9_]+", queries)) - SELDOM
    missing = set(wanted)

    def complete() -> bool:
        ask(served)
        missing.difference_update(exported(served.process.pid))
        return not missing
    until(complete, 60, lambda: f"missing: {sorted(missing)}")
    say(f"the board's {len(wanted)} series are all exported")


def test_the_commands_of_docs_work_when_pasted(served: Served, say: Callable[[str], None]) -> None:
    page = html.unescape(served.client.get("/docs").text)
    commands = re.findall(r"<pre[^>]*>(curl .*?)</pre>", page, re.DOTALL)
    assert len(commands) == 6
    for command in commands:
        done = subprocess.run(["bash", "-c", f"{command} --fail-with-body"], capture_output=True, text=True)
        assert done.returncode == 0, (command, done.stdout)
        assert "error" not in orjson.loads(done.stdout), command
    say(f"the {len(commands)} commands of /docs are answered")


def test_ctrl_c_ends_everything(served: Served, say: Callable[[str], None]) -> None:
    started = descendants(served.process.pid)
    assert len(started) > 5
    begin = time.monotonic()
    os.killpg(served.process.pid, signal.SIGINT)
    served.process.wait(60)

    def left() -> list[str]:
        return [line for process, line in started.items() if line and line in _lines(process)]
    until(lambda: not left(), 30, lambda: "\n".join(left()))
    say(f"Ctrl-C ended {len(started)} processes in {time.monotonic() - begin:.1f} s")


def _lines(process: int) -> str:
    try:
        return Path(f"/proc/{process}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""
