"""The arms of an A/B test in a world: a policy each, and how a text names one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recfuse.behaviours import Vocabulary
from recfuse.bundle import newest_bundle, read_bundle
from recfuse.config import require
from recfuse.fusion.inference import FusionActor
from recfuse.fusion.policies import FixedGaussian, Policy
from recfuse.simulation.config import LOGGED, LOGGED_MEAN, MEAN
from recfuse.simulation.output import logged_policy
from recfuse.simulation.session_logs import STAGE
from recfuse.simulation.world import World

_WEIGHTS = re.compile(r"(?:[\w.]+:-?[\d.]+,?)+")


@dataclass(frozen=True)
class Arm:
    """One bucket: a policy, and whether it samples its action or takes the mean.

    Attributes:
        vocabulary: by which it reads states and ranks; None for the world's own.
    """

    name: str
    policy: Policy
    explore: bool = False
    vocabulary: Vocabulary | None = None

    def in_world(self, world: World) -> World:
        """The world as this arm reads and ranks it."""
        return world if self.vocabulary is None else world.under(self.vocabulary)


def read_arm(text: str, simulation: Path, world: World, explore: bool = True) -> Arm:
    """The arm that a text names.

    Args:
        text: `logged`, the declared behaviour policy, which explores as it logged; `logged_mean`, its mean; a fusion
            bundle or a directory of them, written PATH or NAME=PATH; or weights, written NAME=click:1,like:0.3.
            `NAME:mean=…` takes the mean of either.
        simulation: output of the job `simulate`, whose behaviour policy was declared there.
        explore: a bundle or weights sample their actions, as serving does, unless the name asks for the mean.

    Raises:
        InvalidFieldError: there is no such bundle, it is of another world, or a weight is of no fusion parameter.
    """
    if text in (LOGGED, LOGGED_MEAN):
        return Arm(text, logged_policy(simulation, world), explore=text == LOGGED)
    name, _, path = text.rpartition("=")
    explore = explore and not name.endswith(MEAN)
    if _WEIGHTS.fullmatch(path):
        return Arm(name or path, explored_alike(fixed_weights(path, world), logged_policy(simulation, world)), explore)
    actor = FusionActor.from_bundle(read_bundle(newest_bundle(path, "fusion"), "fusion"))
    own = actor.vocabulary
    given, wanted = ((vocabulary.state_features, vocabulary.fusion_parameters)
                     for vocabulary in (own, world.vocabulary))
    require(given == wanted, f"policies[{name or path}]", given[1],
            f"a policy with the world's state features and fusion parameters {wanted[1]}")
    return Arm(name or actor.version, actor.of(STAGE), explore, vocabulary=own)


def explored_alike(vector: ArrayLike, logged: FixedGaussian) -> FixedGaussian:
    """The direction of a vector [M] with the length of the logged policy's mean, and with its sigma.

    The length changes no ranking, but it says how far exploration turns one: this one's turn as far as the logged ones.
    """
    weights = np.asarray(vector, np.float64)
    length, given = float(np.linalg.norm(weights)), float(np.linalg.norm(logged.mu))
    return FixedGaussian(weights * (given / length if length > 0 and given > 0 else 1.0), logged.sigma)


def fixed_weights(text: str, world: World) -> NDArray[np.float64]:
    """The vector [M] of weights `PARAMETER:NUMBER,…`; 0 where none is given."""
    given = {key: float(value) for key, value in (part.split(":") for part in text.strip(",").split(","))}
    parameters = world.vocabulary.fusion_parameters
    for key in given:
        require(key in parameters, f"policies: weight {key}", given[key], f"weights of {', '.join(parameters)}")
    return np.array([given.get(name, 0.0) for name in parameters])
