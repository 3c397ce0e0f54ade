"""Ray Serve against bare uvicorn + FastAPI: requests/s and latency of each endpoint, loaded alike.

(a) is the application as `make serve` starts it: every decision is on disk before its answer. (b) is the ceiling of
Python serving: the same decoding, networks and encoding in one uvicorn process behind one FastAPI route, no decision
log, no limits, no tokens. (b+log) adds the decision log to (b) and so shows what the disk costs. (empty) is (a)'s way
through HAProxy and Serve to an application that does nothing. (before) is (a) as another checkout has it, `--baseline`.

In a closed loop wrk asks again over each connection when its answer is there. In an open loop (benchmarks.serving_load)
requests come at random moments at a share of what the side answered at most, and their time runs from the moment they
were due.

    python -m benchmarks.serving --seconds 4
    python -m benchmarks.serving --loop open --share 0.5 --seconds 10
    python -m benchmarks.serving --sides serve before --baseline ../before --rounds 9 --seconds 2
    python -m benchmarks.serving --endpoints fusion --formats json msgpack --sides serve
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

import msgpack
import numpy as np
import orjson
import tyro
from fastapi import FastAPI, Request
from fastapi.responses import Response

from benchmarks.serving_load import Load, closed_loop, open_loop, post

ROOT = Path(__file__).parents[1]
PARAMETERS = tuple(f"p{k}" for k in range(8))
ENDPOINTS = {"fusion": "/v1/fusion/fine/rank", "scenes": "/v1/scenes/1/rank", "recommend": "/v1/recommend"}
SCRIPT = """
wrk.method, wrk.path = "POST", os.getenv("BENCH_PATH")
wrk.headers["Content-Type"] = os.getenv("BENCH_TYPE"); wrk.headers["Accept"] = os.getenv("BENCH_TYPE")
local file = io.open(os.getenv("BENCH_BODY")); wrk.body = file:read("*a"); file:close()
done = function(summary, latency)
  local e = summary.errors
  io.write(string.format('RESULT {"rps": %f, "p50": %f, "p95": %f, "p99": %f, "failed": %d}\\n',
    summary.requests / (summary.duration / 1e6), latency:percentile(50) / 1e3, latency:percentile(95) / 1e3,
    latency:percentile(99) / 1e3, e.status + e.connect + e.read + e.write + e.timeout))
end
"""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Attributes:
        endpoints, candidates, concurrency: the load; every combination is measured.
        loop: `closed` for throughput, `open` for latency.
        share: in an open loop, of the rate that the side answers with 16 connections.
        formats: of bodies and answers: json, or msgpack with its columns as bytes.
        room: requests that HAProxy and the replica let in at a time; the default refuses none.
        seconds: of each measurement, after one of warming up.
        rounds: each measurement is repeated, the sides in turn. The best of each side counts; a ratio is the median of
            the rounds' ratios, and CPU time a request (of server and proxy) the median, which other programs move less.
        rate: in an open loop, requests per second of every side; 0 takes the share.
        sides: serve (a), bare (b), bare_log (b+log), empty, before.
        baseline: a checkout, run in this environment, for the side `before`.
        replicas: of our application.
        layout: of our application.
        settings: `fast` as `make serve` sets them, or `ray` for Ray's defaults.
        output: JSON lines with every figure; empty for none.
    """

    endpoints: tuple[str, ...] = tuple(ENDPOINTS)
    candidates: tuple[int, ...] = (100, 1_000)
    concurrency: tuple[int, ...] = (1, 8, 32, 128)
    loop: Literal["closed", "open"] = "closed"
    share: float = 0.5
    formats: tuple[str, ...] = ("json",)
    room: int = 1_000
    seconds: float = 4.0
    rounds: int = 1
    rate: float = 0.0
    sides: tuple[str, ...] = ("serve", "bare")
    baseline: str = ""
    replicas: int = 1
    layout: str = "together"
    settings: str = "fast"
    output: str = ""


def main(config: BenchmarkConfig) -> None:
    if config.loop == "closed" and shutil.which("wrk") is None:
        raise SystemExit("error: wrk is not installed; on Debian: apt-get install wrk")
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        items = write_models(work / "models")
        (work / "load.lua").write_text(SCRIPT)
        with contextlib.ExitStack() as stack:
            urls = {side: stack.enter_context(started(
                side, work, fast=config.settings == "fast", room=config.room, baseline=config.baseline,
                replicas=config.replicas, layout=config.layout)) for side in config.sides}
            if config.loop == "closed":
                print(f"{'endpoint':10}{'items':>6}{'format':>8}{'conns':>6}  " + "".join(
                    f"{side:>10} req/s   p50   p95   p99 ms   CPU" for side in config.sides) + "     a/b")
            for endpoint in config.endpoints:
                for count in config.candidates:
                    for name in config.formats:
                        body = work / f"{endpoint}-{count}.{name}"
                        body.write_bytes(encoded(request_body(endpoint, items, count), name))
                        measure(urls, endpoint, count, body, work, config)


