"""What is counted and timed while serving. Kept in this process and handed to Ray's metrics every few seconds: a
request has a dozen values, and handing each to Ray's own histograms stood out in the profile of a replica."""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

_MS = (.1, .2, .5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
TAGS = ("endpoint", "stage", "scene", "status", "model_version")
# name → (kind, description, boundaries of a histogram); Ray takes ASCII only.
METERS: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "recfuse_request_ms": ("histogram", "a request from its body to its answer, by endpoint", _MS),
    "recfuse_decode_ms": ("histogram", "decoding and checking a request, by endpoint", _MS),
    "recfuse_scorer_ms": ("histogram", "the scorer: user, features, networks, by scene", _MS),
    "recfuse_policy_ms": ("histogram", "the policy: state, decision, order", _MS),
    "recfuse_log_ms": ("histogram", "until a decision or feedback is durable, by endpoint", _MS),
    "recfuse_encode_ms": ("histogram", "writing an answer, by endpoint", _MS),
    "recfuse_candidates": ("histogram", "candidates of a request, by endpoint", (1, 10, 50, 100, 200, 500, 1000, 5000)),
    "recfuse_sigma": ("histogram", "mean sigma of a decision", (.01, .03, .1, .3, 1, 3)),
    "recfuse_action_distance": ("histogram", "mean |action - mu| / sigma; about 0.8 while sampling",
                                (.2, .4, .6, .8, 1, 1.5, 3)),
    "recfuse_action_outliers": ("counter", "decisions with a parameter beyond 4 sigma; almost none while healthy", ()),
    "recfuse_unknown_share": ("histogram", "share of a request's items that the scorer does not know, by scene",
                              (.001, .01, .05, .1, .2, .5, .9)),
    "recfuse_decisions": ("counter", "decisions, by model version and stage", ()),
    "recfuse_unlogged_candidates": ("counter", "decisions logged without their candidates, by why", ()),
    "recfuse_feedback": ("counter", "accepted feedback events", ()),
    "recfuse_refused": ("counter", "requests refused, by status", ()),
    "recfuse_default_states": ("counter", "decisions for users of whom nothing is known, by why", ()),
    "recfuse_outdated": ("gauge", "1 where a replica serves another part than the pointer names, by which", ()),
    "recfuse_log_lag_s": ("gauge", "age of the oldest row that is not in the session-log table yet", ()),
    "recfuse_log_pass_age_s": ("gauge", "seconds since the decision log was moved; rises while nobody moves it", ()),
    "recfuse_log_failures": ("counter", "passes over the decision log that failed, and deaths of the process", ()),
    "recfuse_log_damaged": ("counter", "lines of the decision log that were no rows, kept in events", ()),
    "recfuse_log_pending_bytes": ("gauge", "size of the decision log that is not in the session-log table yet", ()),
}
Key = tuple[str, tuple[tuple[str, str], ...]]


class Meters(Protocol):
    """Takes values by the names of METERS."""

    def record(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None: ...


class NoMeters:
    """Takes them and keeps nothing."""

    def record(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None:
        return None


@dataclass
class _Counts:
    """Of one meter with one set of tags: values per bucket, their sum, and what of it has been handed on."""

    buckets: list[int]
    total: float = 0.0
    handed_buckets: tuple[int, ...] = ()
    handed_total: float = 0.0


# It adds to a counter, or sets a gauge: (metric, value, tags).
Sink = Callable[[str, float, Mapping[str, str]], None]


class LocalMeters:
    """Counts in this process; `flush` hands on what has come since.

    A histogram becomes two counters, as Prometheus itself keeps it: `NAME_bucket` with the tag `le`, cumulative, and
    `NAME_sum`.

    Args:
        add: adds to a counter.
        put: sets a gauge.
        seconds: between two flushes by a thread; 0 leaves it to the caller.
    """

    def __init__(self, add: Sink, put: Sink, seconds: float = 5.0) -> None:
        self._add, self._put = add, put
        self._counts: dict[Key, _Counts] = {}
        self._stop = threading.Event()
        if seconds > 0:
            threading.Thread(target=self._flush_forever, args=(seconds,), name="meters", daemon=True).start()

    def record(self, name: str, value: float, tags: Mapping[str, str] | None = None) -> None:
        """See `Meters`."""
        key = (name, tuple(tags.items()) if tags else ())
        counts = self._counts.get(key)
        kind, _, boundaries = METERS[name]
        if counts is None:
            counts = self._counts.setdefault(key, _Counts([0] * (len(boundaries) + 1)))
        if kind == "gauge":
            counts.total = value
            return
        counts.total += value
        if boundaries:
            counts.buckets[bisect_left(boundaries, value)] += 1

    def totals(self) -> dict[str, tuple[float, int]]:
        """Meter → its sum over all tags, and how many values that is of a histogram; of a gauge the last value."""
        found: dict[str, tuple[float, int]] = {}
        for (name, _), counts in list(self._counts.items()):
            total, number = found.get(name, (0.0, 0))
            if METERS[name][0] == "gauge":
                found[name] = counts.total, 1
            else:
                found[name] = total + counts.total, number + sum(counts.buckets)
        return found

    def flush(self) -> None:
        """Hands on the difference to the last flush; one thread at a time."""
        for (name, pairs), counts in list(self._counts.items()):
            kind, _, boundaries = METERS[name]
            tags, total, buckets = dict(pairs), counts.total, tuple(counts.buckets)
            if kind == "gauge":
                self._put(name, total, tags)
                continue
            before = counts.handed_buckets or (0,) * len(buckets)
            if kind == "counter":
                self._give(name, total - counts.handed_total, tags)
            elif buckets != before:
                cumulative = 0
                for le, now, then in zip((*map(_text, boundaries), "+Inf"), buckets, before, strict=True):
                    cumulative += now - then
                    self._give(f"{name}_bucket", cumulative, {**tags, "le": le})
                self._give(f"{name}_sum", total - counts.handed_total, tags)
            counts.handed_buckets, counts.handed_total = buckets, total

    def close(self) -> None:
        self._stop.set()
        self.flush()

    def _give(self, metric: str, value: float, tags: Mapping[str, str]) -> None:
        if value > 0:
            self._add(metric, value, tags)

    def _flush_forever(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            self.flush()


def _text(boundary: float) -> str:
    return f"{boundary:g}"


class Stopwatch:
    """Records the milliseconds of one part of a request after the other."""

    __slots__ = ("_begin", "_last", "_meters", "_tags")

    def __init__(self, meters: Meters, tags: Mapping[str, str]) -> None:
        self._meters, self._tags = meters, tags
        self._begin = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """The part that ends here."""
        now = time.perf_counter()
        self._meters.record(name, (now - self._last) * 1e3, self._tags)
        self._last = now

    def whole(self, name: str) -> None:
        """From the beginning to here."""
        self._meters.record(name, (time.perf_counter() - self._begin) * 1e3, self._tags)
