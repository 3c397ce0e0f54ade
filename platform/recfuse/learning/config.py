"""What a user may say about a training run, from samples or in a simulated world."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from recfuse.behaviours import Stage
from recfuse.config import Config, require
from recfuse.learning import registry
from recfuse.learning.settings import LearningSettings
from recfuse.runtime.limits import wait_limit


class StageOneTest(Config):
    """How stage one is judged before stage two begins: by an A/B test of what stage two will be held to."""

    judge: Literal["none", "simulated", "served"] = Field(
        "none", description="Nobody judges; or persons of a simulated world do; or users of a served log, in the arm "
        "of a canary.")
    floors: dict[str, Annotated[float, Field(ge=-1, le=0)]] = Field(
        {}, description="Short-term behaviours may not fall by more than this, relative to the base; none named: no "
        "short-term behaviour may fall.")
    rounds: int = Field(3, description="Stage one is judged at most so often.", ge=1)
    factor: float = Field(2.0, description="The multiplier λ of a behaviour below its floor becomes so many times "
                          "larger for the next round.", gt=1)
    simulation: str = Field("runs/simulation", description="This output of the job `simulate` has the world of "
                            "simulated persons.")
    base: str = Field("logged", description="This arm is the base of a simulated test, as the job `ab_test` names "
                      "arms.", min_length=1)
    persons: int = Field(4_000, description="So many simulated persons live once under either arm, with the same luck.",
                         ge=4)
    seed: int = Field(0, description="The seed of the persons' luck.", ge=0)
    logs: str = Field("runs/served_logs", description="This session table has the users of a served test.")
    models: str = Field("runs/models", description="The current.json of this directory names base, canary and share of "
                        "a served test.")


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
    policy_per_stage: tuple[Stage, ...] = Field(
        (), description="Each of these stages gets a policy of its own, learned from its own requests; all others have "
        "the policy that learns from all.")
    stage_one_test: StageOneTest = Field(
        StageOneTest(), description="An A/B test judges stage one before stage two begins; off by default.")
    wait_limit: float = wait_limit()
    learning: LearningSettings = Field(
        default_factory=registry.settings, description="Algorithm, networks, rates and stopping rules are these.")

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        require(len(set(self.policy_per_stage)) == len(self.policy_per_stage), "policy_per_stage",
                self.policy_per_stage, "every stage once")
        require(not self.policy_per_stage or self.stage_one_test.judge == "none", "stage_one_test.judge",
                self.stage_one_test.judge, "none with policy_per_stage: a test is of one policy for all stages")
        return self


class OnlineSettings(Config):
    """How the environment is rolled."""

    iterations: int = Field(20, description="Rolling and learning take turns so often.", ge=1)
    runners: int = Field(0, description="So many env runners roll; 0 rolls in the calling process.", ge=0)
    sessions: int = Field(128, description="Each runner rolls so many sessions side by side.", ge=1)
    requests: int = Field(
        32, description="A session has at most so many requests before the next iteration begins anew.", ge=1)
    passes: int = Field(
        2, description="Critics and policy each pass so often over the requests of an iteration.", ge=1)
