"""The same persons without a server: they ask the policies that the pointer names in this process.

Pages, answers and luck are those of a served life; only the way through HTTP, decision log and mover is
left out. What the rollout's steps and the A/B test's verdicts do over many lives can so be counted in minutes.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from benchmarks.loop_clients import STAGE, draws, ranked, user_ids
from recfuse.bundle import read_bundle
from recfuse.bundle.arms import Arms, Canary
from recfuse.bundle.pointer import read_pointer
from recfuse.fusion.inference import FusionActor
from recfuse.fusion.policies import FixedGaussian
from recfuse.logs.files import write_parquet
from recfuse.logs.schema import VOCABULARY_FILE, complete, session_log_schema
from recfuse.simulation.sessions import DAY, SessionEngine, Sessions

Named = tuple[str, FixedGaussian]


class Inside:
    """Ranks by the pointer of a models directory, and keeps rows of what was ranked until they are written.

    Args:
        engine: of the persons. start: simulated time of day 0, seconds since 1970. models, logs: directories.
    """

    def __init__(self, engine: SessionEngine, start: float, models: Path, logs: Path) -> None:
        self._engine, self._world, self._start, self._models, self._logs = engine, engine.world, start, models, logs
        self._tables: list[pa.Table] = []
        self._parts = 0
        self._versions: list[str] = []
        self._asked: Sessions | None = None
        logs.mkdir(parents=True, exist_ok=True)
        self._world.vocabulary.save(logs / VOCABULARY_FILE)
        self.follow()

    def follow(self) -> None:
        """Takes what the pointer names."""
        pointer = read_pointer(self._models)
        assert pointer.fusion is not None
        canary = None if pointer.fusion_canary is None else Canary(
            self._policy(pointer.fusion_canary), pointer.fusion_canary, pointer.canary_share)
        self._arms: Arms[Named] = Arms(self._policy(pointer.fusion), canary)

    def _policy(self, name: str) -> Named:
        policy = FusionActor.from_bundle(read_bundle(self._models / name, "fusion")).fixed
        assert policy is not None
        return name, policy

    def rank(self, sessions: Sessions) -> NDArray[np.int64]:
        """As `Clients.rank`."""
        arms = [self._arms.of(user) for user in user_ids(self._world, sessions.person)]
        self._versions = [version for version, _ in arms]
        self._asked = sessions.take(np.arange(len(arms)))
        mu, sigma = (np.stack([getattr(policy, name) for _, policy in arms]) for name in ("mu", "sigma"))
        return ranked(self._engine, sessions, mu + sigma * draws(sessions, mu.shape[1]))

    def tell(self, sessions: Sessions, feedback: NDArray[np.float32], last: NDArray[np.bool_]) -> None:
        """As `Clients.tell`."""
        world, asked = self._world, self._asked
        assert asked is not None
        names, schema = world.vocabulary.behaviour_names, session_log_schema(world.vocabulary)
        users = user_ids(world, asked.person)
        ids = [f"{user}-{number}" for user, number in zip(users, asked.number.tolist(), strict=True)]
        ts = np.round((self._start + asked.clock * DAY) * 1e6).astype(np.int64)
        self._tables.append(complete({
            "session_id": pa.array(ids), "user_id": pa.array(users),
            "request_id": pa.array([f"{each}-{number}" for each, number in zip(ids, asked.request, strict=True)]),
            "ts": pa.array(ts).cast(pa.timestamp("us", "UTC")), "stage": pa.array([STAGE] * len(users)),
            "scene": pa.array(np.array(world.scenes)[world.entry_scene[asked.entry]]),
            "model_version": pa.array(self._versions), "last": pa.array(last),
            "feedback": pa.StructArray.from_arrays(
                [pa.array(feedback[:, column]) for column in world.columns(names)], names=list(names))}, schema))

    def write(self) -> None:
        """Adds what was ranked since the last call to the session log."""
        if self._tables:
            write_parquet(pa.concat_tables(self._tables), self._logs / f"part-{self._parts:05d}.parquet")
            self._tables, self._parts = [], self._parts + 1
