"""The arms of an A/B test in a world: a policy each, and how a text names one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from recfuse.bundle import newest_bundle, read_bundle
from recfuse.config import require
from recfuse.fusion.inference import FusionActor
from recfuse.fusion.policies import FixedGaussian, Policy
from recfuse.simulation.output import logged_policy
from recfuse.simulation.world import World

LOGGED, LOGGED_MEAN, CEM = "logged", "logged_mean", "cem"
_WEIGHTS = re.compile(r"(?:[\w.]+:-?[\d.]+,?)+")


@dataclass(frozen=True)
class Arm:
    """One bucket: a policy, and whether it samples its action or takes the mean."""

    name: str
    policy: Policy
    explore: bool = False


def read_arm(text: str, simulation: Path, world: World) -> Arm:
    """The arm that a text names.

    Args:
        text: `logged`, the declared behaviour policy as it logged; `logged_mean`, without its exploration; a fusion
            bundle or a directory of them, written PATH or NAME=PATH; or weights, written NAME=click:1,like:0.3.
        simulation: output of the job `simulate`, whose behaviour policy was declared there.

    Raises:
        InvalidFieldError: there is no such bundle, it is of another world, or a weight is of no fusion parameter.
    """
    if text in (LOGGED, LOGGED_MEAN):
        return Arm(text, logged_policy(simulation, world), explore=text == LOGGED)
    name, _, path = text.rpartition("=")
    if _WEIGHTS.fullmatch(path):
        return Arm(name or path, fixed_weights(path, world))
    actor = FusionActor.from_bundle(read_bundle(newest_bundle(path, "fusion"), "fusion"))
    given, wanted = ((vocabulary.state_features, vocabulary.candidate_features, vocabulary.fusion_parameters)
                     for vocabulary in (actor.vocabulary, world.vocabulary))
    require(given == wanted, f"policies[{name or path}]", given[2],
            f"a policy with the world's state features, candidate features and fusion parameters {wanted[2]}")
    return Arm(name or actor.version, actor)


def fixed_weights(text: str, world: World) -> FixedGaussian:
    """The policy of weights `PARAMETER:NUMBER,…` in every state; 0 where none is given."""
    given = {key: float(value) for key, value in (part.split(":") for part in text.strip(",").split(","))}
    parameters = world.vocabulary.fusion_parameters
    for key in given:
        require(key in parameters, f"policies: weight {key}", given[key], f"weights of {', '.join(parameters)}")
    # An arm without exploration never samples it, but a Gaussian needs some width.
    return FixedGaussian([given.get(name, 0.0) for name in parameters], 1.0)
