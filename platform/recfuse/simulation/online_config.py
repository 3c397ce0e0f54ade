"""What a user may say about learning in a simulated world."""

from __future__ import annotations

from pydantic import Field

from recfuse.config import Config
from recfuse.learning import registry
from recfuse.learning.config import OnlineSettings
from recfuse.learning.settings import LearningSettings


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
