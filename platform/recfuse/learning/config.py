"""What a user may say about a training run, from samples or in a simulated world."""

from __future__ import annotations

from pydantic import Field

from recfuse.config import Config
from recfuse.learning import registry
from recfuse.learning.settings import LearningSettings
from recfuse.runtime.limits import wait_limit


class TrainFusionConfig(Config):
    """From samples to a policy."""

    samples: str = Field(
        "runs/samples", description="This directory (or URI) holds samples, as the ingest job writes them; those whose "
        "action was not drawn train critics alone.", min_length=1)
    output: str = Field(
        "runs/fusion", description="This directory gets the bundle, the metrics, the history and the checkpoint, from "
        "which a rerun goes on.", min_length=1)
    scorer: str = Field(
        "", description="This scorer's bundle, or the newest in this directory, gives the slopes of realised on "
        "predicted; empty takes those of the log alone.")
    wait_limit: float = wait_limit()
    learning: LearningSettings = Field(
        default_factory=registry.settings, description="Algorithm, networks, rates and stopping rules are these.")


class OnlineSettings(Config):
    """How the environment is rolled."""

    iterations: int = Field(20, description="Rolling and learning take turns so often.", ge=1)
    runners: int = Field(0, description="So many env runners roll; 0 rolls in the calling process.", ge=0)
    sessions: int = Field(128, description="Each runner rolls so many sessions side by side.", ge=1)
    requests: int = Field(
        32, description="A session has at most so many requests before the next iteration begins anew.", ge=1)
    passes: int = Field(
        2, description="Critics and policy each pass so often over the requests of an iteration.", ge=1)
