"""What a user may say about a simulated world, its logs, the tests and the learning in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from recfuse.config import Config, require
from recfuse.learning import registry
from recfuse.learning.config import OnlineSettings
from recfuse.learning.settings import LearningSettings
from recfuse.logs.account import QUARANTINE_LIMIT
from recfuse.scenes.config import Layout
from recfuse.simulation.responses import Responses
from recfuse.simulation.world import WorldConfig
from recfuse.stats.intervals import LEVEL
from recfuse.stats.significance import Correction

# Names of arms; the last ends the name of one that does not explore, whatever the others do.
LOGGED, LOGGED_MEAN, CEM, MEAN = "logged", "logged_mean", "cem", ":mean"
Who = Literal["everyone", "logged", "held_out"]


class ResponseConfig(Config):
    """How the response model is fitted."""

    factors: int = Field(8, description="Users and items have this many latent factors each.", ge=1)
    epochs: int = Field(3, description="The fit passes over its rows so many times.", ge=1)
    batch_size: int = Field(1_024, description="A step of the optimiser (AdamW) takes so many rows.", ge=1)
    learning_rate: float = Field(0.003, description="The optimiser has this learning rate.", gt=0)
    weight_decay: float = Field(1.0, description="Embeddings of users and items decay at this rate.", ge=0)
    seed: int = Field(101, description="The seed of initial values and batches is not the scorer's.")
    shrinkage: float = Field(
        2_000.0, description="A scene's rate of a rare behaviour is drawn to the pooled rate by so many rows.", ge=0)


class SimulateConfig(Config):
    """Config of the job."""

    former: ClassVar[Mapping[str, str]] = {"logs": "exposures"}

    exposures: str = Field(
        "embedded", description="The exposures are in this directory; `embedded`, `shop` and `shop_pages` are "
        "generators.")
    layout: Layout = Field("kuairand", description="The directory's files have this layout.")
    responses: Responses | None = Field(
        None, description="What users may answer with, and which answer follows which; absent, as the exposures are "
        "known: a feed or the shop.")
    quarantine_limit: float = Field(QUARANTINE_LIMIT, ge=0, le=1, repr=False, description=(
        "The job ends with an error after it has written where a larger share of the exposures is quarantined."))
    scorer: str = Field(
        "runs/scenes/bundles", description="This is a bundle of kind `scenes`, or a directory that holds one.")
    output: str = Field(
        "runs/simulation", description="This directory gets `logs/`, `holdout/`, `world/` and `metrics.json`.")
    behaviour_mu: dict[str, float] = Field(
        {}, description="The declared behaviour policy has these means by fusion parameter; of those not named, the "
        "amount and steps of the ladder have 1, others 0.3.")
    behaviour_sigma: float | None = Field(
        None, description="The declared behaviour policy explores every parameter with this standard deviation; "
        "absent, with 0.7, or in the shop with 0.2.", gt=0)
    world: WorldConfig = Field(WorldConfig(), description="This is what the world assumes.")
    response: ResponseConfig = Field(ResponseConfig(), description="The response model is fitted so.")
    persons: int = Field(
        18_000, description="The logs hold so many simulated people; person p has the tastes of the world's user p mod "
        "`world.users`.", ge=1)
    held_out_users: float = Field(
        0.2, description="This share of the world's users never occurs in the logs.", ge=0, lt=1)
    holdout_persons: int = Field(
        2_000, description="A second log, for evaluation, holds so many people, of held-out users where there are any; "
        "0 for none.", ge=0)
    candidates: bool = Field(
        True, description="The logs say what each request had to rank and what was shown, as replay needs it.")
    seed: int = Field(1, description="The seed of the logs.", ge=0)


class CemConfig(Config):
    """How the cross-entropy method searches for one fusion vector in the simulator."""

    persons: int = Field(2_000, description="Every vector is judged by the lives of so many simulated persons.", ge=1)
    population: int = Field(24, description="An iteration of the search judges so many vectors.", ge=2)
    iterations: int = Field(12, description="The search draws so many populations.", ge=1)
    searches: int = Field(1, description="There are so many searches, each with a seed of its own; the vector that is "
                          "best on other lives is taken.", ge=1)
    spread: float = Field(
        0.7, description="The first population has this standard deviation around the logged policy's mean.", gt=0)
    floors: dict[str, float] = Field(
        {}, description="These behaviours change by no less than this, relative to the logged policy without its "
        "exploration.")
    seed: int = Field(5, description="The seed of the populations and of the persons' luck.", ge=0)

    @property
    def lives(self) -> int:
        """Simulated lives of all searches."""
        return self.persons * self.population * self.iterations * self.searches


class AbTestConfig(Config):
    """Config of the job."""

    simulation: str = Field("runs/simulation", description="This is the output of the job `simulate`.")
    policies: tuple[str, ...] = Field(
        ("logged", "cem", "two_stage=runs/fusion"),
        description="One a bucket, the first the base: `logged`, `cem`, a fusion bundle (NAME=PATH), fixed weights "
        "(NAME=click:1,like:0.3); `logged_mean`, `cem:mean`, `NAME:mean=PATH` do not explore.")
    explore: bool = Field(True, description="Every policy explores, as serving lets it; otherwise all but `logged`, "
                          "which explores as it logged, take their means.")
    output: str = Field("runs/ab_test", description="This directory gets `metrics.json` and CEM's bundle.")
    persons: int = Field(60_000, description="All buckets together hold so many simulated users.", ge=2)
    shares: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (), description="The buckets hold the persons in these proportions; equally where empty.")
    users: Who = Field(
        "everyone", description="Tastes are those of everyone, of the users in the session logs, or of those held out.")
    paired: bool = Field(
        False, description="Every person lives once under every policy with the same luck, as in no real test.")
    interval: Literal["fixed", "always_valid"] = Field(
        "fixed", description="A `fixed` interval is for one look at the end; `always_valid` holds at all looks at once "
        "and is wider.")
    looks: int = Field(
        1, description="The primary measure is looked at so often; more than once only with `interval: always_valid`.",
        ge=1)
    primary: str = Field("", description="This measure decides early; empty takes the long-term one, as watch time.")
    correction: Correction = Field(
        "holm", description="For every measure of every arm: `holm` bounds the chance of any false finding, "
        "`benjamini_hochberg` the share of false ones; `none` corrects nothing.")
    aa_runs: int = Field(0, description="So many A/A tests of the base come before the test; 0 for none.", ge=0)
    aa_persons: int = Field(2_000, description="Each A/A test takes so many fresh persons.", ge=8)
    level: float = Field(LEVEL, description="Intervals cover the truth with this probability.", gt=0, lt=1)
    seed: int = Field(9, description="The seed of buckets and luck.", ge=0)
    cem: CemConfig = Field(CemConfig(), description="This is how `cem` searches, where it is among the policies.")

    @model_validator(mode="after")
    def _fields_fit(self) -> Self:
        require(len(self.policies) >= 2, "policies", self.policies, "at least two")
        require(self.persons >= 2 * len(self.policies), "persons", self.persons, "an integer ≥ 2 per policy")
        require(not self.shares or len(self.shares) == len(self.policies), "shares", self.shares,
                f"{len(self.policies)} numbers, one a policy")
        require(self.looks == 1 or self.interval == "always_valid", "looks", self.looks,
                "1 with interval: fixed, which is wrong more often with every look; any number with "
                "interval: always_valid")
        return self


class TrainOnlineConfig(Config):
    """From a simulated world to a policy that learned in it."""

    simulation: str = Field(
        "runs/simulation", description="This is the output of the job `simulate`, whose declared behaviour policy is "
        "where the policy starts.")
    output: str = Field(
        "runs/online", description="This directory gets the bundle, the history and the checkpoint; a rerun goes on "
        "after the last complete iteration.", min_length=1)
    learning: LearningSettings = Field(
        default_factory=lambda: registry.settings("actor_critic"),
        description="An algorithm whose policy climbs (actor_critic and its kin), networks and rates are these.")
    online: OnlineSettings = Field(OnlineSettings(), description="The world is rolled like this.")
