"""What a serving application is told at its start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal, get_args

from pydantic import Field, model_validator

from recfuse.config import Config, load, require
from recfuse.runtime.devices import Device
from recfuse.runtime.locations import locate
from recfuse.scenes.config import Layout, Precision
from recfuse.state.clock import is_zone
from recfuse.state.redis import is_redis_url

CONFIG_VARIABLE = "RECFUSE_SERVING"
TOKENS_VARIABLE = "RECFUSE_TOKENS"
Weight = Annotated[float, Field(ge=0)]
Part = Literal["fusion", "scenes", "catalogue", "users"]
PARTS: tuple[Part, ...] = get_args(Part)


class Supplements(Config):
    """What neither the scorer nor the catalogue has: without a word here, parts that lack something of each other are
    not served together (serving.contract)."""

    constants: dict[str, float] = Field({}, description=(
        "Each of these fusion parameters has this prediction for every candidate, where neither the request nor the "
        "scorer predicts it."))
    sent: tuple[str, ...] = Field((), description=(
        "Requests bring these fusion parameters' predictions, or these features of items, themselves."))
    unshared_scenes: tuple[str, ...] = Field((), description=(
        "Only one of policy and scorer knows these scenes: there requests bring their predictions, or the scorer ranks "
        "alone."))

    @property
    def supplements(self) -> Supplements:
        """These fields alone."""
        return Supplements(constants=self.constants, sent=self.sent, unshared_scenes=self.unshared_scenes)


class ServingConfig(Supplements):
    """Config of one application; every replica of it has the same."""

    models: str = Field("runs/demo/models", description=(
        "This directory holds `current.json` (recfuse.bundle.pointer), its bundles, catalogue and users."))
    decision_log: str = Field("runs/demo/decisions", description=(
        "Each replica appends its decisions and feedback to files in this directory."))
    runs: str = Field("runs", description="The console lists the runs beneath this directory.")
    session_table: str = Field("", description=(
        "The decision log is moved in the background (serving.mover) to Delta tables in this directory or URL; empty "
        "leaves that to `recfuse collect`."))
    window_minutes: float = Field(60.0, ge=0, description=(
        "Feedback that comes more than so many minutes after its request is late."))
    move_seconds: float = Field(30.0, gt=0, description="So many seconds lie between two moves of the decision log.")
    device: Device = Field("cpu", description=(
        "The scorer computes on this device; on a GPU, which its deployment takes by `num_gpus`, `auto` is cuda."))
    layout: Literal["together", "apart"] = Field("together", description=(
        "With `together` each replica is a whole application; `apart` makes three deployments "
        "(serving.deployments)."))
    users: str = Field("", description=(
        "This URL of a Redis (redis://, rediss://, unix://) has the users' states, for several machines; empty takes "
        "the SQLite file that `current.json` names."))
    time_zone: str = Field("UTC", description=(
        "Hour and weekday of requests that do not say them are the clock's in this zone, unless the policy's "
        "vocabulary has one."))
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
    body_seconds: float = Field(10.0, gt=0, description=(
        "A request whose body has not come whole after so many seconds is refused."))
    cors_origins: tuple[str, ...] = Field((), description=(
        "Pages of these origins (https://shop.example), or of all (*), may ask from a browser; empty allows none."))
    max_candidates: int = Field(10_000, gt=0, description="A request with more candidates than this is refused.")
    max_concurrent: int = Field(64, gt=0, description=(
        "A replica answers so many requests at a time and refuses one more with 503; behind HAProxy RECFUSE_ROOM "
        "refuses it sooner (serving.environment)."))
    scene_weights: Mapping[str, Mapping[str, Weight]] = Field({}, description=(
        "Each scene's tasks count with these weights in its order (maths 3.5); scenes that are not named weigh their "
        "tasks alike."))
    item_rows: Precision = Field("float16", description=(
        "The scorer keeps a precomputed row for each item of the catalogue in this precision, 2.3 GB a million in "
        "float16; `none` computes it by request."))
    rows_apart: tuple[str, ...] = Field((), description=(
        "These features of items, such as an age in days, change with every catalogue, so that requests add their part "
        "to the rows."))
    rows: str = Field("", description=(
        "The rows lie in files of this directory, which all replicas of a machine map; empty is `rows` beneath "
        "`models`."))
    tokens: tuple[str, ...] = Field((), description=(
        "Any of these bearer tokens opens everything, and empty asks for none; RECFUSE_TOKENS (commas between) adds "
        "more, so that none need stand in a file."))

    @model_validator(mode="after")
    def _check(self) -> ServingConfig:
        require(not self.users or is_redis_url(self.users), "users", self.users, "a redis:// URL, or nothing")
        require(is_zone(self.time_zone), "time_zone", self.time_zone, "a zone such as Europe/Berlin, or UTC")
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
                            rows=str(Path(self.rows).absolute()) if self.rows else "",
                            decision_log=str(Path(self.decision_log).absolute()), runs=str(Path(self.runs).absolute()),
                            session_table=str(Path(table).absolute()) if table and "://" not in table else table)


class ExploreConfig(Supplements):
    """Config of the job."""

    weights: str = Field(description=(
        "Today's weights as `name:number,name:number`; predictions that are not named weigh 0."))
    change: float = Field(0.2, gt=0, lt=1, description=(
        "Exploration may change this share of the page's items, on average over requests."))
    candidates: str = Field("", description=(
        "Requests to try this on: a session log that keeps candidates, or a Parquet or CSV file with `request_id` and "
        "a column for each prediction, one row a candidate."))
    vocabulary: str = Field("", description=(
        "YAML file that names behaviours and predictions; empty takes vocabulary.yaml here, or that of the log."))
    top: int = Field(10, ge=1, description="The page has so many items.")
    models: str = Field("runs/models", description="The bundle is published in this directory, which serving watches.")
    requests: int = Field(1_000, ge=2, description="So many requests with candidates are tried, drawn at random.")
    draws: int = Field(16, ge=1, description="The weights of every request are drawn so many times.")
    seed: int = Field(0, ge=0, description="The seed of requests and draws.")


def config_from_environment() -> ServingConfig:
    """The config in the file that RECFUSE_SERVING names, or the defaults, with the tokens of RECFUSE_TOKENS."""
    path = os.environ.get(CONFIG_VARIABLE)
    return with_tokens_of_environment(load(ServingConfig, path) if path else ServingConfig())


def with_tokens_of_environment(config: ServingConfig) -> ServingConfig:
    """The same with the tokens of RECFUSE_TOKENS added."""
    tokens = tuple(token for token in os.environ.get(TOKENS_VARIABLE, "").split(",") if token)
    return config.replace(tokens=config.tokens + tokens)


class ExportConfig(Supplements):
    """Config of the job."""

    former: ClassVar[Mapping[str, str]] = {"logs": "exposures"}

    fusion: str = Field("", description=(
        "The policy is this fusion bundle, or the newest of this directory of bundles; empty leaves the policy."))
    scenes: str = Field("", description=(
        "The scorer is this scenes bundle, or the newest of this directory of bundles; empty leaves the scorer, or "
        "none."))
    exposures: str = Field("", description=(
        "The items of these exposures are the catalogue and their users are known: a directory, or `embedded`, the "
        "simulator's; empty leaves catalogue and users."))
    layout: Layout = Field("kuairand", description="The exposures' files are laid out in this way.")
    users: str = Field("", description=(
        "Users go to this Redis (redis://, rediss://, unix://), which serving names likewise; empty takes the SQLite "
        "file beside the pointer."))
    world: str = Field("", description=(
        "The users' state features of this simulated world are exported too; empty where states come with requests."))
    models: str = Field("runs/models", description="Serving watches this directory.")
    parts: tuple[Part, ...] = Field((), description=(
        "These parts alone of what is named are published; empty publishes all of it."))

    @model_validator(mode="after")
    def _check(self) -> ExportConfig:
        sources = {"fusion": self.fusion, "scenes": self.scenes, "catalogue": self.exposures, "users": self.exposures}
        require(not self.users or is_redis_url(self.users), "users", self.users, "a redis:// URL, or nothing")
        require(any(sources.values()), "fusion", "", "a fusion bundle; or scenes, or exposures, or several of them")
        for part in self.parts:
            require(bool(sources[part]), "parts", part, "parts that are named by fusion, scenes or exposures")
        return self

    @property
    def published(self) -> tuple[Part, ...]:
        """The parts that are published."""
        sources = (self.fusion, self.scenes, self.exposures, self.exposures)
        named = [part for part, source in zip(PARTS, sources, strict=True) if source]
        return tuple(part for part in named if not self.parts or part in self.parts)


class CollectConfig(Config):
    """Config of the job."""

    decision_log: str = Field("runs/decisions", description="Serving appends to this directory.")
    models: str = Field("runs/models", description=(
        "Serving watches this directory; the log's vocabulary is that of its fusion bundle."))
    output: str = Field("runs/served_logs", description=(
        "The session log goes to this directory or URL; a rerun adds what has come since."))
    window_minutes: float = Field(60.0, ge=0, description=(
        "Feedback counts so many minutes after its request; younger requests wait for a later run."))
    unnamed: Literal["keep", "refuse"] = Field("keep", description=(
        "Decisions without `vocabulary_hash`, of which no bundle and no file beside the log tells the vocabulary, are "
        "kept as the served model's, or refused."))

    @model_validator(mode="after")
    def _check(self) -> CollectConfig:
        same = locate(self.output, "output").root == locate(self.decision_log, "decision_log").root
        require(not same, "output", self.output, "a directory other than decision_log")
        return self
