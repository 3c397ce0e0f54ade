"""The errors that bad input raises: they name the field, the value and what is allowed, in one line."""

from __future__ import annotations

import re
from typing import Any

# Before the `@` of a URI; a slash or a blank ends the place where they may stand.
_SECRETS = re.compile(r"://[^/@\s]*@")


class InputError(ValueError):
    """Bad input; jobs end with its message, which is one line."""

    def __init__(self, message: str) -> None:
        super().__init__(without_secrets(" ".join(message.split())))


class InvalidFieldError(InputError):
    """A value that the product refuses.

    Args:
        field: path of the field, as the user wrote it (`behaviours[2].discount`, `candidates.item_id`).
        value: what was given; shortened in the message.
        allowed: what would have been accepted, in words.
    """

    def __init__(self, field: str, value: Any, allowed: str) -> None:
        self.field, self.value, self.allowed = field, value, allowed
        super().__init__(f"{field}: got {shorten(value)}; allowed: {allowed}")

    def __reduce__(self) -> tuple[type, tuple[str, Any, str]]:
        # Ray moves exceptions between processes; the default reduction would call us with the message alone.
        return type(self), (self.field, self.value, self.allowed)


def without_secrets(text: str) -> str:
    """Text as messages show it: its URIs without the name and password that they may carry."""
    return _SECRETS.sub("://…@", text)


def shorten(value: Any, limit: int = 120) -> str:
    """`repr` of a value, cut at `limit` characters so that a message stays a line."""
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


def require(condition: bool, field: str, value: Any, allowed: str) -> None:
    """Raises InvalidFieldError unless the condition holds."""
    if not condition:
        raise InvalidFieldError(field, value, allowed)
