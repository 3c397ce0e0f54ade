"""Columns of numbers of a JSON body read by themselves: the same request or the same refusal as without."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recfuse.serving import formats
from recfuse.serving.formats import Body, RefusedError, decode
from recfuse.serving.schemas import FusionRequest

from .test_api import FUSION_BODY
from .test_fuzz import VALUES, paths_of, replaced

IDS, NUMBERS = ("candidates.item_id",), ("candidates.predictions", "state")


@pytest.fixture(autouse=True)
def _short_bodies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_WORTH_BYTES", 0)


def outcome(content: bytes, *paths: Any) -> Any:
    try:
        request = decode(FusionRequest, Body(content), *paths)
    except RefusedError as error:
        return error.status, error.field, str(error)
    candidates = request.candidates
    numbers = {name: np.asarray(column, np.float64).tobytes() for name, column in candidates.predictions.items()}
    state = None if request.state is None else np.asarray(request.state, np.float64).tobytes()
    rest = request.model_copy(update={"state": None, "candidates": None}).model_dump()
    return rest, state, [(type(each), each) for each in candidates.item_id], list(numbers.items()), candidates.seen


@settings(max_examples=150, deadline=None)
@given(data=st.data(), value=VALUES | st.integers() | st.lists(st.floats(allow_nan=False) | st.integers(), max_size=4))
def test_any_field_is_read_alike(data: st.DataObject, value: Any) -> None:
    place = data.draw(st.sampled_from(paths_of(FUSION_BODY)))
    try:
        content = orjson.dumps(replaced(FUSION_BODY, place, value))
    except TypeError:  # integers that orjson does not write
        return
    assert outcome(content, IDS, NUMBERS) == outcome(content)


PREDICTIONS = orjson.dumps(FUSION_BODY["candidates"]["predictions"]["click"])


@pytest.mark.parametrize(("old", "new"), [
    (PREDICTIONS, b"[[0.1],0.2,0.3]"), (PREDICTIONS, b"[0.1,[0.2,0.3]]"), (PREDICTIONS, b"[0.1,0.2,1e999]"),
    (PREDICTIONS, b"[0.1,0.2,true]"), (PREDICTIONS, b"[0.1,0.2,-0]"), (PREDICTIONS, b"[]"),
    (PREDICTIONS, b"[0.1,0.2,123456789012345678901234567890]"), (PREDICTIONS, b'{"a":[0.1,0.2,0.3]}'),
    (b'"user_id"', b'"user_id":"[","user_id"'), (b'"user_id"', b'"candidates":3,"user_id"'), (b"{", b"\xef\xbb\xbf{"),
    (b'"user_id"', b'"session_id":"\\ud800","user_id"'), (b'"user_id"', b'"session_id":"[[]","user_id"'),
    (b'"item_id":[', b'"item_id":[18446744073709551615,'), (b'"item_id":[', b'"item_id":["a",'),
    (b'"item_id":[', b'"item_id":[1.0,'), (b'"item_id":[', b'"item_id":[{"a":1,"a":2},'), (b"}", b"")])
def test_what_another_parser_may_take_otherwise(old: bytes, new: bytes) -> None:
    content = orjson.dumps(FUSION_BODY)
    assert old in content
    content = content.replace(old, new, 1)
    assert outcome(content, IDS, NUMBERS) == outcome(content)


def test_columns_are_bytes() -> None:
    expected = {**FUSION_BODY["candidates"], "item_id": [5, 2**62, -6]}
    known = formats._packed_columns(orjson.dumps({**FUSION_BODY, "candidates": expected}), IDS, NUMBERS)
    assert known is not None
    candidates = known["candidates"]
    assert np.frombuffer(candidates["item_id"], "<i8").tolist() == expected["item_id"]
    for name, column in expected["predictions"].items():
        assert np.frombuffer(candidates["predictions"][name], "<f8").tolist() == column
