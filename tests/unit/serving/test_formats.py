"""MessagePack beside JSON: the same requests, the same answers, the same refusals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import msgpack
import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recfuse.serving.formats import MESSAGE_PACK, Body, RefusedError, decode, encode
from recfuse.serving.schemas import FusionRequest

from .test_api import FEEDBACK, FUSION, FUSION_BODY, RECOMMEND, SCENES, SCENES_BODY, with_
from .test_fuzz import BODIES, FUZZ, VALUES, paths_of, replaced

PACKED = {"Content-Type": MESSAGE_PACK, "Accept": MESSAGE_PACK}


def post(application: Any, path: str, body: Any, **headers: str) -> httpx.Response:
    content = body if isinstance(body, bytes) else msgpack.packb(body)
    response: httpx.Response = application.request("POST", path, content=content, headers={**PACKED, **headers})
    return response


def same(answer: dict[str, Any], other: dict[str, Any]) -> bool:
    """Equal but for the request's id: JSON has the shortest text of a float32, MessagePack all of its bits."""
    return rounded({**answer, "request_id": ""}) == rounded({**other, "request_id": ""})


def rounded(node: Any) -> Any:
    if isinstance(node, dict):
        return {name: rounded(value) for name, value in node.items()}
    if isinstance(node, list):
        return [rounded(value) for value in node]
    return np.float32(node) if isinstance(node, float) else node


@pytest.mark.parametrize(("path", "body"), [
    (FUSION, {**FUSION_BODY, "seed": 1}), (SCENES, SCENES_BODY), (FEEDBACK, BODIES[FEEDBACK]),
    (RECOMMEND, {**BODIES[RECOMMEND], "seed": 1})])
def test_the_same_answer_in_either_format(application: Any, path: str, body: dict[str, Any]) -> None:
    expected = application.post(path, body).json()
    response = post(application, path, body)
    assert response.headers["content-type"] == MESSAGE_PACK
    assert same(msgpack.unpackb(response.content), expected)
    assert same(post(application, path, body, Accept="*/*").json(), expected)
    headers = {"Accept": "Application/x-MsgPack"}
    response = application.request("POST", path, content=orjson.dumps(body), headers=headers)
    assert same(msgpack.unpackb(response.content), expected)


def test_columns_may_be_bytes(application: Any) -> None:
    """Ids of items then are integers."""
    predictions = {"click": [.1, .5, .2], "long_view": [.3, .1, .9]}
    plain = with_(FUSION_BODY, seed=1, candidates={"item_id": [5, 6, 2**62], "predictions": predictions})
    columns = {name: np.array(column, "<f8").tobytes() for name, column in predictions.items()}
    packed = with_(plain, state=None, candidates=None) | {
        "state": np.array(plain["state"], "<f8").tobytes(),
        "candidates": {"item_id": np.array([5, 6, 2**62], "<i8").tobytes(), "predictions": columns}}
    assert same(msgpack.unpackb(post(application, FUSION, packed).content), application.post(FUSION, plain).json())
    plain = with_(SCENES_BODY, candidates__duration=[1.0, 99.0, 2.0], user__history=[3])
    packed = {"user": {"user_id": 7, "history": np.array([3], "<i8").tobytes()}, "candidates": {
        "item_id": np.array([1, 2, 3], "<i8").tobytes(), "duration": np.array([1.0, 99.0, 2.0], "<f8").tobytes()}}
    assert same(msgpack.unpackb(post(application, SCENES, packed).content), application.post(SCENES, plain).json())


