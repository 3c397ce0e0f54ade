"""What a job waits for, said after half a minute in which nothing moved, and the end of a job that waits too long.

A job that computes without a word is left alone: it waits only where Ray has requests that found no place, or where one
of several workers has not been heard of.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import ray
from ray.exceptions import RayError

from recfuse.config import InputError
from recfuse.runtime import ray_compat
from recfuse.runtime.console import listeners
from recfuse.runtime.limits import SAY_AFTER_SECONDS
from recfuse.runtime.placement import described, needs, nodes

logger = logging.getLogger("recfuse")
_LOOK_SECONDS = 1.0
# Between two words to the board; and what the main thread gets to end by itself.
_TELL_SECONDS, _END_SECONDS = 2.0, 60.0


class WaitedTooLongError(InputError):
    """The job has waited to its limit; the message says for what."""


class Watch:
    """Inside, a thread looks once a second whether the job moves: whatever shows its progress says so.

        with Watch("ingest", config.wait_limit):
            …

    It ends the job by an interrupt of the main thread; entered in another thread, it only says.

    Args:
        what: begins the lines.
        limit: seconds of waiting after which the block raises WaitedTooLongError.
        say_after: seconds of waiting after which a line says for what.
        look: called once a second, in the watching thread.

    Attributes:
        wants: what the job itself says that it waits for; "" for nothing.
        workers: whom else to listen to.
    """

    def __init__(self, what: str, limit: float, say_after: float = SAY_AFTER_SECONDS,
                 look: Callable[[], None] | None = None) -> None:
        self._what, self._limit, self._say_after, self.look = what, limit, say_after, look
        self._last = self._said_at = time.monotonic()
        self._lost: set[str] = set()
        self._known: dict[str, str] = {}
        self._verdict = self.wants = ""
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.workers: Workers | None = None

    def moved(self) -> None:
        """Something went on."""
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        listeners.append(self.moved)
        self._may_end = threading.current_thread() is threading.main_thread()
        self.moved()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        listeners.remove(self.moved)
        if self._verdict and isinstance(error, KeyboardInterrupt | RayError):
            raise WaitedTooLongError(self._verdict) from None

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_SECONDS):
            try:
                self._look()
            except Exception as error:
                # Ray is going down, or its head cannot be reached: the main thread will say it better.
                logger.debug("%s: the watch could not look: %s", self._what, error)
            if self._verdict:
                self._end()
                return

    def _look(self) -> None:
        if self.look is not None:
            self.look()
        if self.workers is not None and self.workers.have_moved():
            self.moved()
        waited = time.monotonic() - self._last
        if waited < self._say_after:
            return
        reason = self.reason()
        if not reason:
            return
        if waited >= self._limit:
            self._verdict = f"{self._what}: waited {waited:.0f} s (wait_limit {self._limit:g}) for {reason}"
        elif self._said_at < self._last or time.monotonic() - self._said_at >= 10 * self._say_after:
            self._said_at = time.monotonic()
            logger.warning("%s: nothing has moved for %.0f s; it waits for %s; at %g s (wait_limit) it ends",
                           self._what, waited, reason, self._limit)

    def reason(self) -> str:
        """What the job waits for; "" where nothing says that it waits."""
        requests = ", ".join(f"{count} × {needs(bundle)}" for count, bundle in ray_compat.unmet_requests())
        places = nodes()
        self._known |= {node.key: node.name for node in places}
        gone = sorted({name for key, name in self._known.items() if key not in {node.key for node in places}})
        reasons = [reason for reason in (self.wants, f"a place for {requests}" if requests else "") if reason]
        reasons += [self.workers.described()] if self.workers is not None and self.workers.wait_for_each_other else []
        if not reasons:
            return ""
        lost = f"; lost: {', '.join(gone)}" if gone else ""
        return f"{' and '.join(reasons)}; {described(places)}{lost}"

    def _end(self) -> None:
        if not self._may_end:
            logger.error("%s", self._verdict)
            return
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
        # Calls into libraries that do not come back cannot hold the job.
        if not self._stop.wait(_END_SECONDS):
            sys.stderr.write(f"error: {self._verdict}\n")
            sys.stderr.flush()
            os._exit(1)


@ray.remote(num_cpus=0)
class Board:
    """Where workers write that they go on; it forgets them where its process dies."""

    def __init__(self) -> None:
        self._heard: dict[int, tuple[str, float]] = {}
        self._words = 0

    def tell(self, worker: int, node: str) -> None:
        self._heard[worker] = (node, time.monotonic())
        self._words += 1

    def read(self) -> tuple[int, dict[int, tuple[str, float]]]:
        now = time.monotonic()
        return self._words, {worker: (node, now - at) for worker, (node, at) in self._heard.items()}


@dataclass
class Workers:
    """What the driver knows of workers that write on a board.

    Attributes:
        board: the actor; number: of workers.
    """

    board: Any
    number: int
    _words: int = 0

    @classmethod
    def start(cls, number: int) -> Workers:
        """With a board on the driver's node, which outlives the others."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
        return cls(Board.options(scheduling_strategy=here).remote(), number)  # type: ignore[attr-defined]

    def close(self) -> None:
        """Ends the board."""
        with contextlib.suppress(RayError):
            ray.kill(self.board)

    @property
    def wait_for_each_other(self) -> bool:
        """Whether one that is not heard of holds up the others."""
        return self.number > 1

    def have_moved(self) -> bool:
        """Whether any worker has told something since the last call."""
        words, _ = ray.get(self.board.read.remote(), timeout=10)
        before, self._words = self._words, words
        return words != before

    def described(self) -> str:
        """Who was heard of when, the last one first."""
        _, heard = ray.get(self.board.read.remote(), timeout=10)
        silent = [f"worker {worker}" for worker in range(self.number) if worker not in heard]
        ages = sorted(((age, worker, node) for worker, (node, age) in heard.items()), reverse=True)
        told = [f"worker {worker} on {node} {age:.0f} s ago" for age, worker, node in ages]
        never = f"{', '.join(silent)} never" if silent else ""
        return f"another worker (last heard of: {', '.join(filter(None, [never, *told]))})"


class Teller:
    """Tells the board at most every other second that a worker goes on.

    Args:
        board: the actor; absent, nobody is told.
    """

    def __init__(self, board: Any = None, worker: int = 0) -> None:
        self._board, self._worker, self._last = board, worker, 0.0
        self._node = "" if board is None else ray.util.get_node_ip_address()

    def moved(self) -> None:
        """Something went on."""
        now = time.monotonic()
        if self._board is not None and now - self._last >= _TELL_SECONDS:
            self._last = now
            self._board.tell.remote(self._worker, self._node)


@contextmanager
def watched(what: str, limit: float, number: int) -> Iterator[Watch]:
    """A watch with a board for so many workers; without one for none."""
    with Watch(what, limit) as watch:
        watch.workers = Workers.start(number) if number else None
        try:
            yield watch
        finally:
            workers, watch.workers = watch.workers, None
            if workers is not None:
                workers.close()
