"""Structured logs: one JSON object a line, with the id of the HTTP request that it is about."""

from __future__ import annotations

import logging
import os
import time
from contextvars import ContextVar

import orjson

# Serve gives every request an id, or takes the client's X-Request-ID, and sends it back with the answer.
REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message"}


class JsonFormatter(logging.Formatter):
    """{"time", "level", "logger", "message", "process", "request_id"?, …what `extra` names, "exception"?}."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{moment}.{int(record.msecs):03d}Z", "level": record.levelname, "logger": record.name,
                "message": record.getMessage(), "process": os.getpid()}
        if request_id := REQUEST_ID.get():
            line["request_id"] = request_id
        line.update({name: value for name, value in vars(record).items() if name not in _STANDARD})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return orjson.dumps(line, default=repr).decode("utf-8", "replace")


def log_as_json(level: int = logging.INFO) -> None:
    """Sends what `recfuse` logs in this process to standard error, which Ray keeps for each replica."""
    logger = logging.getLogger("recfuse")
    if not any(isinstance(handler.formatter, JsonFormatter) for handler in logger.handlers):
        handler = logging.StreamHandler()
        handler.setFormatter(JsonFormatter())
        logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
