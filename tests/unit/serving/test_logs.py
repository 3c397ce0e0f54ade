"""Structured logs: one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from typing import Any

import pytest

from recfuse.serving.logs import REQUEST_ID, JsonFormatter


def formatted(**extra: Any) -> dict[str, Any]:
    try:
        raise ValueError("inner")
    except ValueError:
        record = logging.makeLogRecord({"name": "recfuse.serving", "levelname": "ERROR", "msg": "failed %s",
                                        "args": ("twice\nover",), "exc_info": sys.exc_info(), **extra})
    text = JsonFormatter().format(record)
    assert "\n" not in text
    return dict(json.loads(text))


def test_a_line_holds_message_request_and_extra() -> None:
    token = REQUEST_ID.set("r-1")
    try:
        line = formatted(status=422)
    finally:
        REQUEST_ID.reset(token)
    assert (line["level"], line["logger"], line["message"]) == ("ERROR", "recfuse.serving", "failed twice\nover")
    assert (line["request_id"], line["status"]) == ("r-1", 422)
    assert "ValueError: inner" in line["exception"]
    assert "request_id" not in formatted()


def test_a_refusal_is_logged_with_the_id_of_its_request(start: Callable[..., Any],
                                                        caplog: pytest.LogCaptureFixture) -> None:
    application = start()
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(JsonFormatter().format(record))

    logger = logging.getLogger("recfuse.serving")
    handler = Keep()
    logger.addHandler(handler)
    try:
        with caplog.at_level(logging.ERROR, logger="recfuse.serving"):
            application.actor.act = None  # what fails inside is logged
            application.request("POST", "/v1/fusion/fine/rank", headers={"X-Request-ID": "abc"}, json={
                "user_id": "u", "state": [0.5, 1, 0, 0],
                "candidates": {"item_id": [1], "predictions": {"click": [.1], "long_view": [.2]}}})
    finally:
        logger.removeHandler(handler)
    [line] = map(json.loads, lines)
    assert (line["request_id"], line["message"]) == ("abc", "request failed")
