"""What a user may say about the multi-scene scorer: features, network, training job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from recfuse.config import Config, require
from recfuse.logs.account import QUARANTINE_LIMIT
from recfuse.logs.exposures import SCORER_SHARE
from recfuse.logs.orders import Orphan
from recfuse.runtime.limits import wait_limit
from recfuse.scenes.registry import Registry
from recfuse.scenes.training.config import TrainingConfig

Layout = Literal["kuairand", "native", "aliexpress", "ali_ccp"]
Source = Literal["user", "item", "context"]
# Logs of these names are made up for a simulator (recfuse.simulation.sources).
GENERATORS = ("embedded", "shop", "shop_pages")
SOURCES: tuple[Source, ...] = ("user", "item", "context")
Architecture = Literal["multi_scene", "single_task", "shared_bottom", "mmoe", "ple", "star", "pepnet", "esmm"]
# Of the numbers that are precomputed for each item of a catalogue.
Precision = Literal["float16", "float32", "none"]
Width = Annotated[int, Field(ge=1)]


class Feature(Config):
    """One declared feature: a column of the users, the items or the rows, and how the network reads it."""

    name: str = Field(min_length=1, pattern=r"\S", description="The feature's column has this name.")
    source: Source = Field(description="The column is in the users, the items, or the rows (`context`).")
    kind: Literal["categorical", "numeric", "bucketed"] = Field("categorical", description=(
        "Categories are integers (exact in 64 bits) or strings, numbers are normalised to mean 0 and deviation 1, "
        "and `bucketed` numbers become categories by their quantiles."))
    minimum_count: int = Field(2, ge=1, description=(
        "A category seen in fewer training rows shares the unknown bucket, which so is trained too."))
    log: bool = Field(False, description="A number passes through log(1 + max(x, 0)) before it is normalised.")
    buckets: int = Field(20, ge=2, description="A bucketed number has so many quantiles.")
    hash_buckets: int = Field(0, ge=0, description=(
        "Categories share so many buckets by a hash, so that only what is missing is unknown; "
        "0 learns a vocabulary instead."))

    @model_validator(mode="after")
    def _hashes_categories(self) -> Feature:
        fine = self.hash_buckets == 0 or (self.hash_buckets >= 2 and self.kind == "categorical")
        require(fine, "hash_buckets", self.hash_buckets, "0, or an integer ≥ 2 for a categorical feature")
        return self


class ModelConfig(Config):
    """Kind and sizes of the scorer's network (maths 3.1)."""

    architecture: Architecture = Field("multi_scene", description=(
        "The kind of network: `multi_scene` is this product's, the others are baselines (recfuse.scenes.baselines)."))
    embedding_size: int = Field(16, ge=1, description="Every categorical feature has embeddings of this width.")
    history_length: int = Field(50, ge=0, description=(
        "So many last watched items are pooled through the items' embeddings; 0 pools none."))
    history_pooling: Literal["mean", "attention"] = Field("attention", description=(
        "The history's items weigh alike, or by a softmax of their products with a projection of the candidate."))
    experts: int = Field(8, ge=1, description="This is K, the number of experts that every gate mixes.")
    expert_layers: tuple[Width, ...] = Field((128, 64), min_length=1, description=(
        "These are the widths of an expert's layers; the last one is that of what gates mix."))
    tower_layers: tuple[Width, ...] = Field((32,), description=(
        "These are the widths of the hidden layers of each tower."))


class TrainScenesConfig(Config):
    """Config of the job `train_scenes`."""

    former: ClassVar[Mapping[str, str]] = {"logs": "exposures"}

    exposures: str = Field("embedded", description=(
        "The exposures are in this directory, for `native` also a URI; `embedded` and `shop` are generators."))
    layout: Layout = Field("kuairand", description="The directory's files have this layout.")
    orphan: Orphan = Field("quarantine", description=(
        "The row of an order without its click is left out (`quarantine`), or gets the click (`repair`)."))
    quarantine_limit: float = Field(QUARANTINE_LIMIT, ge=0, le=1, repr=False, description=(
        "The job ends with an error after it has written where a larger share of the exposures is quarantined."))
    wait_limit: float = wait_limit()
    output: str = Field("runs/scenes", description=(
        "The directory gets `bundles/`, `metrics.json` and the checkpoints."))
    registry: Registry | None = Field(None, description=(
        "These are the scenes and their tasks; without a value, those that the layout is known for."))
    features: tuple[Feature, ...] = Field((), description=(
        "These are the declared features; an empty list takes every column of users and items."))
    model: ModelConfig = Field(ModelConfig(), description="The network has this kind and these sizes.")
    training: TrainingConfig = Field(TrainingConfig(), description="The network is fitted so.")
    start_from: str = Field("", description=(
        "Training goes on from this bundle, or the newest in this directory: its features stay, scenes with `like` "
        "start as copies, and scenes that the registry lacks are retired."))
    share: float | None = Field(None, gt=0, le=1, description=(
        "This share of the rows before the test day trains; a simulator of these rows needs at most 0.7. "
        "Without a value it is 1, of a generator 0.7."))
    test_day: int | None = Field(None, description=(
        "This day (yyyymmdd) tests, and the days before it train; without a value, the last day."))
    intervals: int = Field(200, ge=0, description=(
        "The bootstrap over users draws so often, for intervals, figures before correction and the experts' health; "
        "0 leaves them out."))
    transfer: bool = Field(False, description=(
        "Every scene is trained alone too, for the verdict on negative transfer; this needs `intervals`."))

    @property
    def training_share(self) -> float:
        """`share`, or what it is without a value."""
        return self.share or (SCORER_SHARE if self.exposures in GENERATORS else 1.0)

    @model_validator(mode="after")
    def _transfer_has_intervals(self) -> TrainScenesConfig:
        require(not self.transfer or self.intervals > 0, "intervals", self.intervals, "an integer ≥ 1 with transfer")
        return self
