"""What the scorer's scoreboard compares: contenders, rows, fields, and what a training gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from pydantic import Field

from recfuse.config import Config
from recfuse.logs.exposures import Exposures
from recfuse.logs.kuairand import read_exposures
from recfuse.scenes.config import Architecture, ModelConfig
from recfuse.scenes.dataset import scene_rows
from recfuse.scenes.features import Feature, declared_features
from recfuse.scenes.registry import Registry, Scene

TASKS = ("click", "long_view")
METRICS = ("auc", "gauc")
SCENES = ("0", "1", "2", "4", "6")
REGISTRY = Registry(scenes=tuple(Scene(name=tab, tasks=TASKS) for tab in SCENES))
# deepctr-torch imports `requests` without declaring it; FuxiCTR imports Ray Data.
PEERS = {"torch-rechub": ("torch-rechub==0.9.0",), "deepctr-torch": ("deepctr-torch==0.3.0", "requests"),
         "fuxictr": ("fuxictr==2.3.10",)}
# Counts that have their range beside them as a category: without them and without history the fields are 39.
LEFT_OUT = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days", "server_width")
# What was counted from the users' sequences before the logs: history too.
COUNTED = ("user_past_views", "user_past_long_view_ratio", "user_past_like_ratio", "item_past_views",
           "item_past_long_view_ratio", "item_past_like_ratio")


@dataclass(frozen=True)
class Ours:
    """One of ours: its network, the rates of Adagrad and Adam, whether it sees what was counted from the sequences."""

    model: ModelConfig
    embedding_rate: float
    dense_rate: float = 1e-3
    counts: bool = False


OURS = {"ours": Ours(ModelConfig(history_length=0), .2), "ours+history": Ours(ModelConfig(), .05, 3e-3),
        "ours+history+counts": Ours(ModelConfig(), .05, 3e-3, counts=True)}
BASELINES = {name: Ours(ModelConfig(architecture=name), .05, 3e-3) for name in get_args(Architecture)
          if name != "multi_scene"}


class ScoreboardConfig(Config):
    """What is compared, and how long."""

    exposures: str = Field(description="The KuaiRand files are in this directory.")
    output: str = Field("runs/benchmarks", description=(
        "The directory gets the environments, the shared data, and the trainings done so far."))
    rounds: int = Field(5, ge=0, description="Every contender is trained with so many seeds.")
    timings: int = Field(3, ge=0, description=(
        "The speed of a contender is the median of so many undisturbed trainings; a run tries so often."))
    quiet: float = Field(0.05, ge=0, le=1, description=(
        "Others may use at most this part of the machine during a training whose speed counts."))
    last_training_day: int = Field(20220503, description="The days after this one (yyyymmdd) test.")
    batch_size: int = Field(2048, ge=1, description="Every contender takes batches of so many rows.")
    threads: int = Field(2, ge=1, description="Every contender computes on so many threads.")
    strategy: Literal["balanced", "sqrt", "uniform"] = Field("uniform", description=(
        "Ours weigh by this strategy (maths 3.3); with another than `uniform` positives weigh without a bound."))
    contenders: tuple[str, ...] = Field((*OURS, *PEERS), description=(
        "These take part: ours, peers, and our renderings of published architectures."))
    budget: float = Field(float("inf"), ge=0, allow_inf_nan=True, description=(
        "After so many seconds no further training starts; a later run goes on."))
    child: tuple[str, int, str] | None = Field(None, description=(
        "This is internal: one training of one of ours, as name, seed, and where its predictions go."))


@dataclass(frozen=True)
class Round:
    """One training, and its test metrics by task.

    Attributes:
        seconds, processor, threads: of the training: by the clock, of its process' processor time, of torch.
        others: the part of the machine's processors that other processes used meanwhile.
        pairs: [scene, task, rows, predicted over observed].
    """

    seconds: float
    processor: float
    threads: int
    others: float
    auc: tuple[float, ...]
    gauc: tuple[float, ...]
    calibration: tuple[float, ...]
    pairs: tuple[tuple[str, str, int, float], ...]
    versions: str


# Contender → seed → its trainings.
Done = dict[str, dict[int, list[Round]]]


def timed(trainings: dict[int, list[Round]], config: ScoreboardConfig) -> list[Round]:
    """The trainings whose speed counts."""
    return [one for several in trainings.values() for one in several
            if one.others <= config.quiet and one.threads == config.threads]


def rows_of(config: ScoreboardConfig) -> tuple[Exposures, np.ndarray]:
    """The exposures of the five pages, and which rows train."""
    exposures = scene_rows(read_exposures(config.exposures), REGISTRY)
    return exposures, exposures.column("day") <= config.last_training_day


def fields(exposures: Exposures, counts: bool) -> tuple[Feature, ...]:
    """Categories alone, which every contender reads the same way."""
    left_out = LEFT_OUT if counts else LEFT_OUT + COUNTED
    return tuple(feature for feature in declared_features(exposures)
                 if feature.kind != "numeric" and feature.name not in left_out)
