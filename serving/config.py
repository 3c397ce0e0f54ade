"""What a serving application is told at its start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from recfuse.config import load, require
from recfuse.state.redis import is_redis_url

CONFIG_VARIABLE = "RECFUSE_SERVING"
TOKENS_VARIABLE = "RECFUSE_TOKENS"


@dataclass(frozen=True, kw_only=True)
class ServingConfig:
    """Of one application; every replica of it has the same.

    Attributes:
        models: directory with `current.json` (recfuse.bundle.pointer), its bundles, catalogue and users.
        decision_log: directory to which each replica appends its decisions and feedback.
        session_table: directory or URL of the Delta tables to which the decision log is moved in the background
            (serving.mover); empty leaves that to jobs/collect.py.
        window_minutes: feedback that comes later than this after its request is late.
        move_seconds: between two moves.
        layout: `together`, each replica a whole application; or `apart`, three deployments (serving.app).
        users: URL of a Redis (redis://, rediss://, unix://) with the users' states, for more than one machine; empty
            takes the SQLite file that `current.json` names.
        explore: whether a request that does not say gets a sample of the policy (true) or its mean.
        poll_seconds: how often a replica looks whether `current.json` points elsewhere; 0 never.
        fsync: the log is on the disk before the client has its answer; false leaves it to the operating system, which
            survives the death of a replica but not of the machine.
        max_body_bytes, max_candidates: larger requests are refused.
        max_concurrent: requests that a replica answers at a time; one more gets 503 with Retry-After at once. Behind
            HAProxy, which refuses with less effort, RECFUSE_ROOM comes first (serving.environment).
        scene_weights: scene → task → weight ≥ 0 of the order within a scene (maths 3.5); scenes that are not named
            weigh their tasks alike.
        tokens: bearer tokens, any of which opens everything but /healthz; empty asks for none. RECFUSE_TOKENS (commas
            between) adds more, so that they need not stand in a file.
    """

    models: str = "runs/demo/models"
    decision_log: str = "runs/demo/decisions"
    session_table: str = ""
    window_minutes: float = 60.0
    move_seconds: float = 30.0
    layout: Literal["together", "apart"] = "together"
    users: str = ""
    explore: bool = True
    poll_seconds: float = 1.0
    fsync: bool = True
    max_body_bytes: int = 8 * 1024 * 1024
    max_candidates: int = 10_000
    max_concurrent: int = 64
    scene_weights: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    tokens: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require(self.poll_seconds >= 0, "poll_seconds", self.poll_seconds, "a number ≥ 0")
        require(self.window_minutes >= 0, "window_minutes", self.window_minutes, "a number ≥ 0")
        require(self.move_seconds > 0, "move_seconds", self.move_seconds, "a number > 0")
        require(self.max_body_bytes > 0, "max_body_bytes", self.max_body_bytes, "an integer > 0")
        require(self.max_candidates > 0, "max_candidates", self.max_candidates, "an integer > 0")
        require(not self.users or is_redis_url(self.users), "users", self.users, "a redis:// URL, or nothing")
        require(self.max_concurrent > 0, "max_concurrent", self.max_concurrent, "an integer > 0")
        long = all(len(token) >= 8 for token in self.tokens)
        require(long, "tokens", "(not shown)", "tokens of 8 characters or more")
        for scene, weights in self.scene_weights.items():
            good = all(weight >= 0 for weight in weights.values()) and sum(weights.values()) > 0
            require(good, f"scene_weights.{scene}", dict(weights), "numbers ≥ 0 with a sum > 0")

    def absolute(self) -> ServingConfig:
        """The same with absolute paths: replicas run in other working directories than the one that starts them."""
        table = self.session_table
        return replace(self, models=str(Path(self.models).absolute()),
                       decision_log=str(Path(self.decision_log).absolute()),
                       session_table=str(Path(table).absolute()) if table and "://" not in table else table)


def config_from_environment() -> ServingConfig:
    """The config in the file that RECFUSE_SERVING names, or the defaults, with the tokens of RECFUSE_TOKENS."""
    path = os.environ.get(CONFIG_VARIABLE)
    return with_tokens_of_environment(load(ServingConfig, path) if path else ServingConfig())


def with_tokens_of_environment(config: ServingConfig) -> ServingConfig:
    """The same with the tokens of RECFUSE_TOKENS added."""
    tokens = tuple(token for token in os.environ.get(TOKENS_VARIABLE, "").split(",") if token)
    return replace(config, tokens=config.tokens + tokens)
