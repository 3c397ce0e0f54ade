"""The process beside a replica that moves the decision log of its machine (serving.mover) until the replica ends.

Every replica starts one, and starts it again when it has died; of those on one machine one works and the others wait
for its lock. What the process says of each pass, and how long it has said nothing, is in `MoverProcess.state`.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from recfuse.config import InvalidFieldError
from recfuse.serving.logs import log_as_json
from recfuse.serving.meters import Meters
from recfuse.serving.mover import Mover, only_mover, served_vocabulary

logger = logging.getLogger("recfuse.serving")
_PAUSE_SECONDS = 5.0  # A process that dies as soon as it starts would import its libraries over and over.
_TICK_SECONDS = 1.0
_QUIET_SECONDS = 60.0  # without a pass, beyond ten times the pause between passes, until that is an error
_END_SECONDS = 10.0


@dataclass(frozen=True)
class MoverState:
    """What is known of the process that moves the decision log.

    Attributes:
        error: why nothing is moved; None while passes succeed, or while another replica's process moves this log.
        heard: seconds since 1970 of the last pass, or of the last word that another process moves the log; at the
            beginning that of the start.
        oldest: seconds since 1970 of the oldest row that waited after the last pass; None where none did.
        waiting_bytes: of the rows that waited then.
        failures: deaths and failed passes so far.
        damaged: lines that were no rows, so far.
        elsewhere: another process has the lock.
    """

    error: str | None
    heard: float
    oldest: float | None = None
    waiting_bytes: int = 0
    failures: int = 0
    damaged: int = 0
    elsewhere: bool = False


class MoverProcess:
    """Starts the process again and again until it is closed, and hands what it says of each pass to the meters.

    Args:
        log, output, window_seconds: see `Mover`.
        models: the models directory, whose fusion bundle has the vocabulary.
        seconds: between two passes.
        meters: get how long ago the last pass was, the age of the oldest row that waits, the size of all that do,
            failures and damaged lines.
    """

    def __init__(self, log: str, output: str, models: str, window_seconds: float, seconds: float,
                 meters: Meters) -> None:
        self._meters, self._seconds = meters, seconds
        # It has low priority: moving can wait, requests cannot.
        self._command = ["nice", "-n", "10", sys.executable, "-m", "recfuse.serving.mover_process", log, output,
                         models, str(window_seconds), str(seconds)]
        self._state, self._closing, self._lock = MoverState(None, time.time()), threading.Event(), threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._supervisor = threading.Thread(target=self._supervise, name="mover-process", daemon=True)
        self._supervisor.start()
        threading.Thread(target=self._measure_forever, name="mover-age", daemon=True).start()

    @property
    def state(self) -> MoverState:
        """What is known now; a process that says nothing for long is an error too."""
        state, quiet = self._state, time.time() - self._state.heard
        if state.error is None and quiet > _QUIET_SECONDS + 10 * self._seconds:
            return replace(state, error=f"no pass for {quiet:.0f} s")
        return state

    def describe(self) -> dict[str, Any]:
        """What `GET /v1/models` says of it."""
        state, now = self.state, time.time()
        return {"error": state.error, "seconds_since_pass": round(now - state.heard, 1),
                "lag_seconds": round(_lag(state, now), 1), "waiting_bytes": state.waiting_bytes,
                "failures": state.failures, "damaged": state.damaged, "moved_by_another_replica": state.elsewhere}

    def close(self) -> None:
        """Ends the process, which also ends by itself with this one."""
        with self._lock:
            self._closing.set()
            process = self._process
        if process is not None:
            assert process.stdin is not None
            with suppress(OSError):
                process.stdin.close()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
        self._supervisor.join(_END_SECONDS)

    def _supervise(self) -> None:
        while not self._closing.is_set():
            try:
                with self._lock:
                    if self._closing.is_set():
                        return
                    process = self._process = subprocess.Popen(
                        self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
                self._listen(process)
                why = f"the process that moves the log ended with {process.wait()}"
            except OSError as error:
                why = f"the process that moves the log does not start: {error}"
            if self._closing.is_set():
                return
            self._fail(f"{why}; it is started again after {_PAUSE_SECONDS:.0f} s")
            self._closing.wait(_PAUSE_SECONDS)

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        with process.stdout as stdout:
            for line in stdout:
                try:
                    self._hear(json.loads(line))
                except (ValueError, TypeError, KeyError):  # Some library's own words.
                    logger.info("the process that moves the log said %r", line[:200])

    def _hear(self, said: dict[str, Any]) -> None:
        if "failed" in said:
            self._fail(said["failed"])
            return
        now, elsewhere = time.time(), "elsewhere" in said
        if elsewhere:
            self._state = replace(self._state, error=None, heard=now, oldest=None, waiting_bytes=0, elsewhere=True)
            return
        unreadable = "; ".join(f"{segment}: {why}" for segment, why in said["unreadable"].items())
        lines = said["damaged"] + said["torn"]
        self._state = replace(self._state, error=unreadable or None, heard=now, oldest=said["oldest"],
                              waiting_bytes=said["waiting_bytes"], damaged=self._state.damaged + lines, elsewhere=False)
        if lines:
            self._meters.record("recfuse_log_damaged", lines)
        self._meters.record("recfuse_log_pending_bytes", said["waiting_bytes"])

    def _fail(self, error: str) -> None:
        logger.error("the decision log is not moved: %s", error)
        self._state = replace(self._state, error=error, failures=self._state.failures + 1, elsewhere=False)
        self._meters.record("recfuse_log_failures", 1.0)

    def _measure(self) -> None:
        state, now = self._state, time.time()
        self._meters.record("recfuse_log_pass_age_s", max(0.0, now - state.heard))
        self._meters.record("recfuse_log_lag_s", _lag(state, now))

    def _measure_forever(self) -> None:
        while not self._closing.wait(_TICK_SECONDS):
            self._measure()


def _lag(state: MoverState, now: float) -> float:
    """Age of the oldest row that may wait: rows may have come ever since the last pass left none."""
    return max(0.0, now - (state.heard if state.oldest is None else state.oldest))


def main(log: str, output: str, models: str, window: str, seconds: str) -> None:
    """Moves until the standard input ends, with the replica that started this process; prints a line a pass: its
    account, that it failed, or that another process moves the log."""
    log_as_json()
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
    while True:
        try:
            with only_mover(log, wait=False):
                _move_for_ever(log, output, models, float(window), float(seconds))
        except InvalidFieldError as error:
            _say({"elsewhere": str(error)} if os.path.isdir(log) else {"failed": str(error)})
        except OSError as error:
            _say({"failed": f"{type(error).__name__}: {error}"})
        time.sleep(min(float(seconds), _TICK_SECONDS))


def _move_for_ever(log: str, output: str, models: str, window: float, seconds: float) -> None:
    mover: Mover | None = None
    while True:
        try:
            mover = mover or Mover(log, output, served_vocabulary(models), window_seconds=window, models=models)
            account = mover.move()
        except Exception as error:  # A table that cannot be reached now may be so later; the log waits on disk.
            logger.exception("moving the decision log failed")
            _say({"failed": f"{type(error).__name__}: {error}"})
            # How far the log has been moved is read anew: what a failed commit left is known by the table alone.
            mover = None
        else:
            _say(asdict(account))
        time.sleep(seconds)


def _say(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(*sys.argv[1:])
