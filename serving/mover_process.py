"""The process beside a replica that moves the decision log of its machine (serving.mover) until the replica ends.

Every replica starts one; of those on one machine one works and the others wait for its lock.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict

from recfuse.serving.logs import log_as_json
from recfuse.serving.meters import Meters
from recfuse.serving.mover import Mover, only_mover, served_vocabulary

logger = logging.getLogger("recfuse.serving")


class MoverProcess:
    """Starts the process, and hands what it says of each pass to the meters.

    Args:
        log, output, window_seconds: see `Mover`.
        models: the models directory, whose fusion bundle has the vocabulary.
        seconds: between two passes.
        meters: get the age of the oldest row that waits, and the size of all that do.
    """

    def __init__(self, log: str, output: str, models: str, window_seconds: float, seconds: float,
                 meters: Meters) -> None:
        self._meters = meters
        # It has low priority: moving can wait, requests cannot.
        self._process = subprocess.Popen(
            ["nice", "-n", "10", sys.executable, "-m", "recfuse.serving.mover_process", log, output, models,
             str(window_seconds), str(seconds)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})
        threading.Thread(target=self._read, name="mover-process", daemon=True).start()

    def close(self) -> None:
        """Ends the process, which also ends by itself with this one."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            account = json.loads(line)
            lag = 0.0 if account["oldest"] is None else max(0.0, time.time() - account["oldest"])
            self._meters.record("recfuse_log_lag_s", lag)
            self._meters.record("recfuse_log_pending_bytes", account["waiting_bytes"])


def main(log: str, output: str, models: str, window: str, seconds: str) -> None:
    """Moves until the standard input ends, with the replica that started this process; prints an account a pass."""
    log_as_json()
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
    with only_mover(log, wait=True):
        mover = Mover(log, output, served_vocabulary(models), window_seconds=float(window), models=models)
        while True:
            try:
                account = mover.move()
            except Exception:  # A table that cannot be reached now may be so later; the log waits on disk.
                logger.exception("moving the decision log failed")
            else:
                sys.stdout.write(json.dumps(asdict(account)) + "\n")
                sys.stdout.flush()
            time.sleep(float(seconds))


if __name__ == "__main__":
    main(*sys.argv[1:])
