"""One life of the simulated persons under a server that runs, with rollouts by the product's own loop, in parts that
may be killed.

    python -m benchmarks.loop_trial CONFIG.json NOW      # one cycle of the loop at a simulated time
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from benchmarks.loop_clients import Clients, Connections, Life
from benchmarks.loop_inside import Inside
from recfuse.bundle.pointer import Pointer, read_pointer, write_pointer
from recfuse.config import from_mapping
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.jobs.loop import cycles_of
from recfuse.logs.source import open_log, pieces
from recfuse.rollout import rollout as steps
from recfuse.rollout.config import LoopConfig, Plan, RolloutConfig
from recfuse.rollout.store import Rollout, Store
from recfuse.serving.environment import settings
from recfuse.serving.local import free_port
from recfuse.simulation.sessions import DAY, SessionEngine
from recfuse.simulation.world import World

ROOT = Path(__file__).parents[1]
MARK = "RECFUSE_BENCHMARK_RUN"
START = 1_767_225_600.0  # of day 0, 1 January 2026
WINDOW = 3_600.0  # seconds that feedback may take; looks are so much after the last request
_SECONDS, _STARTS = 900.0, 5  # until a server has started, or follows a pointer; and how often it is started
_ROOM = 64


@dataclass
class Server:
    """A server of a models directory, in processes of its own.

    Attributes:
        url: of it. mark: value of the variable MARK in the environment of all its processes.
    """

    url: str
    mark: str

    def follow(self, models: Path, is_over: Callable[[], bool] = lambda: False) -> None:
        """Waits until what is served is what the pointer names; not if it is over."""
        pointer, deadline = read_pointer(models), time.monotonic() + _SECONDS
        canary = None if pointer.fusion_canary is None else {
            "model_version": pointer.fusion_canary, "share": pointer.canary_share}
        while time.monotonic() < deadline and not is_over():
            with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
                served = httpx.get(f"{self.url}/v1/models", timeout=5).json()["fusion"]
                if served["model_version"] == pointer.fusion and served["canary"] == canary:
                    return
            time.sleep(.05)
        raise RuntimeError(f"{self.url} does not serve {pointer}")

    def replicas(self) -> list[int]:
        """Process ids of its replicas."""
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (b"ServeReplica:" in (process / "cmdline").read_bytes()
                        and f"{MARK}={self.mark}".encode() in (process / "environ").read_bytes()):
                    found.append(int(process.name))
        return found


@contextlib.contextmanager
def served(models: Path, log: Path) -> Iterator[Server]:
    """Serves a models directory, with the settings of `make serve`, while the block runs. On a machine that has no time
    for it Ray gives up after half a minute; then it is started again."""
    for attempt in range(_STARTS):
        process, server = _started(models, log)
        assert process.stdin is not None
        try:
            try:
                server.follow(models, lambda each=process: each.poll() is not None)
            except RuntimeError:
                if attempt == _STARTS - 1 or process.poll() is None:
                    raise
                continue
            yield server
            return
        finally:
            process.stdin.close()
            process.wait(120)


def _started(models: Path, log: Path) -> tuple[subprocess.Popen[bytes], Server]:
    port, mark = free_port(), uuid.uuid4().hex
    ports = {f"RAY_SERVE_HAPROXY_{name}_PORT": str(free_port()) for name in ("STATS", "METRICS")}
    options = {"models": str(models), "decision_log": str(log), "poll_seconds": .2, "max_concurrent": _ROOM}
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}", **settings(), **ports, MARK: mark,
                   "RECFUSE_ROOM": str(_ROOM)}
    with open(log.parent / "server.log", "ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.loop_server", str(port), json.dumps(options)], cwd=ROOT,
            env=environment, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=errors)
    return process, Server(f"http://127.0.0.1:{port}", mark)


@dataclass(frozen=True)
class Outcome:
    """What became of a candidate.

    Attributes:
        name: of the candidate. state: in the end. path: the steps of the audit. why: of the last step.
        share: the largest that it had. first, last: pieces of time from its beginning to its end.
    """

    name: str
    state: str
    path: tuple[str, ...]
    why: str
    share: float
    first: int
    last: int


@dataclass
class Kills:
    """What is killed with −9: the loop's process while it collects, looks and steps, and the server's replica.

    Attributes:
        every: rounds of requests between two kills of the replica. loops, replicas: that have been killed.
    """

    seed: int
    every: int = 40
    loops: int = 0
    replicas: int = 0
    _rounds: int = 0
    _lasted: float = 8.0
    rng: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.rng = np.random.default_rng(self.seed)

    def of_replica(self, server: Server) -> None:
        """Before a round of requests."""
        self._rounds += 1
        if self._rounds % self.every == 0:
            # In the middle of the round that follows.
            threading.Timer(self.rng.uniform(0, .3), self._kill, [server.replicas()]).start()

    def _kill(self, processes: list[int]) -> None:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
                self.replicas += 1

    def of_loop(self, command: list[str]) -> None:
        """Runs the loop's process until it ends by itself, after it was killed at a random time."""
        wait = self.rng.uniform(0, self._lasted)
        while True:
            begin = time.monotonic()
            process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env={
                **os.environ, "PYTHONPATH": f"{ROOT}/platform:{ROOT}"})
            with contextlib.suppress(subprocess.TimeoutExpired):
                if process.wait(wait):
                    raise RuntimeError(f"{command} ended with {process.returncode}")
                self._lasted = time.monotonic() - begin
                return
            process.kill()
            process.wait()
            self.loops, wait = self.loops + 1, 600.0


