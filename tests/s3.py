"""A real S3 server on loopback, in a process of its own, with its objects in memory."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BUCKET = "logs"


@contextmanager
def serving(log: Path) -> Iterator[str]:
    """The options of a URI on the server, which has one bucket; its lines go to the file."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # By hypercorn itself, because the server's own command listens on every interface.
    command = [sys.executable, "-m", "hypercorn", "ministack.app:app", "--bind", f"127.0.0.1:{port}"]
    with log.open("wb") as lines:
        server = subprocess.Popen(command, stdout=lines, stderr=subprocess.STDOUT, cwd=log.parent,
                                  env={**os.environ, "GATEWAY_PORT": str(port),
                                       "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)})
    try:
        _wait(server, port, log)
        options = f"?endpoint_override=127.0.0.1:{port}&scheme=http&region=us-east-1"
        _make_bucket(options)
        yield options
    finally:
        server.terminate()
        server.wait(20)


def _wait(server: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(.1)


def _make_bucket(options: str) -> None:
    import pyarrow.fs as pafs

    filesystem, _ = pafs.FileSystem.from_uri(f"s3://key:word@{BUCKET}{options}&allow_bucket_creation=true")
    filesystem.create_dir(BUCKET)
