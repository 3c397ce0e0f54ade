"""Hot swaps under load, some of them of corrupt bundles: no request fails, no answer mixes two models."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from recfuse.behaviours import Vocabulary
from recfuse.bundle import read_bundle
from recfuse.bundle.pointer import Pointer, read_pointer, write_pointer
from recfuse.fusion.config import NetworkConfig
from recfuse.fusion.inference import FusionActor, export_policy
from recfuse.fusion.networks import GaussianPolicies, Normalisation

pytestmark = [pytest.mark.load, pytest.mark.usefixtures("local_ray")]
SWAPS, CORRUPT_EVERY, CLIENTS = 200, 4, 4
STATE = [0.1] * 64


def new_policy(models: Path, vocabulary: Vocabulary, seed: int) -> Path:
    sizes = vocabulary.state_size, vocabulary.action_size
    policy = GaussianPolicies(("watch_time",), NetworkConfig(hidden=(16,)), Normalisation.identity(*sizes), seed=seed)
    return export_policy(models, policy, vocabulary, training={}, data_fingerprint="none", metrics={})


def corrupted(bundle: Path, number: int) -> str:
    """A copy under another name with one byte changed."""
    copy = bundle.with_name(f"{bundle.name[:-4]}{number:04d}")
    shutil.copytree(bundle, copy)
    path = next(copy.glob("*.safetensors"))
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)
    return copy.name


def test_swaps_under_load(models: Path, tmp_path: Path, say: Callable[[str], None]) -> None:
    from recfuse.serving.config import ServingConfig
    from recfuse.serving.local import running

    first = read_pointer(models)
    vocabulary = FusionActor.from_bundle(read_bundle(models / str(first.fusion))).vocabulary
    good = [new_policy(models, vocabulary, seed) for seed in range(1, 6)]
    actors = {path.name: FusionActor.from_bundle(read_bundle(path)) for path in good}
    means = {name: actor.act(np.array([STATE], np.float32), explore=False).mu[0] for name, actor in actors.items()}
    body = {"user_id": 7, "state": STATE, "explore": False, "candidates": {
        "item_id": [1, 2], "predictions": {name: [0.2, 0.4] for name in vocabulary.fusion_parameters}}}
    answers: list[tuple[int, Any]] = []
    stop = threading.Event()

    def ask(url: str) -> None:
        with httpx.Client(base_url=url, timeout=30) as client:
            while not stop.is_set():
                response = client.post("/v1/fusion/fine/rank", json=body)
                answers.append((response.status_code, response.json()))

    write_pointer(models, Pointer(**{**vars(first), "fusion": good[0].name}))
    config = ServingConfig(models=str(models), decision_log=str(tmp_path), poll_seconds=0.02)
    begin = time.monotonic()
    with running(config) as url:
        clients = [threading.Thread(target=ask, args=(url,)) for _ in range(CLIENTS)]
        for client in clients:
            client.start()
        reader = httpx.Client(base_url=url, timeout=30)
        for number in range(SWAPS):
            corrupt = number % CORRUPT_EVERY == CORRUPT_EVERY - 1
            bundle = good[number % len(good)]
            name = corrupted(bundle, number) if corrupt else bundle.name
            write_pointer(models, Pointer(**{**vars(first), "fusion": name}))
            wait(reader, name, corrupt)
        stop.set()
        for client in clients:
            client.join()
        reader.close()
    assert [status for status, _ in answers if status != 200] == []
    for _, answer in answers:
        np.testing.assert_allclose(list(answer["mu"].values()), means[answer["model_version"]], atol=1e-6)
    say(f"{SWAPS} swaps, {SWAPS // CORRUPT_EVERY} corrupt, {len(answers)} requests, 0 failed, 0 mixed; "
          f"{time.monotonic() - begin:.0f} s")


def wait(client: httpx.Client, name: str, corrupt: bool) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        fusion = client.get("/v1/models").json()["fusion"]
        if (name in str(fusion["error"])) if corrupt else (fusion["model_version"] == name):
            return
        time.sleep(0.01)
    raise AssertionError(f"{name}: {fusion}")
