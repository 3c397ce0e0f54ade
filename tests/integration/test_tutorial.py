"""The tutorial's code blocks, literally and in order, on a shop whose truth is known, over real HTTP."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from clusters import LOOPBACK_ADDRESSES, descendants, free_port, listening
from own_shop import PREDICTIONS, TODAY, Shop, play, played_with_scorer

from recfuse import cli
from recfuse.bundle import newest_bundle, read_bundle
from recfuse.bundle.pointer import read_pointer
from recfuse.evaluation.estimator import QUESTIONS
from recfuse.fusion.inference import FusionActor
from recfuse.runtime import ray_compat

ROOT = Path(__file__).parents[2]


def blocks() -> list[tuple[str, str]]:
    """Language and text of every code block, in order."""
    found = re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / "docs" / "tutorial.md").read_text(), re.M | re.S)
    assert found
    return found


class Tutorial:
    """Runs blocks in a directory of its own, where `shop` is what the tutorial's reader has."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.port = directory, free_port()
        self.shop = Shop()
        self.server: subprocess.Popen[bytes] | None = None
        self.request_id = ""
        self.url = f"http://127.0.0.1:{self.port}"
        self.seconds: dict[str, float] = {}

    def run(self, line: str) -> None:
        words = shlex.split(line)
        if words[:2] == ["recfuse", "serve"]:
            self.serve(words[2:])
        elif words[0] == "recfuse":
            self.job(words[1], words[2:])
        else:
            assert words[0] == "curl"
            self.curl(line)

    def job(self, name: str, arguments: list[str]) -> None:
        """In this process, which spares a second or more of imports a command."""
        begin = time.monotonic()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", ["recfuse", name, *arguments])
            cli.main()
        self.seconds[f"{len(self.seconds)} {name}"] = time.monotonic() - begin

    def serve(self, arguments: list[str]) -> None:
        # Two ports of HAProxy are fixed: others, so that a server may run beside the test.
        fixed = {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("STATS", "METRICS")}
        kept = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.server = subprocess.Popen(
            [sys.executable, "-m", "recfuse.jobs.serve", *arguments, "--port", str(self.port)], cwd=self.directory,
            env=kept | fixed, stdout=(self.directory / "serve.txt").open("wb"), stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        until(lambda: "Ctrl-C ends it" in (self.directory / "serve.txt").read_text(), 120, self.server)

    def curl(self, command: str) -> None:
        command = command.replace("127.0.0.1:8000", f"127.0.0.1:{self.port}")
        command = re.sub(r"[0-9a-f]{32}", self.request_id or "none", command)
        done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=30)
        answer = json.loads(done.stdout)
        assert "error" not in answer, answer
        self.request_id = answer["request_id"]


def until(done: Any, longest: float, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + longest
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError):
            if done():
                return
        assert server.poll() is None, "the server ended"
        time.sleep(0.2)
    raise AssertionError(f"not within {longest:.0f} s")


@pytest.fixture
def tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tutorial]:
    import ray

    monkeypatch.chdir(tmp_path)
    ray_compat.start_local(num_cpus=2, object_store_memory=512 << 20)
    reader = Tutorial(tmp_path)
    shop = tmp_path / "shop"
    reader.shop.write_log(shop / "october")
    reader.shop.write_candidates(shop / "candidates.parquet")
    reader.shop.write_exposures(shop / "exposures")
    yield reader
    if reader.server is not None and reader.server.poll() is None:
        os.killpg(reader.server.pid, signal.SIGKILL)
        reader.server.wait(30)
    ray.shutdown()
    print(json.dumps({name: round(seconds, 1) for name, seconds in reader.seconds.items()}))  # noqa: T201


def test_the_tutorial_from_hand_tuned_weights_to_a_policy_that_brings_more(tutorial: Tutorial) -> None:
    plays = iter([1_600, 400])
    for language, text in blocks():
        if language == "yaml":
            (tutorial.directory / "shop" / "scenes.yaml").write_text(text)
            continue
        for line in text.replace(" \\\n", " ").splitlines() if text.startswith("recfuse") else [text]:
            if line.startswith("recfuse collect"):
                count, begin = next(plays), time.monotonic()
                assert play(tutorial.url, tutorial.shop.visits(count, seed=count), seed=count) == count
                time.sleep(3.2)  # the window of `collect`
                tutorial.seconds[f"{len(tutorial.seconds)} play {count}"] = time.monotonic() - begin
            tutorial.run(line)
            if line.startswith("recfuse export --fusion"):
                check_policy(tutorial)
    check_scorer(tutorial)
    check_ctrl_c(tutorial)


