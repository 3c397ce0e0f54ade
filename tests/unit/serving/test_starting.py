"""Before the models are there: the socket that shares the port, and the middleware before Serve's proxy."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import orjson
import pytest
from clusters import free_port
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.types import Receive, Scope, Send

from recfuse.serving.starting import Starting, answering, is_ready


class Application(BaseHTTPRequestHandler):
    """Answers 200 to everything."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        return None


class Sharing(ThreadingHTTPServer):
    """Listens on a port that another socket has, as Serve's proxies do."""

    allow_reuse_port = True


@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
def test_the_port_says_that_the_server_is_starting(method: str) -> None:
    port = free_port()
    with answering("127.0.0.1", port):
        connection = HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request(method, "/v1/recommend", b"x" * 300_000 if method == "POST" else None)
        answer = connection.getresponse()
        body = answer.read()
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert body == b"" if method == "HEAD" else orjson.loads(body)["error"]["value"] == "starting"
        assert not is_ready("127.0.0.1", port)
    with pytest.raises(ConnectionRefusedError):
        HTTPConnection("127.0.0.1", port, timeout=10).request("GET", "/")


def test_no_request_is_lost_when_the_proxy_takes_over() -> None:
    port, seen, over = free_port(), Counter[object](), threading.Event()

    def ask() -> None:
        while not over.is_set():
            try:
                seen[httpx.post(f"http://127.0.0.1:{port}/v1/recommend", content=b"x", timeout=10).status_code] += 1
            except httpx.HTTPError as error:
                seen[repr(error)] += 1

    with answering("127.0.0.1", port):
        clients = [threading.Thread(target=ask) for _ in range(3)]
        for client in clients:
            client.start()
        try:
            assert within_seconds(lambda: seen[503] > 20)
            with Sharing(("127.0.0.1", port), Application) as application:
                threading.Thread(target=application.serve_forever, daemon=True).start()
                assert within_seconds(lambda: seen[200] > 200)
                before = seen[503]
                assert within_seconds(lambda: seen[200] > 400)
                after = seen[503]
                over.set()
                for client in clients:
                    client.join()
                application.shutdown()
        finally:
            over.set()
    assert before == after, "the first socket is closed as soon as the proxy answers"
    assert set(seen) == {200, 503}


def within_seconds(true: Callable[[], bool], seconds: float = 20.0) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def ask_proxy(proxy: Starting, count: int = 1, path: str = "/v1/recommend") -> list[httpx.Response]:
    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=proxy)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [await client.post(path, json={}) for _ in range(count)]
    return asyncio.run(ask())


@pytest.mark.parametrize("what", ["no route", "no replica"])
def test_a_proxy_without_an_application_says_starting_and_lets_all_pass_afterwards(what: str) -> None:
    """Serve's proxy answers 404 in plain text without a route, and keeps a request without a replica."""
    there, methods = {"application": False}, list[str]()

    async def serve_proxy(scope: Scope, receive: Receive, send: Send) -> None:
        methods.append(scope["method"])
        if there["application"]:
            await JSONResponse({}, 422)(scope, receive, send)
        elif what == "no route":
            await PlainTextResponse("Path '/v1/recommend' not found.", 404)(scope, receive, send)
        else:
            await asyncio.sleep(60)

    proxy = Starting(serve_proxy)
    for answer in ask_proxy(proxy, 2):
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["value"] == "starting"
    assert set(methods) == {"GET"}  # nobody's request was begun and given up
    there["application"] = True
    assert [answer.status_code for answer in ask_proxy(proxy, 2)] == [422, 422]
    assert methods[-2:] == ["POST", "POST"]


def test_the_proxy_s_own_paths_are_its_own() -> None:
    proxy = Starting(PlainTextResponse("success"))
    assert ask_proxy(proxy, path="/-/healthz")[0].text == "success"
