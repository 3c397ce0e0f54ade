"""Whatever a client sends: no 5xx, one error shape, and an answer that is JSON without NaN."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .test_api import FEEDBACK, FEEDBACK_BODY, FUSION, FUSION_BODY, RECOMMEND, RECOMMEND_BODY, SCENES, SCENES_BODY

BODIES = {FUSION: {**FUSION_BODY, "context": {"age": 3}, "seed": 1, "top_n": 1, "explore": True,
                   "candidates": {**FUSION_BODY["candidates"], "seen": [False, True, False]}},
          SCENES: {**SCENES_BODY, "weights": {"click": 1.0}, "top_n": 2},
          RECOMMEND: {**RECOMMEND_BODY, "context": {"age": 3}, "explain": True},
          FEEDBACK: {**FEEDBACK_BODY, "user_id": 9, "items": [1], "features": {"age": 3}}}
SCALARS = (st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) |
           st.sampled_from([2**63, -2**63, 10**400, 1e308, -1e308, 5e-324, "", "\x00", "é" * 300]))
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) |
                      st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=12)
FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def send(start: Callable[..., Any], wide: Any, tmp_path: Path) -> Any:
    """To a model that reads the candidates, with a log that keeps two of them."""
    application = start(max_body_bytes=200_000, max_candidates=500, fsync=False, log_candidates_best=1,
                        log_candidates_random=1)

    def post(path: str, content: bytes) -> httpx.Response:
        response: httpx.Response = application.post(path, content)
        assert response.status_code < 500, (content[:500], response.text)
        answer = orjson.loads(response.content)  # refuses NaN and Infinity
        if response.status_code >= 400:
            assert set(answer) == {"error"}
            assert set(answer["error"]) == {"field", "value", "allowed", "reason"}
        return response
    return post


def text(value: Any) -> bytes:
    """JSON with NaN, Infinity and numbers of any length, as careless clients write it."""
    import json

    return json.dumps(value).encode("utf-8", "surrogatepass")


def paths_of(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path] + [deeper for key, child in children for deeper in paths_of(child, (*path, key))]


def replaced(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = dict(node) if isinstance(node, dict) else list(node)
    copy[path[0]] = replaced(node[path[0]], path[1:], value)
    return copy


@FUZZ
@given(path=st.sampled_from(sorted(BODIES)), data=st.data(), value=VALUES)
def test_one_field_of_a_good_body_is_anything(send: Any, path: str, data: st.DataObject, value: Any) -> None:
    place = data.draw(st.sampled_from(paths_of(BODIES[path])))
    send(path, text(replaced(BODIES[path], place, value)))


@FUZZ
@given(path=st.sampled_from(sorted(BODIES)), extra=st.dictionaries(st.text(max_size=12), VALUES, max_size=3),
       where=st.sampled_from([(), ("user",), ("candidates",), ("context",), ("weights",), ("feedback",)]))
def test_fields_that_nobody_declared(send: Any, path: str, extra: dict[str, Any], where: tuple[str, ...]) -> None:
    body = BODIES[path]
    if where and where[0] not in body:
        return
    inner = body[where[0]] if where else body
    send(path, text(replaced(body, where, {**inner, **extra})))


@FUZZ
@given(seen=VALUES | st.lists(st.booleans(), min_size=3, max_size=3), count=st.integers(1, 4), order=st.sampled_from(
    ["ascending", "descending"]), columns=st.lists(st.floats(), min_size=8, max_size=8))
def test_any_seen_with_any_numbers(send: Any, seen: Any, count: int, order: str, columns: list[float]) -> None:
    candidates = {"item_id": list(range(count)), "seen": seen,
                  "predictions": {"click": columns[:count], "long_view": columns[4:4 + count]}}
    send(FUSION, text({**FUSION_BODY, "order": order, "candidates": candidates}))


@FUZZ
@given(path=st.sampled_from(sorted(BODIES)), content=st.binary(max_size=200) | st.builds(text, VALUES))
def test_any_bytes(send: Any, path: str, content: bytes) -> None:
    assert send(path, content).status_code in (400, 422)


@FUZZ
@given(segment=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30), path=st.sampled_from(
    ["/v1/fusion/{}/rank", "/v1/scenes/{}/rank"]))
def test_any_path(start: Callable[..., Any], segment: str, path: str) -> None:
    from urllib.parse import quote

    application = start(fsync=False)
    status = application.post(path.format(quote(segment, safe="")), {}).status_code
    assert status in (404, 405, 307, 422), status


@pytest.mark.parametrize("depth", [10, 1_000, 50_000])
@pytest.mark.parametrize("around", ["[", '{"a":'])
def test_deep_nesting(send: Any, depth: int, around: str) -> None:
    for body in (around * depth, f'{{"user_id": 1, "context": {around * depth}'):
        assert send(FUSION, body.encode()).status_code in (400, 413, 422)


def test_many_at_once_mixed_good_and_bad(start: Callable[..., Any]) -> None:
    """Bad requests neither fail nor delay the good ones that share the log's writes with them."""
    application = start(max_concurrent=1_000)

    async def burst() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=application.api)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            bodies = [FUSION_BODY if i % 2 else {**FUSION_BODY, "state": [math.pi]} for i in range(100)]
            return await asyncio.gather(*[client.post(FUSION, json=body) for body in bodies])

    assert [answer.status_code for answer in asyncio.run(burst())] == [422, 200] * 50
