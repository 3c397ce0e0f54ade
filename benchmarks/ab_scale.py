"""`recfuse ab` on session tables of millions of decisions: seconds, and the most memory of the driver, of any worker,
and of all processes of the job together.

    python -m benchmarks.ab_scale --decisions 10000000 30000000 --directory runs/ab_scale

A table is written as serving's mover writes it: commits to Delta in the order of time. Users come as often as a gamma
variable says, for two weeks before the canary and two with it. Columns that `ab` does not read are null. Memory is the
proportional set size, so that what processes share, as Ray's object store, counts once.
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import yaml

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.bundle.arms import Canary
from recfuse.logs.schema import VOCABULARY_FILE, complete, session_log_schema
from recfuse.runtime.console import table

BASE, CANARY, SHARE = "fusion-base", "fusion-canary", .2
BEGIN, DAY, DAYS = 1_651_363_200, 86_400, 14  # of the test; as many days lie before it
COMMIT_ROWS = 1_000_000
DECISIONS_A_USER, SESSION_REQUESTS = 25, 5
_BEHAVIOURS = ("watch_time", "like", "share", "follow")
_COLUMNS = ("user_id", "session_id", "request_id", "ts", "model_version", "feedback", "last")


@dataclass(frozen=True)
class Peak:
    """In GiB: of the process that asks, of the largest other one, and of all of them; seconds of the whole command."""

    driver: float
    worker: float
    together: float
    seconds: float


def vocabulary() -> Vocabulary:
    """Four behaviours, as `_BEHAVIOURS` names them."""
    return Vocabulary(behaviours=tuple(
        Behaviour(name=name, kind="short_term" if place else "long_term") for place, name in enumerate(_BEHAVIOURS)),
        fusion_parameters=("p0", "p1"), state_size=1)


def write_table(directory: Path, decisions: int, seed: int = 0) -> int:
    """A served log of so many decisions; returns its size in bytes."""
    from deltalake import write_deltalake

    words, rng = vocabulary(), np.random.default_rng(seed)
    directory.mkdir(parents=True)
    (directory / VOCABULARY_FILE).write_text(yaml.safe_dump(words.to_dict(), sort_keys=False))
    users = max(decisions // DECISIONS_A_USER, 2)
    canary = Canary(None, CANARY, SHARE)
    treated = np.fromiter((canary.takes(f"u{user}") for user in range(users)), bool, users)
    liking = rng.gamma(2.0, .5, users).astype(np.float32)
    pace = np.cumsum(liking, dtype=np.float64)
    commits = max(decisions // COMMIT_ROWS, 1)
    span = 2 * DAYS * DAY / commits
    for commit in range(commits):
        rows = decisions // commits
        begin = BEGIN - DAYS * DAY + commit * span
        write_deltalake(str(directory / "sessions"), _commit(rng, rows, begin, span, pace, liking, treated, words),
                        mode="append")
    return sum(file.stat().st_size for file in (directory / "sessions").glob("*.parquet"))


def _commit(rng: np.random.Generator, rows: int, begin: float, span: float, pace: np.ndarray, liking: np.ndarray,
            treated: np.ndarray, words: Vocabulary) -> pa.Table:
    """Sessions of about SESSION_REQUESTS requests that begin within the span, in the order of time."""
    sessions = max(rows // SESSION_REQUESTS, 1)
    of = np.concatenate([np.arange(sessions), rng.integers(0, sessions, rows - sessions)])
    user = np.searchsorted(pace, rng.uniform(0, pace[-1], sessions))[of]
    ts = begin + rng.uniform(0, span, sessions)[of] + rng.exponential(60.0, rows)
    order = np.argsort(ts)
    of, user, ts = of[order], user[order], ts[order]
    version = np.where((ts >= BEGIN) & treated[user], CANARY, BASE)
    watch = rng.gamma(2.0, 5.0 * liking[user]).astype(np.float32)
    others = [(rng.random(rows) < rate * liking[user]).astype(np.float32) for rate in (.1, .02, .01)]
    salt = int(begin)
    return complete({
        "user_id": pa.array([f"u{each}" for each in user.tolist()]),
        "session_id": pa.array([f"s{salt:x}-{each:x}" for each in of.tolist()]),
        "request_id": pa.array([f"{salt:x}-{each:x}" for each in range(rows)]),
        "ts": pa.array((ts * 1e6).round().astype(np.int64)).cast(pa.timestamp("us", "UTC")),
        "model_version": pa.array(version),
        "feedback": pa.StructArray.from_arrays([pa.array(values) for values in (watch, *others)], list(_BEHAVIOURS)),
        "last": pa.array(np.zeros(rows, bool))}, session_log_schema(words)).select(_COLUMNS)


def measure(directory: Path) -> Peak:
    """Runs the command and watches its processes."""
    begin = time.perf_counter()
    command = [sys.executable, "-m", "recfuse.cli", "ab", str(directory), "--base", BASE, "--canary", CANARY, "--share",
               str(SHARE), "--targets.goals", "watch_time", "0", "--targets.floors", "like", "-0.01"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    peaks, done = [0.0, 0.0, 0.0], threading.Event()

    def watch() -> None:
        while not done.wait(.3):
            own, others = _resident(process.pid), [_resident(child) for child in _descendants(process.pid)]
            found = (own, max(others, default=0.0), own + sum(others))
            peaks[:] = [max(pair) for pair in zip(peaks, found, strict=True)]

    watcher = threading.Thread(target=watch)
    watcher.start()
    output, _ = process.communicate()
    done.set()
    watcher.join()
    seconds = time.perf_counter() - begin
    print("\n".join(output.splitlines()[-4:]))
    if process.returncode:
        raise SystemExit(f"the command ended with {process.returncode}")
    return Peak(*peaks, seconds)


def _descendants(process: int) -> list[int]:
    """All processes below one."""
    parents: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    found, last = {process}, 0
    while len(found) > last:
        last = len(found)
        found |= {child for child, parent in parents.items() if parent in found}
    return sorted(found - {process})


def _resident(process: int) -> float:
    """Proportional set size in GiB; 0 of a process that is gone."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 2**20 for line in lines if line.startswith("Pss:")), 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--decisions", type=int, nargs="+", default=[10_000_000, 30_000_000])
    parser.add_argument("--directory", type=Path, required=True, help="gets a table per size, which stays")
    given = parser.parse_args()
    rows = []
    for decisions in given.decisions:
        place = given.directory / f"decisions-{decisions}"
        if not place.exists():
            print(f"{decisions:,} decisions: a table of {write_table(place, decisions) / 2**30:.2f} GiB", flush=True)
        peak = measure(place)
        rows.append((f"{decisions:,}", f"{peak.seconds:.0f}", f"{peak.driver:.2f}", f"{peak.worker:.2f}",
                     f"{peak.together:.2f}"))
        table("recfuse ab", ["decisions", "seconds", "driver GiB", "largest worker GiB", "all processes GiB"],
              rows)


if __name__ == "__main__":
    main()