class Trial:
    """A life under a server.

    Args:
        directory: gets models, logs and the loop's state. persons: who live. look: days between two looks.
        plan: of the rollouts; its logs are this trial's. kills: None kills nothing.
    """

    def __init__(self, directory: Path, world: World, base: FixedGaussian, *, persons: int, look: float, pieces: int,
                 seed: int, plan: Plan, training: str = "", kills: Kills | None = None) -> None:
        self.directory, self.models, self._world, self._look = directory, directory / "models", world, look
        self.models.mkdir(parents=True)
        self.engine = SessionEngine(world, seed)
        self.life, self.piece, self.kills = Life(self.engine, persons, look, pieces), 0, kills
        self.plan = plan.replace(logs=str(directory / "sessions"))
        self.loop = LoopConfig(
            models=str(self.models), decision_log=str(directory / "decisions"), window_minutes=WINDOW / 60,
            output=str(directory / "loop"), training=training, plan=self.plan)
        self._write: Callable[[], None] = lambda: None
        self._server: Server | None = None
        self.base = self._exported(base)
        write_pointer(self.models, Pointer(fusion=self.base.name))

    @contextlib.contextmanager
    def served(self, connections: int) -> Iterator[Connections]:
        """A server runs, and persons may ask it."""
        with served(self.models, self.directory / "decisions") as server:
            kept = Connections(server.url, connections)
            self._ask, self._server = Clients(self.engine, kept, START), server
            self._follow = lambda: server.follow(self.models)
            yield kept
            kept.close()

    def inside(self) -> None:
        """Persons ask in this process from now on; what they were shown is collected already."""
        inside = Inside(self.engine, START, self.models, Path(self.plan.logs))
        self._ask, self._follow, self._write = inside, inside.follow, inside.write
        self.loop = self.loop.replace(decision_log="")

    @property
    def now(self) -> float:
        """Simulated seconds since 1970, when all feedback of this piece of time is there."""
        return START + self.piece * self._look * DAY + WINDOW

    def live(self, pieces: int = 1) -> None:
        """The next pieces of time."""
        self.piece += pieces
        kills, server = self.kills, self._server
        self.life.until(self.piece * self._look, self._ask,
                        None if kills is None or server is None else lambda: kills.of_replica(server))

    def cycle(self) -> None:
        """One cycle of the loop, after which the server follows the pointer."""
        self._write()
        if self.kills is None:
            run_cycle(self.loop, self.now)
        else:
            file = self.directory / "loop.json"
            file.write_text(json.dumps(self.loop.to_dict()))
            self.kills.of_loop([sys.executable, "-m", "benchmarks.loop_trial", str(file), repr(self.now)])
        self._follow()

    def roll_out(self, name: str, policy: FixedGaussian) -> Outcome:
        """Gate, canary, and a look after every piece of time until the candidate is promoted or not."""
        first, known = self.piece, len(Store(self.models).audit())
        steps.start(RolloutConfig(action="start", models=str(self.models), candidate=str(self._exported(policy)),
                                  reason=name, who="benchmark", plan=self.plan), self.now)
        self._follow()
        while self.state.state == "canary":
            self.live()
            self.cycle()
        return self.outcome(name, first, known)

    def outcome(self, name: str, first: int, known: int) -> Outcome:
        """What the audit says after so many rows."""
        rows = Store(self.models).audit()[known:]
        shares = [float(row.step.rsplit(" ", 1)[1]) for row in rows if "→ canary at" in row.step]
        return Outcome(name, self.state.state, tuple(row.step.partition(" → ")[2] for row in rows), rows[-1].why,
                       max(shares, default=0.0), first, self.piece)

    @property
    def rows(self) -> int:
        """Of the session log."""
        return sum(piece.kept for piece in pieces(open_log(self.plan.logs))[0])

    @property
    def said(self) -> str:
        """What the last cycle said of its steps."""
        last = cycles_of(self.loop).read()
        return "" if last is None else "; ".join(f"{step}: {line}" for step, line in last.done.items())

    @property
    def state(self) -> Rollout:
        """Of the rollout."""
        state = Store(self.models).read()
        assert state is not None
        return state

    def _exported(self, policy: FixedGaussian) -> Path:
        return export_policy(self.models, policy, self._world.vocabulary, training={}, data_fingerprint="", metrics={})


def run_cycle(config: LoopConfig, now: float) -> None:
    """One cycle of `recfuse loop` at a simulated time; what it prints is dropped."""
    with contextlib.redirect_stdout(io.StringIO()):
        cycles_of(config, lambda: now).run(now)


if __name__ == "__main__":
    run_cycle(from_mapping(LoopConfig, json.loads(Path(sys.argv[1]).read_text()), sys.argv[1]), float(sys.argv[2]))