def measure(urls: dict[str, Server], endpoint: str, count: int, body: Path, work: Path,
            config: BenchmarkConfig) -> None:
    if config.loop == "open":
        for side, server in [each for _ in range(config.rounds) for each in urls.items()]:
            rate, cpu, measured = at_share(server, endpoint, body, config)
            refused, cores = (measured.status != 200).mean(), measured.cpu_seconds / measured.seconds
            print(f"{side} {endpoint} {count} {body.suffix[1:]}, {rate:.0f}/s: {measured}; {refused:.2%} refused; "
                  f"server: {cpu / measured.seconds:.2f} of a core; generator: {cores:.2f}, "
                  f"{measured.late_ms:.1f} ms late at p99", flush=True)
        return
    for connections in config.concurrency:
        report(endpoint, count, connections, load(urls, endpoint, body, connections, work, config), body, config)


def at_share(server: Server, endpoint: str, body: Path, config: BenchmarkConfig) -> tuple[float, float, Load]:
    """An open loop at the config's rate, or at a share of the most that the side answers; with that rate per second,
    and the CPU seconds of the server."""
    url = server.url
    requests = [post(url, ENDPOINTS[endpoint], body.read_bytes(), media_type(body), accept=media_type(body))]
    closed_loop(url, requests, 1, 1.0)
    rate = config.rate or config.share * closed_loop(url, requests, 16, config.seconds).rate(200)
    begin = server.cpu_seconds()
    measured = open_loop(url, requests, rate, config.seconds)
    return rate, server.cpu_seconds() - begin, measured


def media_type(body: Path) -> str:
    return f"application/{body.suffix[1:]}"


def encoded(body: dict[str, Any], name: str) -> bytes:
    """JSON, or MessagePack with every column as little-endian bytes."""
    if name == "json":
        return orjson.dumps(body)
    candidates = dict(body["candidates"])
    candidates["item_id"] = np.array(candidates["item_id"], "<i8").tobytes()
    if "predictions" in candidates:
        columns = candidates["predictions"].items()
        candidates["predictions"] = {key: np.array(column, "<f8").tobytes() for key, column in columns}
    whole: bytes = msgpack.packb({**body, "candidates": candidates})
    return whole


def report(endpoint: str, count: int, connections: int, results: dict[str, list[dict[str, float]]], body: Path,
           config: BenchmarkConfig) -> None:
    first, *others = results.values()
    ratios = [median(a["rps"] / b["rps"] for a, b in zip(first, other, strict=True)) for other in others]
    best = {side: {**max(rounds, key=lambda each: each["rps"]), "cpu_ms": median(each["cpu_ms"] for each in rounds)}
            for side, rounds in results.items()}
    print(f"{endpoint:10}{count:6}{body.suffix[1:]:>8}{connections:6}  " + "".join(
        f"{r['rps']:16.0f}{r['p50']:6.1f}{r['p95']:6.1f}{r['p99']:6.1f}{r['cpu_ms']:9.2f}" for r in best.values()) +
        "".join(f"{ratio:8.2f}" for ratio in ratios), flush=True)
    if config.output:
        with open(config.output, "a") as file:
            row = {"endpoint": endpoint, "candidates": count, "format": body.suffix[1:], "connections": connections,
                   **best, "ratios": ratios}
            file.write(json.dumps(row) + "\n")


def load(urls: dict[str, Server], endpoint: str, body: Path, connections: int, work: Path,
         config: BenchmarkConfig) -> dict[str, list[dict[str, float]]]:
    """Side → its rounds. Refused or failed requests end the benchmark: they would look fast."""
    results: dict[str, list[dict[str, float]]] = {side: [] for side in urls}
    for server in urls.values():
        wrk(server.url, endpoint, body, connections, 1.0, work)
    for number in range(config.rounds):
        for side, server in list(urls.items())[::-1 if number % 2 else 1]:
            begin = server.cpu_seconds()
            result = wrk(server.url, endpoint, body, connections, config.seconds, work)
            if result["failed"]:
                raise SystemExit(f"error: {side}: {result['failed']:.0f} requests to {ENDPOINTS[endpoint]} failed")
            cpu_ms = (server.cpu_seconds() - begin) / (result["rps"] * config.seconds) * 1e3
            results[side].append({**result, "cpu_ms": cpu_ms})
    return results


