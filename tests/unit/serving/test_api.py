"""Every endpoint and every refusal, through the HTTP layer."""

from __future__ import annotations

import asyncio
import html
import math
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from recfuse.state.clock import clock_features
from recfuse.state.store import UserStateError

FUSION = "/v1/fusion/fine/rank"
SCENES = "/v1/scenes/feed/rank"
RECOMMEND = "/v1/recommend"
FEEDBACK = "/v1/feedback"
FUSION_BODY: dict[str, Any] = {
    "user_id": "u1", "state": [0.5, 1, 0, 0],
    "candidates": {"item_id": ["a", "b", "c"], "predictions": {"click": [.1, .5, .2], "long_view": [.3, .1, .9]}},
}
SCENES_BODY: dict[str, Any] = {"user": {"user_id": 7}, "candidates": {"item_id": [1, 2, 3]}}
RECOMMEND_BODY: dict[str, Any] = {**SCENES_BODY, "scene": "feed"}
FEEDBACK_BODY: dict[str, Any] = {"request_id": "r", "feedback": {"watch_time": 3.5}}


def with_(body: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy of a body; `candidates__item_id=…` changes a field of a field, None removes it."""
    changed = orjson.loads(orjson.dumps(body))
    for path, value in changes.items():
        *parents, name = path.split("__")
        place = changed
        for parent in parents:
            place = place[parent]
        if value is None:
            place.pop(name)
        else:
            place[name] = value
    return dict(changed)


def test_fusion_ranks_by_the_declared_formula(start: Callable[..., Any]) -> None:
    """log_sum by hand: Σ a_k log(p_k + 0.001) with the action of the answer."""
    application = start(log_candidates=False)
    answer = application.post(FUSION, with_(FUSION_BODY, explore=False)).json()
    decision = application.actor.act(np.array([[0.5, 1, 0, 0]], np.float32), explore=False)
    np.testing.assert_allclose(list(answer["mu"].values()), decision.mu[0], atol=1e-6)
    np.testing.assert_allclose(list(answer["sigma"].values()), decision.sigma[0], atol=1e-6)
    assert answer["action"] == answer["mu"]
    assert answer["action_logp"] == pytest.approx(decision.action_logp[0], abs=1e-9)
    assert answer["model_version"] == application.actor.version
    assert answer["state_source"] == "request"
    click, long_view = answer["action"]["click"], answer["action"]["long_view"]
    rows = zip("abc", [.1, .5, .2], [.3, .1, .9], strict=True)
    expected = {item: click * math.log(p + .001) + long_view * math.log(q + .001) for item, p, q in rows}
    assert [item["item_id"] for item in answer["items"]] == sorted(expected, key=lambda item: -expected[item])
    assert {item["item_id"]: item["score"] for item in answer["items"]} == pytest.approx(expected, abs=1e-5)


def test_what_an_answer_says_of_the_policy_has_names(application: Any) -> None:
    names = list(application.actor.vocabulary.fusion_parameters)
    for path, body in ((FUSION, FUSION_BODY), (RECOMMEND, RECOMMEND_BODY)):
        answer = application.post(path, body).json()
        assert [list(answer[vector]) for vector in ("mu", "sigma", "action")] == [names] * 3


def test_fusion_options(application: Any) -> None:
    def items(**changes: Any) -> list[Any]:
        answer = application.post(FUSION, with_(FUSION_BODY, explore=False, **changes)).json()
        return [item["item_id"] for item in answer["items"]]

    assert items(order="ascending") == items()[::-1]
    assert items(top_n=2) == items()[:2]
    assert items(candidates__item_id=[10, 20, 2**62]) != []
    sampled = [application.post(FUSION, with_(FUSION_BODY, explore=True, seed=seed)).json() for seed in (1, 1, 2)]
    assert sampled[0]["action"] == sampled[1]["action"] != sampled[2]["action"]
    assert sampled[0]["action"] != sampled[0]["mu"]
    assert sampled[0]["request_id"] != sampled[1]["request_id"]


def test_exploration_is_a_setting_that_a_request_may_override(start: Callable[..., Any]) -> None:
    quiet = start(explore=False)
    answer = quiet.post(FUSION, FUSION_BODY).json()
    assert answer["action"] == answer["mu"]
    answer = quiet.post(FUSION, with_(FUSION_BODY, explore=True)).json()
    assert answer["action"] != answer["mu"]


@pytest.mark.parametrize(("user_id", "context", "age", "source"), [
    ("u1", {"age": 45}, 45, "context"),
    ("u1", {}, 30, "context"),
    (7, None, 50, "store"),
    ("7", None, 50, "store"),
    ("nobody", None, 30, "default"),
])
def test_state_from_context_store_or_defaults(
    application: Any, user_id: Any, context: Any, age: float, source: str
) -> None:
    body = with_(FUSION_BODY, state=None, user_id=user_id, explore=False, scene="shop")
    answer = application.post(FUSION, body if context is None else {**body, "context": context}).json()
    state = np.array([[(age - 30) / 10, 0, 1, 0]], np.float32)
    expected = application.actor.act(state, explore=False).mu[0]
    np.testing.assert_allclose(list(answer["mu"].values()), expected, atol=1e-6)
    assert answer["state_source"] == source


def test_answers_go_on_while_the_store_of_users_is_down(
    application: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: Any, **__: Any) -> None:
        raise UserStateError("down")

    for name in ("get", "get_at_once", "record"):
        monkeypatch.setattr(application.users, name, down)
    body = with_(FUSION_BODY, state=None, user_id=7)
    assert application.post(FUSION, body).json()["state_source"] == "degraded"
    assert application.post(FUSION, {**body, "context": {"age": 5}}).json()["state_source"] == "context"
    assert application.post(RECOMMEND, RECOMMEND_BODY).json()["state_source"] == "degraded"
    answer = application.post(FEEDBACK, {**FEEDBACK_BODY, "user_id": 7, "items": [1]})
    assert (answer.status_code, answer.json()["state_source"]) == (202, "degraded")


def test_scenes_by_hand(application: Any) -> None:
    """click 1/2, 1/3, 1/4 and long view .1, .9, .3 of items 1, 2, 3; means .3, .617, .275 at equal weights."""
    answer = application.post(SCENES, SCENES_BODY).json()
    assert [item["item_id"] for item in answer["items"]] == [2, 1, 3]
    assert [item["score"] for item in answer["items"]] == pytest.approx([.61667, .3, .275], abs=1e-4)
    assert answer["items"][0]["probabilities"] == pytest.approx({"click": 1 / 3, "long_view": .9}, abs=1e-6)
    assert answer["items"][0]["catalogue"] == {
        "price": None, "price_before": 20.0, "image": "2.png", "parameters": {"duration": 90.0, "brand": "b"}}
    assert answer["model_version"] == "scenes-fake"
    scene, user, items = application.scorer.seen[-1]
    assert (scene, user) == ("feed", {"user_id": 7, "age": 50, "history": [1, 2], **clock_features()})
    assert items["duration"].tolist() == [10.0, 90.0, 30.0]


def test_scenes_options(start: Callable[..., Any]) -> None:
    application = start(scene_weights={"shop": {"click": 1.0}})

    def items(path: str = SCENES, **changes: Any) -> list[int]:
        answer = application.post(path, with_(SCENES_BODY, **changes)).json()
        return [item["item_id"] for item in answer["items"]]

    assert items(weights={"click": 1.0}) == [1, 2, 3]
    assert items("/v1/scenes/shop/rank") == [1, 2, 3]
    assert items("/v1/scenes/shop/rank", weights={"long_view": 0.2}) == [2, 3, 1]
    assert items(top_n=1) == [2]
    assert items(fusion="power") == [2, 3, 1]  # .05, .3, .075
    assert items(fusion="rank", weights={"click": 3.0, "long_view": 1.0}) == [1, 2, 3]
    # What the request says of an item or a user goes over what is stored.
    assert items(candidates__duration=[99.0, 1.0, 1.0], weights={"long_view": 1.0})[0] == 1
    application.post(SCENES, with_(SCENES_BODY, user={"user_id": 7, "age": 20, "history": [9]}))
    assert application.scorer.seen[-1][1] == {"user_id": 7, "age": 20, "history": [9], **clock_features()}


def test_unknown_items_and_users_are_served_and_counted(application: Any) -> None:
    body = {"user": {"user_id": "stranger"}, "candidates": {"item_id": [5_000, 2]}}
    answer = application.post(SCENES, body).json()
    assert answer["unknown"] == {"item_id": 1}
    entries = {item["item_id"]: item["catalogue"] for item in answer["items"]}
    assert entries[5_000] is None
    assert entries[2]["price_before"] == 20.0


def test_recommend_composes_the_two(application: Any) -> None:
    answer = application.post(RECOMMEND, {**RECOMMEND_BODY, "explore": False, "explain": True, "top_n": 2}).json()
    assert (answer["state_source"], answer["scenes_version"], len(answer["items"])) == ("store", "scenes-fake", 2)
    expected = application.actor.act(np.array([[2, 1, 0, 0]], np.float32), explore=False)
    np.testing.assert_allclose(list(answer["mu"].values()), expected.mu[0], atol=1e-6)
    for item in answer["items"]:
        score = sum(a * math.log(item["predictions"][task] + .001) for task, a in answer["action"].items())
        assert item["score"] == pytest.approx(score, abs=1e-5)
        assert item["catalogue"]["parameters"]["brand"] in ("a", "b")
    assert "predictions" not in application.post(RECOMMEND, RECOMMEND_BODY).json()["items"][0]


def test_models_health_and_documentation(application: Any) -> None:
    models = application.get("/v1/models").json()
    assert models["fusion"]["model_version"] == application.actor.version
    assert models["scenes"]["model_version"] == "scenes-fake"
    assert application.get("/healthz").json() == {"status": "ok"}
    assert application.get("/docs").status_code == 200
    document = application.get("/openapi.json").json()
    assert {"/v1/fusion/{stage}/rank", "/v1/scenes/{scene}/rank", "/v1/recommend", "/v1/feedback", "/v1/models",
            "/healthz"} <= set(document["paths"])
    assert _dangling(document, document["components"]["schemas"]) == set()


def test_every_operation_of_the_document_has_an_example_that_is_answered(application: Any) -> None:
    document = application.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            values = {parameter["name"]: parameter["example"] for parameter in operation.get("parameters", ())}
            target = path.format(**values)
            body = operation.get("requestBody")
            example = body["content"]["application/json"]["example"] if body else None
            answer = application.request(method.upper(), target, json=example)
            assert answer.status_code in (200, 202), (path, answer.text)
            assert f"curl -s http://test{target}" in operation["description"]
            listed = html.unescape(application.get("/docs").text)  # also without the script that Swagger loads
            assert f"<pre style=\"white-space: pre-wrap\">{operation['x-codeSamples'][0]['source']}</pre>" in listed


def test_the_commands_of_the_document_name_a_token_where_one_is_needed(start: Callable[..., Any]) -> None:
    headers = {"Authorization": "Bearer first-token"}
    document = start(tokens=("first-token",)).request("GET", "/openapi.json", headers=headers).json()
    assert '"Authorization: Bearer $TOKEN"' in document["paths"]["/v1/recommend"]["post"]["description"]
    assert "first-token" not in str(document)


def _dangling(node: Any, schemas: dict[str, Any]) -> set[str]:
    if isinstance(node, dict):
        dangling = set().union(*[_dangling(value, schemas) for value in node.values()], set())
        reference = node.get("$ref")
        missing = isinstance(reference, str) and reference.removeprefix("#/components/schemas/") not in schemas
        return dangling | ({str(reference)} if missing else set())
    if isinstance(node, list):
        return set().union(*[_dangling(value, schemas) for value in node], set())
    return set()


REFUSED: list[tuple[str, Any, int, str, str]] = [
    # fusion
    ("/v1/fusion/best/rank", FUSION_BODY, 404, "stage", "coarse, fine, rerank, mix"),
    (FUSION, b"", 400, "body", "a JSON object"),
    (FUSION, b"{", 400, "body", "a JSON object"),
    (FUSION, b"\xff\xfe", 400, "body", "a JSON object"),
    (FUSION, b"[" * 100_000, 400, "body", "a JSON object"),
    (FUSION, b"[]", 422, "body", "an object"),
    (FUSION, b"null", 422, "body", "an object"),
    (FUSION, with_(FUSION_BODY, user_id=None), 422, "user_id", "required"),
    (FUSION, with_(FUSION_BODY, user_id=""), 422, "user_id", "at least 1 character"),
    (FUSION, with_(FUSION_BODY, user_id=[1]), 422, "user_id", "string"),
    (FUSION, with_(FUSION_BODY, user_id="x" * 300), 422, "user_id", "at most 256 characters"),
    (FUSION, b'{"user_id": 99999999999999999999}', 422, "user_id", "18446744073709551615"),
    (FUSION, with_(FUSION_BODY, colour="red"), 422, "colour", "no such field"),
    (FUSION, with_(FUSION_BODY, candidates=None), 422, "candidates", "required"),
    (FUSION, with_(FUSION_BODY, candidates=[]), 422, "candidates", "object"),
    (FUSION, with_(FUSION_BODY, candidates__item_id=[]), 422, "candidates.item_id", "at least 1 item"),
    (FUSION, with_(FUSION_BODY, candidates__item_id=[1.5, 2, 3]), 422, "candidates.item_id[0]", "integer"),
    (FUSION, with_(FUSION_BODY, candidates__item_id=["a"]), 422, "candidates.predictions.click", "1 numbers"),
    (FUSION, with_(FUSION_BODY, candidates__predictions__click=[1]), 422, "candidates.predictions.click", "3 numbers"),
    (FUSION, with_(FUSION_BODY, candidates__predictions__click=None), 422, "candidates.predictions.click",
     "click, long_view"),
    (FUSION, with_(FUSION_BODY, candidates__predictions__click=["1", 1, 1]), 422, "candidates.predictions.click[0]",
     "a valid number"),
    (FUSION, with_(FUSION_BODY, candidates__predictions__click=[True, 1, 1]), 422, "candidates.predictions.click[0]",
     "a valid number"),
    (FUSION, with_(FUSION_BODY, candidates__predictions__click=[0.1, -1, 1]), 422, "candidates.predictions.click[1]",
     "numbers > −0.001 (formula log_sum)"),
    (FUSION, b'{"user_id": 1, "candidates": {"item_id": [1], "predictions": {"click": [NaN]}}}', 422,
     "candidates.predictions.click[0]", "a finite number"),
    (FUSION, b'{"user_id": 1, "candidates": {"item_id": [1], "predictions": {"click": [-Infinity]}}}', 422,
     "candidates.predictions.click[0]", "a finite number"),
    (FUSION, b'{"user_id": 1, "candidates": {"item_id": [1], "predictions": {"click": [1e999]}}}', 422,
     "candidates.predictions.click[0]", "a finite number"),
    (FUSION, with_(FUSION_BODY, state=[1, 2]), 422, "state", "4 numbers"),
    (FUSION, with_(FUSION_BODY, state=[1, 2, 3, "x"]), 422, "state[3]", "a valid number"),
    (FUSION, with_(FUSION_BODY, state=[1, 2, 3, 1e300]), 422, "state", "fit float32"),
    (FUSION, b'{"user_id": 1, "state": [NaN], "candidates": {"item_id": [1], "predictions": {}}}', 422, "state[0]",
     "a finite number"),
    (FUSION, with_(FUSION_BODY, state=None, context={"age": "old"}), 422, "context.age", "a finite number"),
    (FUSION, with_(FUSION_BODY, state=None, context={"age": [1]}), 422, "context.age", "a valid string"),
    (FUSION, with_(FUSION_BODY, state=None, context={"age": 1e300}), 422, "context.age", "float32"),
    (FUSION, with_(FUSION_BODY, scene="wall"), 422, "scene", "feed, shop"),
    (FUSION, with_(FUSION_BODY, top_n=0), 422, "top_n", "greater than or equal to 1"),
    (FUSION, with_(FUSION_BODY, top_n=1.5), 422, "top_n", "a valid integer"),
    (FUSION, with_(FUSION_BODY, order="up"), 422, "order", "'descending' or 'ascending'"),
    (FUSION, with_(FUSION_BODY, seed=-1), 422, "seed", "greater than or equal to 0"),
    (FUSION, with_(FUSION_BODY, explore="yes"), 422, "explore", "a valid boolean"),
    # scenes
    ("/v1/scenes/attic/rank", SCENES_BODY, 404, "scene", "feed, shop, wall"),
    (SCENES, with_(SCENES_BODY, user=None), 422, "user", "required"),
    (SCENES, with_(SCENES_BODY, user={}), 422, "user.user_id", "required"),
    (SCENES, with_(SCENES_BODY, user__history=[1.5]), 422, "user.history[0]", "a valid integer"),
    (SCENES, with_(SCENES_BODY, user__age={}), 422, "user.age", "a valid string"),
    (SCENES, with_(SCENES_BODY, candidates__item_id=[]), 422, "candidates.item_id", "at least 1 item"),
    (SCENES, with_(SCENES_BODY, candidates__item_id=[1.5]), 422, "candidates.item_id[0]", "a valid integer"),
    (SCENES, with_(SCENES_BODY, candidates__duration=[1]), 422, "candidates.duration", "3 values"),
    (SCENES, with_(SCENES_BODY, candidates__duration=[1, [], 2]), 422, "candidates.duration[1]", "a valid string"),
    (SCENES, with_(SCENES_BODY, weights={"order": 1}), 422, "weights.order", "click, long_view"),
    (SCENES, with_(SCENES_BODY, weights={"click": -1}), 422, "weights.click", "a number from 0 to 1e6"),
    (SCENES, with_(SCENES_BODY, weights={"click": 0}), 422, "weights", "a sum > 0"),
    (SCENES, with_(SCENES_BODY, weights={}), 422, "weights", "a sum > 0"),
    (SCENES, with_(SCENES_BODY, fusion="best"), 422, "fusion", "'mean', 'power' or 'rank'"),
    # recommend
    (RECOMMEND, SCENES_BODY, 422, "scene", "required"),
    (RECOMMEND, with_(RECOMMEND_BODY, scene="attic"), 422, "scene", "feed, shop, wall"),
    (RECOMMEND, with_(RECOMMEND_BODY, scene="wall"), 422, "scene", "feed, shop"),
    (RECOMMEND, with_(RECOMMEND_BODY, stage="best"), 404, "stage", "coarse, fine, rerank, mix"),
    (RECOMMEND, with_(RECOMMEND_BODY, user__age="old"), 422, "context.age", "a finite number"),
    (RECOMMEND, with_(RECOMMEND_BODY, state=[1]), 422, "state", "4 numbers"),
    (RECOMMEND, with_(RECOMMEND_BODY, explain=1), 422, "explain", "a valid boolean"),
    # feedback
    (FEEDBACK, with_(FEEDBACK_BODY, request_id=None), 422, "request_id", "required"),
    (FEEDBACK, with_(FEEDBACK_BODY, feedback__joy=1), 422, "feedback.joy", "watch_time, like"),
    (FEEDBACK, with_(FEEDBACK_BODY, feedback__watch_time=-1), 422, "feedback.watch_time", "a number from 0"),
    (FEEDBACK, with_(FEEDBACK_BODY, feedback__like=1e300), 422, "feedback.like", "a number from"),
    (FEEDBACK, b'{"request_id": "r", "feedback": {"like": NaN}}', 422, "feedback.like", "a finite number"),
    (FEEDBACK, with_(FEEDBACK_BODY, items=[1]), 422, "user_id", "stored state"),
    (FEEDBACK, with_(FEEDBACK_BODY, user_id=1, features={"age": "old"}), 422, "features.age", "a finite number"),
    (FEEDBACK, with_(FEEDBACK_BODY, user_id=1, items=[""]), 422, "items[0]", "at least 1 character"),
    # paths
    ("/v2/nothing", {}, 404, "path", "/docs"),
]


@pytest.mark.parametrize(("path", "body", "status", "field", "allowed"), REFUSED)
def test_bad_requests_name_field_value_and_what_is_allowed(
    application: Any, path: str, body: Any, status: int, field: str, allowed: str
) -> None:
    response = application.post(path, body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"field", "value", "allowed", "reason"}
    assert error["field"] == field
    assert allowed in error["allowed"]
    assert error["reason"].startswith(field)


def test_wrong_methods_are_refused_in_the_same_shape(application: Any) -> None:
    response = application.get(FUSION)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")
    assert response.json()["error"]["field"] == "method"


def test_limits(start: Callable[..., Any]) -> None:
    small = start(max_body_bytes=1_000, max_candidates=2)
    response = small.post(FUSION, b" " * 1_001)
    assert (response.status_code, response.json()["error"]["allowed"]) == (413, "at most 1000 bytes")

    async def chunks() -> Any:
        for _ in range(20):
            yield b" " * 100

    response = small.request("POST", FUSION, content=chunks())
    assert (response.status_code, response.json()["error"]["field"]) == (413, "body")
    for path, body in ((FUSION, FUSION_BODY), (SCENES, SCENES_BODY), (RECOMMEND, RECOMMEND_BODY)):
        response = small.post(path, body)
        assert (response.status_code, response.json()["error"]["field"]) == (413, "candidates.item_id")


def test_more_than_the_limit_at_a_time_is_refused_at_once(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow = start(max_concurrent=2)

    async def send() -> list[httpx.Response]:
        written = asyncio.Event()

        async def append(*_: Any) -> None:
            await written.wait()

        monkeypatch.setattr(narrow.log, "append", append)
        transport = httpx.ASGITransport(app=narrow.api)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            finished = asyncio.as_completed([client.post(FUSION, json=FUSION_BODY) for _ in range(5)], timeout=30)
            refused = [await next(finished) for _ in range(3)]
            health = await client.get("/healthz")
            written.set()
            return [*refused, *[await answer for answer in finished], health]

    *answers, health = asyncio.run(send())
    assert sorted(answer.status_code for answer in answers) == [200, 200, 503, 503, 503]
    assert health.status_code == 200
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all(answer.headers["retry-after"] == "1" for answer in refused)
    assert "2 requests at a time" in refused[0].json()["error"]["reason"]
    assert narrow.post(FUSION, FUSION_BODY).status_code == 200  # what has been answered makes room


def test_tokens(start: Callable[..., Any]) -> None:
    closed = start(tokens=("first-token", "second-token"))
    assert closed.get("/healthz").status_code == 200
    for path in ("/docs", "/openapi.json", "/v1/models", "/nothing"):
        response = closed.get(path)
        assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
        assert "first-token" not in response.text
    for header in ("first-token", "Basic first-token", "Bearer", "Bearer first-toke", "Bearer first-token-",
                   "Bearer é"):
        headers = {b"Authorization": header.encode()}
        assert closed.request("GET", "/v1/models", headers=headers).status_code == 401, header
    for token in ("first-token", "second-token"):
        response = closed.request("GET", "/v1/models", headers={"Authorization": f"Bearer {token}"})
        assert response.status_code == 200


def test_behind_a_route_prefix(start: Callable[..., Any]) -> None:
    """As Serve hands requests on: the prefix is in the path, and is the application's root path."""
    closed = start(tokens=("first-token",))
    bearer = {"Authorization": "Bearer first-token"}

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app=closed.api, root_path="/shop")
        async with httpx.AsyncClient(transport=transport, base_url="http://test/shop") as client:
            return [await client.get("/healthz"), await client.get("/v1/models"),
                    await client.get("/healthz/v1/models"), await client.get("/v1/models", headers=bearer),
                    await client.post(FUSION, json=FUSION_BODY, headers=bearer),
                    await client.post("/v1/fus%69on/fine/rank", json=FUSION_BODY, headers=bearer),
                    await client.get("/openapi.json", headers=bearer)]

    *answers, document = asyncio.run(send())
    assert [answer.status_code for answer in answers] == [200, 401, 401, 200, 200, 200]
    assert "http://test/shop/v1/recommend" in document.json()["paths"]["/v1/recommend"]["post"]["description"]


def test_an_error_of_ours_is_answered_in_the_same_shape(application: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(application.actor, "act", broken)
    response = application.post(FUSION, FUSION_BODY)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert set(response.json()["error"]) == {"field", "value", "allowed", "reason"}
