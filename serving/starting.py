"""What the port answers before the models are there: 503 "starting" with Retry-After, in the shape of every refusal.

Whoever holds the port would answer in another way, so each is told:

- Before Serve's proxy listens, nobody does. `answering` listens on the port until the proxy answers there; for that
  moment both do, since the kernel deals new connections among the sockets of one port (SO_REUSEPORT).
- Serve's proxy in Python says 404 until it knows a route, then lets requests wait for a replica. `Starting` stands
  before it (`recfuse.runtime.ray_compat.starting_environment`).
- HAProxy says 404 until it knows a route; haproxy-loopback corrects that.
- A replica of the ingress asks the models' replicas first, where they are apart (`recfuse.serving.gateway.Backends`).

Run as a program it is `serve run`, whose port answers from the first moment on:

    env $(python -m serving.environment) python -m serving.starting serving/config.yaml
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from recfuse.runtime.ray_compat import starting_environment
from recfuse.serving.formats import JSON, RefusedError, Reply, refusal_of

_PROBE_SECONDS, _WATCH_SECONDS = 0.2, 0.05
_OURS = "recfuse-starting"


def starting() -> Reply:
    """The answer of a server whose models are not there yet."""
    return refusal_of(RefusedError(503, None, "starting", "a request after the models are loaded; try again after a "
                                                          "second"))


class Starting:
    """Middleware of Serve's proxy: "starting" to everybody until an application has answered, then it lets all pass.

    A probe asks for the path of the first request meanwhile, as GET, which changes nothing: any answer but the proxy's
    own, which is plain text, comes of an application.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app, self._answered = app, False
        self._probe: asyncio.Task[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._answered or scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        if self._probe is None or self._probe.done():
            self._probe = asyncio.create_task(self._ask(scope))
        # An application that is there answers the probe at once.
        await asyncio.wait({self._probe}, timeout=_PROBE_SECONDS)
        if self._answered:
            await self._app(scope, receive, send)
            return
        await _read(receive)
        reply = starting()
        headers = [(b"content-type", JSON.encode()), (b"content-length", b"%d" % len(reply.body)),
                   (b"retry-after", b"%d" % (reply.retry_after or 1))]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    async def _ask(self, scope: Scope) -> None:
        async def receive() -> Message:
            if not asked.is_set():
                asked.set()
                return {"type": "http.request", "body": b"", "more_body": False}
            await asyncio.Event().wait()
            raise AssertionError("nobody sets that event")

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                kind = dict(message.get("headers", ())).get(b"content-type", b"")
                self._answered = self._answered or not kind.startswith(b"text/plain")

        asked = asyncio.Event()
        headers = [(name, value) for name, value in scope["headers"] if name == b"host"]
        with suppress(Exception):  # The next request asks again.
            await self._app({**scope, "method": "GET", "headers": headers, "state": {}}, receive, send)


async def _read(receive: Receive) -> None:
    """Takes the body, so that the connection can be used again."""
    more = True
    while more:
        message = await receive()
        more = message["type"] == "http.request" and message.get("more_body", False)


def middlewares() -> list[Middleware]:
    """Of Serve's proxy, which calls this by its name."""
    return [Middleware(Starting)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = _OURS, ""
    timeout = 5.0

    def answer(self) -> None:
        left = int(self.headers.get("Content-Length") or 0)
        while left > 0 and (part := self.rfile.read(min(left, 1 << 16))):
            left -= len(part)
        reply = starting()
        self.send_response(reply.status)
        for name, value in (("Content-Type", JSON), ("Content-Length", len(reply.body)),
                            ("Retry-After", reply.retry_after), ("Connection", "close")):
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_OPTIONS = do_PATCH = answer

    def log_message(self, *_: Any) -> None:
        return None


class _Server(ThreadingHTTPServer):
    allow_reuse_port = True
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """A client that leaves is nothing to speak of."""

    def end(self) -> None:
        """Answers who has connected already, then closes."""
        self.shutdown()
        self.timeout = 0
        waiting = True
        while waiting:
            waiting = False
            with suppress(OSError):
                self.socket.setblocking(False)
                request, address = self.get_request()
                request.setblocking(True)
                self.process_request(request, address)
                waiting = True
        self.server_close()


@contextmanager
def answering(host: str, port: int) -> Iterator[None]:
    """Inside, the port answers "starting" until another server of the same user, Serve's proxy, answers on it as well:
    that says so itself, and nobody who had an answer of the application hears again that it is starting.

    Raises:
        OSError: the port is taken by somebody who does not share it.
    """
    server = _Server((host, port), _Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), name="starting", daemon=True).start()
    ended = threading.Lock()

    def end() -> None:
        if ended.acquire(blocking=False):
            server.end()

    def watch() -> None:
        while not ended.locked():
            if _ask(host, port)[1] not in ("", _OURS):
                end()
            time.sleep(_WATCH_SECONDS)

    threading.Thread(target=watch, name="starting-watch", daemon=True).start()
    try:
        yield
    finally:
        end()


def is_ready(host: str, port: int) -> bool:
    """Whether an application with its models answers there."""
    return _ask(host, port)[0] == 200


def _ask(host: str, port: int) -> tuple[int, str]:
    """Status, and who answers there; 0 and "" where nobody does."""
    connection = HTTPConnection("127.0.0.1" if host in ("", "0.0.0.0") else host, port, timeout=2)
    try:
        connection.request("GET", "/healthz")
        answer = connection.getresponse()
        return answer.status, (answer.headers.get("Server") or "another").strip()
    except (OSError, HTTPException):
        return 0, ""
    finally:
        connection.close()


def main(arguments: list[str]) -> None:
    """`serve run` with these arguments, the last of which is the config of the application."""
    import yaml

    for name, value in starting_environment().items():  # Ray reads them when it is imported.
        os.environ.setdefault(name, value)
    from ray.serve.scripts import run

    with open(arguments[-1]) as file:
        options = yaml.safe_load(file).get("http_options", {})
    with answering(options.get("host", "127.0.0.1"), options.get("port", 8000)):
        run.main(arguments, prog_name="serve run")


if __name__ == "__main__":
    main(sys.argv[1:])
