"""What a serving application is told at its start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from recfuse.config import Config, load, require
from recfuse.state.redis import is_redis_url

CONFIG_VARIABLE = "RECFUSE_SERVING"
TOKENS_VARIABLE = "RECFUSE_TOKENS"
Weight = Annotated[float, Field(ge=0)]


class ServingConfig(Config):
    """Config of one application; every replica of it has the same."""

    models: str = Field("runs/demo/models", description=(
        "This directory holds `current.json` (recfuse.bundle.pointer), its bundles, catalogue and users."))
    decision_log: str = Field("runs/demo/decisions", description=(
        "Each replica appends its decisions and feedback to files in this directory."))
    session_table: str = Field("", description=(
        "The decision log is moved in the background (serving.mover) to Delta tables in this directory or URL; empty "
        "leaves that to jobs/collect.py."))
    window_minutes: float = Field(60.0, ge=0, description=(
        "Feedback that comes more than so many minutes after its request is late."))
    move_seconds: float = Field(30.0, gt=0, description="So many seconds lie between two moves of the decision log.")
    layout: Literal["together", "apart"] = Field("together", description=(
        "With `together` each replica is a whole application; `apart` makes three deployments "
        "(serving.deployments)."))
    users: str = Field("", description=(
        "This URL of a Redis (redis://, rediss://, unix://) has the users' states, for several machines; empty takes "
        "the SQLite file that `current.json` names."))
    explore: bool = Field(True, description=(
        "A request that does not say gets a sample of the policy (true) or its mean (false)."))
    poll_seconds: float = Field(1.0, ge=0, description=(
        "A replica looks every so many seconds whether `current.json` points elsewhere; 0 is never."))
    log_candidates: bool = Field(True, description=(
        "A decision is logged with its candidates, and ranks by their predictions as the log keeps them, in half "
        "precision; false logs what was decided alone."))
    log_candidates_best: int = Field(200, ge=1, le=16_000, description=(
        "Of more candidates than this and `log_candidates_random` together, so many of the best are logged."))
    log_candidates_random: int = Field(50, ge=0, le=16_000, description=(
        "Of more candidates than are logged whole, so many at random are logged beside the best."))
    fsync: bool = Field(True, description=(
        "The log is on the disk before the client has its answer; false leaves it to the operating system, and rows "
        "survive a replica's death alone."))
    max_body_bytes: int = Field(8 * 1024 * 1024, gt=0, description="A request with more bytes than this is refused.")
    max_candidates: int = Field(10_000, gt=0, description="A request with more candidates than this is refused.")
    max_concurrent: int = Field(64, gt=0, description=(
        "A replica answers so many requests at a time and refuses one more with 503; behind HAProxy RECFUSE_ROOM "
        "refuses it sooner (serving.environment)."))
    scene_weights: Mapping[str, Mapping[str, Weight]] = Field({}, description=(
        "Each scene's tasks count with these weights in its order (maths 3.5); scenes that are not named weigh their "
        "tasks alike."))
    tokens: tuple[str, ...] = Field((), description=(
        "Any of these bearer tokens opens everything, and empty asks for none; RECFUSE_TOKENS (commas between) adds "
        "more, so that none need stand in a file."))

    @model_validator(mode="after")
    def _check(self) -> ServingConfig:
        require(not self.users or is_redis_url(self.users), "users", self.users, "a redis:// URL, or nothing")
        # The error does not show what is secret.
        long = all(len(token) >= 8 for token in self.tokens)
        require(long, "tokens", "(not shown)", "tokens of 8 characters or more")
        for scene, weights in self.scene_weights.items():
            require(sum(weights.values()) > 0, f"scene_weights.{scene}", dict(weights), "numbers ≥ 0 with a sum > 0")
        return self

    def absolute(self) -> ServingConfig:
        """The same with absolute paths: replicas run in other working directories than the one that starts them."""
        table = self.session_table
        return self.replace(models=str(Path(self.models).absolute()),
                            decision_log=str(Path(self.decision_log).absolute()),
                            session_table=str(Path(table).absolute()) if table and "://" not in table else table)


def config_from_environment() -> ServingConfig:
    """The config in the file that RECFUSE_SERVING names, or the defaults, with the tokens of RECFUSE_TOKENS."""
    path = os.environ.get(CONFIG_VARIABLE)
    return with_tokens_of_environment(load(ServingConfig, path) if path else ServingConfig())


def with_tokens_of_environment(config: ServingConfig) -> ServingConfig:
    """The same with the tokens of RECFUSE_TOKENS added."""
    tokens = tuple(token for token in os.environ.get(TOKENS_VARIABLE, "").split(",") if token)
    return config.replace(tokens=config.tokens + tokens)