REFUSED: list[tuple[Any, int, str, str]] = [
    (b"", 400, "body", "a MessagePack map"),
    (b"\xc1", 400, "body", "a MessagePack map"),
    (orjson.dumps(FUSION_BODY), 400, "body", "a MessagePack map"),
    (msgpack.packb(FUSION_BODY)[:-1], 400, "body", "a MessagePack map"),
    (msgpack.packb(FUSION_BODY) + b"\0", 400, "body", "a MessagePack map"),
    (b"\x91" * 100_000, 400, "body", "a MessagePack map"),
    (b"\x81\xa7user_id\xa1\xff", 400, "body", "a MessagePack map"),
    (msgpack.packb({"user_id": msgpack.ExtType(5, b"x")}), 400, "body", "a MessagePack map"),
    (msgpack.packb({1: 2}, use_bin_type=True), 400, "body", "a MessagePack map"),
    ([], 422, "body", "an object"),
    (None, 422, "body", "an object"),
    (with_(FUSION_BODY, user_id=None), 422, "user_id", "required"),
    ({**FUSION_BODY, "user_id": b"u"}, 422, "user_id", "a valid string"),
    ({**FUSION_BODY, "explore": 1}, 422, "explore", "a valid boolean"),
    ({**FUSION_BODY, "context": {"age": b"1"}, "state": None}, 422, "context.age", "a valid string"),
    ({**FUSION_BODY, "state": [0.5, 1, 0, float("nan")]}, 422, "state[3]", "a finite number"),
    ({**FUSION_BODY, "state": np.array([0.5, 1, 0, np.inf]).tobytes()}, 422, "state[3]", "a finite number"),
    ({**FUSION_BODY, "state": b"1234567"}, 422, "state", "float64, 8 bytes each"),
    ({**FUSION_BODY, "state": b""}, 422, "state", "4 numbers"),
    ({**FUSION_BODY, "candidates": {"item_id": b"", "predictions": {}}}, 422, "candidates.item_id", "at least 1 item"),
    ({**FUSION_BODY, "candidates": {"item_id": b"123", "predictions": {}}}, 422, "candidates.item_id", "int64"),
    (with_(FUSION_BODY, candidates__predictions__click=[True, 1, 1]), 422, "candidates.predictions.click[0]",
     "a valid number"),
    ({**FUSION_BODY, "candidates": {"item_id": [1], "predictions": {"click": b"12345678" * 2}}}, 422,
     "candidates.predictions.click", "1 numbers"),
]


@pytest.mark.parametrize(("body", "status", "field", "allowed"), REFUSED)
def test_bad_requests_are_refused_as_those_in_json(
    application: Any, body: Any, status: int, field: str, allowed: str
) -> None:
    response = post(application, FUSION, body)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert (error["field"], set(error)) == (field, {"field", "value", "allowed", "reason"})
    assert allowed in error["allowed"]


@FUZZ
@given(path=st.sampled_from(sorted(BODIES)), data=st.data(), value=VALUES | st.binary(max_size=24))
def test_one_field_of_a_good_body_is_anything(start: Callable[..., Any], path: str, data: st.DataObject,
                                              value: Any) -> None:
    application = start(fsync=False)
    place = data.draw(st.sampled_from(paths_of(BODIES[path])))
    try:
        content = msgpack.packb(replaced(BODIES[path], place, value))
    except (OverflowError, UnicodeEncodeError):  # numbers and text that MessagePack does not have
        return
    response = post(application, path, content)
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert set(response.json()["error"]) == {"field", "value", "allowed", "reason"}


@given(st.binary(max_size=60))
def test_any_bytes_are_a_request_or_refused(content: bytes) -> None:
    with pytest.raises(RefusedError) as refused:
        decode(FusionRequest, Body(content, packed=True))
    assert refused.value.status in (400, 422)


def test_arrays_and_what_has_no_type_of_its_own() -> None:
    import datetime

    answer = {"mu": np.array([1.5]), "score": np.float32(.5), "when": datetime.date(2026, 1, 2)}
    expected = {"mu": [1.5], "score": .5, "when": "2026-01-02"}
    assert msgpack.unpackb(encode(answer, packed=True)) == orjson.loads(encode(answer, packed=False)) == expected