def test_the_readmes_commands_for_own_logs(tutorial: Tutorial, capsys: pytest.CaptureFixture[str]) -> None:
    """Literally, on the shop's own logs beside the vocabulary that `init` writes; then its lines of Python."""
    readme = (ROOT / "README.md").read_text()
    own = readme.partition("## Your own session logs")[2].partition("\n## ")[0]
    [commands] = re.findall(r"^```\n(.*?)^```$", own, re.M | re.S)
    [python] = re.findall(r"^```python\n(.*?)^```$", readme, re.M | re.S)
    assert "my_held_out_logs" in commands
    tutorial.shop.write_log(Path("my_logs"), requests=1_600)
    tutorial.shop.write_log(Path("my_held_out_logs"), requests=400, month=12)
    tutorial.run("recfuse init --logs my_logs --predictions add_to_cart,margin --output vocabulary.yaml")
    for logs in ("my_logs", "my_held_out_logs"):
        shutil.copy("vocabulary.yaml", logs)
    for line in commands.splitlines():
        tutorial.run(line.removeprefix(".venv/bin/"))
    capsys.readouterr()
    exec(python, {})
    assert "'margin': " in (said := capsys.readouterr().out), said
    assert all(question.name in said for question in QUESTIONS), said
    actor = FusionActor.from_bundle(read_bundle(newest_bundle("runs/fusion", "fusion")))
    visits = tutorial.shop.visits(2_000, seed=99)
    today, learned = tutorial.shop.truth(TODAY, visits), tutorial.shop.truth_of_policy(actor, visits, own_states=True)
    print(f"revenue a request: today {today:.3f}, learned from own logs {learned:.3f}")  # noqa: T201
    assert learned > today * 1.01


def check_policy(tutorial: Tutorial) -> None:
    """It serves, and brings more than today's weights, by the truth."""
    models = tutorial.directory / "shop" / "models"
    pointer = read_pointer(models)
    assert pointer.scenes is pointer.catalogue is pointer.users is None
    actor = FusionActor.from_bundle(read_bundle(models / str(pointer.fusion)))
    assert tutorial.server is not None
    until(lambda: httpx.get(f"{tutorial.url}/v1/models").json()["fusion"]["model_version"] == actor.version, 20,
          tutorial.server)
    visits = tutorial.shop.visits(2_000, seed=99)
    today, learned = tutorial.shop.truth(TODAY, visits), tutorial.shop.truth_of_policy(actor, visits)
    best = tutorial.shop.truth((1, 1), visits)
    print(f"revenue a request: today {today:.3f}, learned {learned:.3f}, best {best:.3f}")  # noqa: T201
    assert today * 1.01 < learned <= best * 1.01


def check_scorer(tutorial: Tutorial) -> None:
    """The scorer predicts `add_to_cart`, the client sends `margin`; what nobody predicts is named."""
    body: dict[str, Any] = {"user": {"user_id": "user-7"}, "scene": "home", "explain": True, "explore": False,
                            "candidates": {"item_id": ["sku-1", "sku-2", "sku-3"],
                                           "predictions": {"margin": [1.5, 9.0, 2.0]}}}
    assert tutorial.server is not None
    until(lambda: httpx.get(f"{tutorial.url}/v1/models").json()["scenes"]["tasks"], 20, tutorial.server)
    answer = httpx.post(f"{tutorial.url}/v1/recommend", json=body).json()
    assert {name for item in answer["items"] for name in item["predictions"]} == set(PREDICTIONS)
    assert answer["scenes_version"].startswith("scenes-")
    assert "user_id" not in answer["unknown"]
    assert answer["unknown"].get("item_id", 0) < 3, "some of them were hardly ever shown, not all"
    assert answer["items"][0]["catalogue"]["price"] is not None
    visits = tutorial.shop.visits(200, seed=98)
    today, served = tutorial.shop.truth(TODAY, visits), played_with_scorer(tutorial.url, visits)
    print(f"revenue a request: today {today:.3f}, learned policy on the scorer {served:.3f}")  # noqa: T201
    assert served > today
    del body["candidates"]["predictions"]
    refused = httpx.post(f"{tutorial.url}/v1/recommend", json=body)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "candidates.predictions.margin")


def check_ctrl_c(tutorial: Tutorial) -> None:
    """All that the server started listens on loopback alone, and nothing of it is left."""
    assert tutorial.server is not None
    for process in descendants(tutorial.server.pid):
        with suppress(OSError):  # it ended while we looked
            assert listening(process) <= LOOPBACK_ADDRESSES
    started = {process: line for process, line in descendants(tutorial.server.pid).items() if line}
    os.killpg(tutorial.server.pid, signal.SIGINT)
    assert tutorial.server.wait(30) == 0
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(Path(f"/proc/{process}/exe").exists() for process in started):
        time.sleep(0.2)
    assert not [line for process, line in started.items() if Path(f"/proc/{process}/exe").exists()]
