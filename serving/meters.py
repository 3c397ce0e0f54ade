"""What is counted and timed while serving; the deployments send it to Ray's metrics, tests and benchmarks nowhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Protocol

# name → (kind, description, boundaries of a histogram); Ray takes ASCII only.
METERS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "recfuse_decode_ms": ("histogram", "decoding and checking a request", (.1, .2, .5, 1, 2, 5, 10, 50)),
    "recfuse_model_ms": ("histogram", "the policy, the scorer and the order", (.1, .2, .5, 1, 2, 5, 10, 50)),
    "recfuse_log_ms": ("histogram", "until a decision or feedback is durable", (.1, .2, .5, 1, 2, 5, 10, 50, 200)),
    "recfuse_candidates": ("histogram", "candidates of a request", (1, 10, 50, 100, 200, 500, 1000, 5000)),
    "recfuse_sigma": ("histogram", "mean sigma of a decision", (.01, .03, .1, .3, 1, 3)),
    "recfuse_action_distance": ("histogram", "mean |action - mu| / sigma; about 0.8 while sampling",
                                (.2, .4, .6, .8, 1, 1.5, 3)),
    "recfuse_unknown_share": ("histogram", "share of a request's items that the scorer does not know",
                              (.001, .01, .05, .1, .2, .5, .9)),
    "recfuse_refused": ("counter", "requests refused, by status", ()),
    "recfuse_default_states": ("counter", "decisions for users of whom nothing is known", ()),
}


class Meters(Protocol):
    """Takes values by the names of METERS."""

    def record(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None: ...


class NoMeters:
    """Takes them and keeps nothing."""

    def record(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None:
        return None


class Stopwatch:
    """Records the milliseconds of one part of a request after the other."""

    def __init__(self, meters: Meters) -> None:
        self._meters, self._last = meters, time.perf_counter()

    def lap(self, name: str) -> None:
        """The part that ends here."""
        now = time.perf_counter()
        self._meters.record(name, (now - self._last) * 1e3)
        self._last = now
