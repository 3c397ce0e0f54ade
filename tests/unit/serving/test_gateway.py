"""Backends that are not there, or that answer from another process."""

from __future__ import annotations

import asyncio
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
