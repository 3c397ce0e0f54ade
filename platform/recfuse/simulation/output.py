"""What the job `simulate` leaves in its output, as others read it: run, world, declared policy, who was held out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from recfuse.fusion.policies import FixedGaussian
from recfuse.simulation.world import World

LOGS, HOLDOUT, WORLD, METRICS = "logs", "holdout", "world", "metrics.json"


def run_of(simulation: Path) -> str:
    """The hash of the config and the scorer that a simulation's world was built from."""
    return str(_metrics(simulation)["run"])


def held_out_share(simulation: Path) -> float:
    """The share of the world's users who never occur in a simulation's logs."""
    return float(_metrics(simulation).get("held_out_users", 0.0))


def behaviour_policy(mu: dict[str, float], sigma: float, parameters: tuple[str, ...]) -> FixedGaussian:
    """The declared behaviour policy, in the order of the fusion parameters.

    A parameter that the scorer lacks is left out: which rare tasks it has depends on its data.
    """
    return FixedGaussian(np.array([mu.get(name, 0.3) for name in parameters]), sigma)


def logged_policy(simulation: Path, world: World) -> FixedGaussian:
    """The policy that a simulation's logs were made by; `simulation`: output of the job."""
    declared = _metrics(simulation)["behaviour_policy"]
    return behaviour_policy(declared["mu"], declared["sigma"], world.vocabulary.fusion_parameters)


def _metrics(simulation: Path) -> dict[str, Any]:
    metrics: dict[str, Any] = json.loads((simulation / METRICS).read_text())
    return metrics
