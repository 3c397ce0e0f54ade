"""Backends that are not there, or that answer from another process."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable
from typing import Any

import httpx
import orjson
import pytest

from recfuse.serving.api import create_app
from recfuse.serving.config import ServingConfig
from recfuse.serving.endpoints import ENDPOINTS, HEALTH, MODELS, RECOMMEND
from recfuse.serving.formats import Reply
from recfuse.serving.gateway import Backends


class BusyError(Exception):
    """As a handle raises where no replica has room."""


class Remote:
    """Methods by name, as a handle has them: a good answer is a plain tuple after its journey."""

    def __init__(self, act: Callable[..., Any]) -> None:
        self._act, self.asked = act, list[str]()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        self.asked.append(name)

        async def method(*arguments: Any) -> Any:
            return self._act(*arguments)
        return method


def send(backends: Backends, method: str, path: str, count: int = 1) -> list[httpx.Response]:
    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=create_app(backends, ServingConfig()))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return [await client.request(method, path, json={}) for _ in range(count)]
    return asyncio.run(ask())


def busy(*_: Any) -> Any:
    raise BusyError("no replica has room")


@pytest.mark.parametrize("endpoint", [each for each in ENDPOINTS if each.steps or each is MODELS],
                         ids=lambda endpoint: endpoint.name)
def test_a_backend_without_room_is_a_503_after_which_a_client_may_come_back(endpoint: Any) -> None:
    backends = Backends(Remote(busy), Remote(busy), unavailable=(BusyError,))
    backends.are_ready = True
    [answer] = send(backends, endpoint.method, endpoint.path_of(stage="fine", scene="1"))
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["value"] == "no replica has room"


@pytest.mark.parametrize("endpoint", [*(each for each in ENDPOINTS if each.steps or each is MODELS), HEALTH],
                         ids=lambda endpoint: endpoint.name)
def test_until_all_replicas_have_their_models_the_server_is_starting(endpoint: Any) -> None:
    models = {"there": False}

    def described(*_: Any) -> Any:
        return {} if models["there"] else busy()

    backends = Backends(Remote(described), Remote(lambda *_: {}), unavailable=(BusyError,))
    ask = (backends, endpoint.method, endpoint.path_of(stage="fine", scene="1"))
    [answer] = send(*ask)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["value"] == "starting"
    models["there"] = True
    assert send(*ask)[0].json().get("error", {}).get("value") != "starting"


def test_an_error_of_another_kind_is_ours() -> None:
    [answer] = send(Backends(Remote(busy), Remote(busy)), RECOMMEND.method, RECOMMEND.path)
    assert answer.status_code == 500
    assert set(answer.json()["error"]) == {"field", "value", "allowed", "reason"}


def test_a_refusal_of_the_first_step_is_the_answer_and_the_second_is_not_asked() -> None:
    asked: list[Any] = []
    refused = tuple(Reply(422, orjson.dumps({"error": 1})))
    backends = Backends(Remote(asked.append), Remote(lambda *_: refused))
    assert [answer.status_code for answer in send(backends, RECOMMEND.method, RECOMMEND.path, 2)] == [422, 422]
    assert asked == []


def test_what_the_first_step_returns_is_what_the_second_takes() -> None:
    ranking, taken = object(), list[Any]()

    def decide(argument: Any) -> tuple[Any, ...]:
        taken.append(argument)
        return tuple(Reply(200, b"{}"))

    fusion, scenes = Remote(decide), Remote(lambda *_: ranking)
    answers = send(Backends(fusion, scenes), RECOMMEND.method, RECOMMEND.path, 3)
    assert [answer.status_code for answer in answers] == [200] * 3
    assert taken == [ranking] * 3
    assert (fusion.asked, scenes.asked) == (["decide"], ["predict"])  # methods are looked up once


def served(**options: Any) -> Any:
    """Its scorer gives a body back."""
    scorer = Remote(lambda *body: tuple(Reply(200, body[0].content)) if body else {})
    return create_app(Backends(Remote(lambda *_: {}), scorer), ServingConfig(**options))


def ask(app: Any, method: str, path: str, **arguments: Any) -> httpx.Response:
    async def request() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://test") as client:
            return await client.request(method, path, **arguments)
    return asyncio.run(request())


@pytest.mark.parametrize(("encoding", "content", "status", "answer"), [
    ("gzip", gzip.compress(b"{}", mtime=0), 200, b"{}"),
    ("GZIP", gzip.compress(b"{", mtime=0) + gzip.compress(b"}", mtime=0), 200, b"{}"),
    ("identity", b"{}", 200, b"{}"),
    ("gzip", gzip.compress(b"{}", mtime=0)[:-3], 400, b"ends too soon"),
    ("gzip", b"{}", 400, b"gzip, as content-encoding says"),
    ("gzip", gzip.compress(bytes(2_000), mtime=0), 413, b"at most 1000 bytes when unpacked"),
    ("br", b"{}", 415, b"gzip, or none"),
    ("gzip, br", b"{}", 415, b"gzip, or none"),
])
def test_bodies_are_unpacked_or_refused(encoding: str, content: bytes, status: int, answer: bytes) -> None:
    response = ask(served(max_body_bytes=1_000), "POST", RECOMMEND.path, content=content,
                   headers={"Content-Encoding": encoding})
    assert response.status_code == status
    assert answer in response.content


def test_head_and_options_answer() -> None:
    app = served()
    for path in ("/healthz", "/readyz", "/v1/models"):
        head, options = ask(app, "HEAD", path), ask(app, "OPTIONS", path)
        assert (head.status_code, head.content) == (ask(app, "GET", path).status_code, b"")
        assert (options.status_code, options.headers["allow"]) == (204, "GET, HEAD, OPTIONS")
    assert ask(app, "OPTIONS", RECOMMEND.path).headers["allow"] == "POST, OPTIONS"
    assert ask(app, "OPTIONS", "/nothing").status_code == 404
    assert ask(app, "HEAD", RECOMMEND.path).status_code == 405


def test_pages_of_other_sites_ask_where_the_config_names_them() -> None:
    asks = {"Origin": "https://shop.example", "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type"}
    app = served(cors_origins=("https://shop.example",), tokens=("a-long-token",))
    preflight = ask(app, "OPTIONS", RECOMMEND.path, headers=asks)
    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, "https://shop.example")
    answer = ask(app, "POST", RECOMMEND.path, content=b"{}",
                 headers={"Origin": "https://shop.example", "Authorization": "Bearer a-long-token"})
    assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://shop.example")
    assert ask(app, "OPTIONS", RECOMMEND.path, headers={**asks, "Origin": "https://else.example"}).status_code == 400
    assert "access-control-allow-origin" not in ask(served(), "GET", "/healthz", headers=asks).headers


def test_a_slow_upload_holds_no_place_and_ends() -> None:
    """By hand, since httpx reads what it is to send beforehand."""
    app = served(max_concurrent=1, body_seconds=0.3)
    scope = {"type": "http", "method": "POST", "path": RECOMMEND.path, "headers": [(b"content-length", b"10")],
             "query_string": b"", "root_path": ""}

    async def upload(parts: list[bytes]) -> int:
        statuses: list[int] = []

        async def receive() -> dict[str, Any]:
            if not parts:
                await asyncio.sleep(60)
            return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts) or slow}

        async def send(message: dict[str, Any]) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        slow = len(parts) == 1
        await app(scope, receive, send)
        return statuses[0]

    async def both() -> list[int]:
        slow = [asyncio.create_task(upload([b"{"])) for _ in range(8)]
        await asyncio.sleep(0.05)
        honest = await upload([b"{", b"}"])
        return [honest, *(await asyncio.gather(*slow))]

    assert asyncio.run(both()) == [200, *[408] * 8]
