"""Feedback before it is taken: what no model could read later is refused, and what it is called."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError
from recfuse.serving.formats import Body, RefusedError
from recfuse.serving.schemas import FeedbackRequest
from recfuse.state.encoder import StateEncoder
from recfuse.state.remembered import REQUEST_FIELDS

FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class CheckedFeedback:
    """Feedback that the scorer can read.

    Attributes:
        event_id: the client's, or made of the body.
        history_size: as many items of a user as the scorer reads.
        packed: answer in MessagePack instead of JSON.
    """

    request: FeedbackRequest
    event_id: str
    history_size: int
    packed: bool

    @classmethod
    def of(cls, request: FeedbackRequest, body: Body, history_size: int) -> CheckedFeedback:
        """Raises RefusedError."""
        if request.user_id is None and (request.items or request.features):
            raise RefusedError(422, "user_id", None, "the user whose stored state `items` and `features` update")
        for name in REQUEST_FIELDS & (request.features or {}).keys():
            raise RefusedError(422, f"features.{name}", (request.features or {})[name],
                               "features of a user; this is what a request or the clock says")
        event_id = request.event_id or hashlib.sha256(body.content).hexdigest()[:32]
        return cls(request, event_id, history_size, body.answer_packed)

    @property
    def event(self) -> str:
        """Names the event among all of a user's."""
        return hashlib.sha256(f"{self.request.request_id}\0{self.event_id}".encode()).hexdigest()[:32]


def check_behaviours(feedback: Mapping[str, float], vocabulary: Vocabulary) -> None:
    """Raises RefusedError."""
    behaviours = {behaviour.name: behaviour for behaviour in vocabulary.behaviours}
    for name, value in feedback.items():
        if name not in behaviours:
            raise RefusedError(422, f"feedback.{name}", value, ", ".join(behaviours))
        low = 0.0 if behaviours[name].transform == "log1p" else -FLOAT32_MAX
        if not low <= value <= FLOAT32_MAX:
            raise RefusedError(422, f"feedback.{name}", value, f"a number from {low:g} to {FLOAT32_MAX:g}")



def check_features(encoder: StateEncoder | None, features: Mapping[str, Any]) -> None:
    """Refuses what no later request of the user could be encoded with.

    Raises:
        RefusedError: names the first.
    """
    if encoder is None:
        return
    try:
        encoder.encode_one(features)
    except InvalidFieldError as error:
        raise RefusedError(422, f"features.{error.field}", error.value, error.allowed) from None
