"""What the job `simulate` leaves in its output, as others read it: run, world, declared policy, who was held out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recfuse.config import InvalidFieldError, require
from recfuse.fusion.policies import FixedGaussian
from recfuse.runtime.outputs import Output, claim
from recfuse.simulation.world import ARRAYS_FILE, VOCABULARY_FILE, WORLD_FILE, World

LOGS, HOLDOUT, WORLD, METRICS = "logs", "holdout", "world", "metrics.json"
_PARTS = ("part-[0-9][0-9][0-9][0-9][0-9].parquet", "_part-*", VOCABULARY_FILE)
_WRITTEN = {WORLD: (ARRAYS_FILE, WORLD_FILE, VOCABULARY_FILE), LOGS: _PARTS, HOLDOUT: _PARTS}


@dataclass(frozen=True)
class SimulationOutput:
    """The directories that the job writes anew, held by it alone.

    Attributes:
        directory: of them all, and of `metrics.json`.
        parts: name → the claimed directory; none of the three is there before the job makes it.
    """

    directory: Path
    parts: dict[str, Output]

    def metrics(self, run: str) -> dict[str, Any] | None:
        """Those of a finished world of this run; None where there is none."""
        metrics = require_json(self.directory / METRICS, "run")
        return metrics if metrics.get("run") == run and self.parts[WORLD].finished else None

    def require_own(self) -> None:
        """Refuses what the job did not write, before anything is made."""
        for part in self.parts.values():
            part.require_own()

    def begin(self) -> None:
        """Removes what an earlier run wrote."""
        self.require_own()
        # Without it, parts that are half written belong to no run.
        (self.directory / METRICS).unlink(missing_ok=True)
        for part in self.parts.values():
            part.begin()

    def save(self, world: World, metrics: dict[str, Any]) -> None:
        """Writes the world, and then what says that it is whole."""
        world.save(self.directory / WORLD)
        self.parts[WORLD].finish()
        write_json(self.directory / METRICS, metrics, "run")

    def finish(self, with_holdout: bool) -> None:
        """Marks the logs as whole; without a holdout its directory goes, if nothing is in it."""
        for name in (LOGS, HOLDOUT):
            # What somebody has put beside the parts stays theirs.
            if not self.parts[name].foreign():
                self.parts[name].finish()
        if not with_holdout:
            self.parts[HOLDOUT].remove_empty()


@contextmanager
def claimed(directory: str | Path) -> Iterator[SimulationOutput]:
    """Inside, the output of the job `simulate` is its alone; nothing in it is touched before `begin`.

    Raises:
        InvalidFieldError: another run is writing there, or a directory that the job needs is a file.
    """
    directory = Path(directory)
    require(not directory.exists() or directory.is_dir(), "output", str(directory), "a directory")
    require_json(directory / METRICS, "run")
    with ExitStack() as stack:
        yield SimulationOutput(directory, {
            name: stack.enter_context(claim(str(directory / name), "simulate", patterns=written))
            for name, written in _WRITTEN.items()})


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
    path = simulation / METRICS
    try:
        metrics: Any = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidFieldError("simulation", str(path), f"what simulate wrote ({error})") from None
    require(isinstance(metrics, dict) and {"run", "behaviour_policy"} <= set(metrics), "simulation", str(path),
            "what simulate wrote")
    return dict(metrics)


def write_json(path: Path, value: Any, marks: str) -> None:
    """Writes a result whole or not at all, and over nothing but an earlier one of its kind.

    Args:
        marks: key that every such result has.

    Raises:
        InvalidFieldError: a file of this name is something else.
    """
    require_json(path, marks)
    temporary = path.with_name(f"{path.name}.writing")
    temporary.write_text(json.dumps(value, indent=1, allow_nan=False))
    os.replace(temporary, path)


def require_json(path: Path, marks: str) -> dict[str, Any]:
    """An earlier result, which has the key; empty where there is no file.

    Raises:
        InvalidFieldError: the file is something else.
    """
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        value = None
    if not isinstance(value, dict) or marks not in value:
        raise InvalidFieldError("output", str(path), "no file of this name, or one that this job wrote")
    return value