def wrk(url: str, endpoint: str, body: Path, connections: int, seconds: float, work: Path) -> dict[str, float]:
    done = subprocess.run(
        ["wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "10s", "-s", str(work / "load.lua"), url],
        capture_output=True, text=True, check=True,
        env={**os.environ, "BENCH_PATH": ENDPOINTS[endpoint], "BENCH_BODY": str(body), "BENCH_TYPE": media_type(body)})
    line = next(line for line in done.stdout.splitlines() if line.startswith("RESULT "))
    return dict(json.loads(line.removeprefix("RESULT ")))


@dataclass(frozen=True)
class Server:
    """A side that answers at `url`, and the process that began it."""

    url: str
    process: int

    def cpu_seconds(self) -> float:
        """What the process and all that descend from it, the proxy too, have taken of the CPU so far."""
        parents, ticks = dict[int, int](), dict[int, int]()
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                number = int(path.parent.name)
                parents[number], ticks[number] = int(fields[1]), int(fields[11]) + int(fields[12])
        found, added = {self.process}, True
        while added:
            added = {number for number, parent in parents.items() if parent in found} - found
            found |= added
        return sum(ticks.get(number, 0) for number in found) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def started(side: str, work: Path, *, fast: bool = True, room: int = 1_000, baseline: str = "", replicas: int = 1,
            **options: Any) -> Iterator[Server]:
    """A side in a process of its own, until the block ends.

    Args:
        side: serve, bare, bare_log, empty or before.
        work: a directory with `models` in it.
        fast: with the settings of `make serve`.
        room: requests that a replica has at a time: so many that none is refused.
        baseline: the checkout of the side `before`.
        replicas: of the side `serve`.
        options: of `ServingConfig`.
    """
    import httpx

    from recfuse.serving.environment import settings
    from recfuse.serving.local import free_port

    port, more = free_port(), {}
    root, kind = (Path(baseline), "serve") if side == "before" else (ROOT, side)
    if kind in ("serve", "empty") and fast:
        # Two ports of HAProxy are fixed: others, so that `make serve` may run beside it.
        more = {**settings(), "RECFUSE_ROOM": str(room),
                **{f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("STATS", "METRICS")}}
    options = {"models": str(work / "models"), "decision_log": str(work / side), "max_concurrent": room, **options}
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.serving", "--child", kind, str(port), json.dumps(options)],
        cwd=root, env={**os.environ, "PYTHONPATH": f"{root}/platform:{root}", "BENCH_REPLICAS": str(replicas), **more},
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 120
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/v1/models", timeout=5).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"error: {side} did not start")
            time.sleep(0.2)
        yield Server(url, process.pid)
    finally:
        process.stdin.close()
        process.wait(60)


def child(side: str, port: int, options: dict[str, Any]) -> None:
    """Serves until the standard input ends, with the parent or before it."""
    from recfuse.serving.config import ServingConfig

    config = ServingConfig(**options)
    if side in ("serve", "empty"):
        from recfuse.runtime import ray_compat
        from recfuse.serving.local import running

        replicas = int(os.environ["BENCH_REPLICAS"])
        ray_compat.start_local(num_cpus=2, object_store_memory=256 << 20)
        with running(own_application(config, replicas) if side == "serve" else empty_application(), port):
            sys.stdin.read()
    else:
        import uvicorn

        application = bare_application(config, logged=side == "bare_log")
        server = uvicorn.Server(uvicorn.Config(application, port=port, access_log=False, log_level="warning"))
        thread = threading.Thread(target=server.run)
        thread.start()
        sys.stdin.read()
        server.should_exit = True
        thread.join()


def own_application(config: Any, replicas: int) -> Any:
    """What is served: the config, or its application with several replicas."""
    from recfuse.serving.deployments import ApplicationDeployment

    return config if replicas == 1 else ApplicationDeployment.options(num_replicas=replicas).bind(config.absolute())


class NoLog:
    """Keeps nothing."""

    async def append(self, kind: str, row: dict[str, Any]) -> None:
        return None

    def close(self) -> None:
        return None


def bare_application(config: Any, logged: bool) -> FastAPI:
    from recfuse.serving import replicas
    from recfuse.serving.formats import Body

    fusion = replicas.FusionReplica(config, log=None if logged else NoLog())
    scenes = replicas.ScenesReplica(config)
    api = FastAPI()

    async def body_of(request: Request) -> Body:
        return Body.of(await request.body(), dict(request.headers.raw))

    @api.post("/v1/fusion/{stage}/rank")
    async def rank(stage: str, request: Request) -> Response:
        return Response((await fusion.rank(stage, await body_of(request))).body, media_type="application/json")

    @api.post("/v1/scenes/{scene}/rank")
    async def score(scene: str, request: Request) -> Response:
        return Response((await scenes.rank(scene, await body_of(request))).body, media_type="application/json")

    @api.post("/v1/recommend")
    async def recommend(request: Request) -> Response:
        predicted: Any = await scenes.predict(await body_of(request))
        return Response((await fusion.decide(predicted)).body, media_type="application/json")

    @api.get("/v1/models")
    async def models() -> dict[str, str]:
        return {}
    return api


def empty_application() -> Any:
    """Of Serve: reads a body and answers `{}`."""
    from ray import serve
    from starlette.applications import Starlette

    from recfuse.runtime import ray_compat
    from recfuse.serving.deployments import ApplicationDeployment
    from recfuse.serving.formats import Reply
    from recfuse.serving.gateway import send_reply

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await Starlette()(scope, receive, send)
            return
        while (await receive()).get("more_body"):
            pass
        await send_reply(send, Reply(200, b"{}"))

    @serve.ingress()
    class Empty:
        def __init__(self) -> None:
            ray_compat.keep_replica_on_loopback()

        def __serve_build_asgi_app__(self) -> Any:
            return answer

    return ApplicationDeployment.options(func_or_class=Empty).bind()


def request_body(endpoint: str, items: np.ndarray, count: int) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    item_id = rng.choice(items, count, replace=False).tolist()
    if endpoint == "fusion":
        predictions = {name: rng.random(count).round(4).tolist() for name in PARAMETERS}
        return {"user_id": 7, "scene": "1", "top_n": 10, "candidates": {"item_id": item_id, "predictions": predictions}}
    body: dict[str, Any] = {"user": {"user_id": 7}, "candidates": {"item_id": item_id}, "top_n": 10}
    return body if endpoint == "scenes" else {**body, "scene": "1"}


def write_models(models: Path, page: int = 0) -> np.ndarray:
    """Untrained models of the default sizes, 8 tasks, a catalogue of 2,000 items; returns the items' ids.

    Args:
        page: places of the page that the policy's candidate features look at; 0 for a policy without them.
    """
    from recfuse.behaviours import Behaviour, CandidateFeatures, StateFeature, Vocabulary
    from recfuse.fusion.config import NetworkConfig
    from recfuse.fusion.inference import export_policy
    from recfuse.fusion.networks import GaussianPolicies, Normalisation
    from recfuse.scenes.config import ModelConfig
    from recfuse.scenes.inference import SceneScorer
    from recfuse.scenes.registry import Registry, Scene
    from recfuse.serving.publish import publish
    from recfuse.simulation.exposures import generate
    from recfuse.state.store import UserState

    features = CandidateFeatures(page=page) if page else None
    size = 64 + (CandidateFeatures.width_of(len(PARAMETERS)) if page else 0)
    vocabulary = Vocabulary(
        behaviours=(Behaviour(name="watch_time", kind="long_term"), Behaviour(name="like", kind="short_term")),
        fusion_parameters=PARAMETERS, state_size=size, formula="log_sum", scenes=("0", "1"),
        candidate_features=features,
        state_features=(*(StateFeature(name=f"f{k}") for k in range(61)),
                        StateFeature(name="scene", categories=("0", "1"))))
    policy = GaussianPolicies(("watch_time",), NetworkConfig(), Normalisation.identity(size, len(PARAMETERS)), seed=0)
    fusion = export_policy(models / "new", policy, vocabulary, training={}, data_fingerprint="none", metrics={})
    exposures = generate(seed=0, users=200, items=2_000, rows=20_000)
    registry = Registry(scenes=tuple(Scene(name=name, tasks=PARAMETERS) for name in ("0", "1")))
    config = ModelConfig()
    scorer = SceneScorer.untrained(exposures, registry, config)
    scenes = scorer.export(models / "new", training={}, data_fingerprint="none", metrics={})
    history = tuple(exposures.items["item_id"].to_pylist()[:20])
    publish(models, fusion=fusion, scenes=scenes, catalogue=exposures.items, users={
        "7": UserState(features={f"f{k}": 0.1 * k for k in range(61)}, history=history)})
    return np.asarray(exposures.items["item_id"].to_numpy())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]), json.loads(sys.argv[4]))
    else:
        main(tyro.cli(BenchmarkConfig, description=__doc__))
