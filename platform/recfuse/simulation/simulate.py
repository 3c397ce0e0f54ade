"""From exposures and a scorer to a world and its session logs: what the job `simulate` runs."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recfuse.bundle import newest_bundle, read_bundle
from recfuse.errors import require
from recfuse.fusion.policies import FixedGaussian
from recfuse.logs.exposures import Exposures
from recfuse.logs.kuairand import read_exposures
from recfuse.scenes.inference import SceneScorer
from recfuse.simulation import exposures as embedded
from recfuse.simulation.build import Calibration, build_world
from recfuse.simulation.predictions import Scorer, predictor, task_names
from recfuse.simulation.response import ResponseConfig, ResponseFit, fit_response
from recfuse.simulation.rollout import write_logs
from recfuse.simulation.world import World, WorldConfig

logger = logging.getLogger("recfuse")
LOGS, HOLDOUT, WORLD, METRICS = "logs", "holdout", "world", "metrics.json"

# Hand-tuned, as an operator would: that people open an item and stay counts most, what they do with it a third of that.
HAND_TUNED = {"click": 1.0, "long_view": 1.0, "like": 0.3, "comment": 0.3, "forward": 0.3, "follow": 0.3}


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """Config of the job.

    Attributes:
        logs: a directory with KuaiRand files, or `embedded` for the generator.
        scorer: a bundle of kind `scenes`, or a directory that holds one.
        output: gets `logs/`, `holdout/`, `world/` and `metrics.json`.
        behaviour_mu: fusion parameter → mean of the declared behaviour policy; a parameter not named has 0.3.
        behaviour_sigma: its standard deviation, of every parameter.
        world: what the world assumes; response: how the response model is fitted.
        persons: simulated people in the logs; person p has the tastes of the world's user p mod `world.users`.
        holdout_persons: of a second log with other luck, for evaluation: nothing is fitted to it; 0 for none.
        seed: of the logs.
    """

    logs: str = "embedded"
    scorer: str = "runs/scenes/bundles"
    output: str = "runs/simulation"
    behaviour_mu: dict[str, float] = field(default_factory=lambda: dict(HAND_TUNED))
    behaviour_sigma: float = 0.7
    world: WorldConfig = field(default_factory=WorldConfig)
    response: ResponseConfig = field(default_factory=ResponseConfig)
    persons: int = 6_000
    holdout_persons: int = 2_000
    seed: int = 1

    def __post_init__(self) -> None:
        require(self.behaviour_sigma > 0, "behaviour_sigma", self.behaviour_sigma, "a number > 0")
        require(self.persons >= 1, "persons", self.persons, "an integer ≥ 1")
        require(self.holdout_persons >= 0, "holdout_persons", self.holdout_persons, "an integer ≥ 0")
        require(self.seed >= 0, "seed", self.seed, "an integer ≥ 0")


@dataclass(frozen=True)
class SimulateResult:
    """Where everything is, and what it is worth.

    Attributes:
        logs, holdout, world: directories; holdout is None where none was asked for.
        requests: rows of the logs.
        metrics: response AUC, rates, calibration; as in `metrics.json`.
        reused: an earlier run of the same config had built the world already.
    """

    logs: Path
    holdout: Path | None
    world: Path
    requests: int
    metrics: dict[str, Any]
    reused: bool

    @property
    def response_rows(self) -> list[tuple[str, str, str, str]]:
        """behaviour, AUC on the last day, mean predicted and observed rate; as text."""
        response = self.metrics["response"]
        return [(name, "–" if area is None else f"{area:.3f}", *(f"{rate:.5f}" for rate in response["rates"][name]))
                for name, area in response["auc"].items()]

    @property
    def calibration_rows(self) -> list[tuple[str, str, str, str]]:
        """scene, measure, simulated, real; as text."""
        return [(scene, name, f"{simulated:.5g}", f"{real:.5g}")
                for scene, name, simulated, real in self.metrics["calibration"]]


def load_scorer(path: str | Path) -> Scorer:
    """The scorer of a bundle, or of the newest in a directory."""
    return SceneScorer.from_bundle(read_bundle(newest_bundle(path, "scenes"), "scenes"))


def load_exposures(logs: str) -> Exposures:
    """The exposures of a directory, or of the embedded generator."""
    return embedded.generate() if logs == "embedded" else read_exposures(logs)


def simulate(config: SimulateConfig) -> SimulateResult:
    """Builds the world, or takes up that of an earlier run of the same config, and writes the logs."""
    scorer, output = load_scorer(config.scorer), Path(config.output)
    run = hashlib.sha256(repr((config, scorer.version)).encode()).hexdigest()[:16]
    metrics = _finished(output, run)
    reused = metrics is not None
    if metrics is None:
        for name in (LOGS, HOLDOUT, WORLD):  # of another run: its parts must not mix with ours
            shutil.rmtree(output / name, ignore_errors=True)
        output.mkdir(parents=True, exist_ok=True)
        exposures = load_exposures(config.logs)
        world, fit, calibration = make_world(config, scorer, exposures)
        world.save(output / WORLD)
        metrics = {"run": run, "exposures": str(exposures.account), **_report(config, fit, calibration)}
        (output / METRICS).write_text(json.dumps(metrics, indent=1, allow_nan=False))
    else:
        world = World.load(output / WORLD)
    policy = behaviour_policy(config.behaviour_mu, config.behaviour_sigma, world.vocabulary.fusion_parameters)
    version = f"declared-{run}"
    rows = write_logs(world, policy, output / LOGS, persons=config.persons, seed=config.seed, model_version=version)
    holdout = output / HOLDOUT if config.holdout_persons else None
    if holdout:
        write_logs(world, policy, holdout, persons=config.holdout_persons, seed=config.seed + 1_000_003,
                   model_version=version)
    return SimulateResult(output / LOGS, holdout, output / WORLD, rows, metrics, reused)


def make_world(config: SimulateConfig, scorer: Scorer,
               exposures: Exposures) -> tuple[World, ResponseFit, Calibration]:
    """Fits the response model and builds the world."""
    scenes, parameters = tuple(scorer.tasks), task_names(scorer)
    fit = fit_response(exposures, scenes, config.response)
    logged = behaviour_policy(config.behaviour_mu, config.behaviour_sigma, parameters)
    world, calibration = build_world(exposures, fit.model, predictor(scorer, exposures, scenes), parameters, logged,
                                     config.world)
    return world, fit, calibration


def behaviour_policy(mu: dict[str, float], sigma: float, parameters: tuple[str, ...]) -> FixedGaussian:
    """The declared behaviour policy, in the order of the fusion parameters.

    A parameter that the scorer lacks is left out: which rare tasks it has depends on its data.
    """
    return FixedGaussian(np.array([mu.get(name, 0.3) for name in parameters]), sigma)


def _finished(output: Path, run: str) -> dict[str, Any] | None:
    path = output / METRICS
    if not path.is_file():
        return None
    metrics: dict[str, Any] = json.loads(path.read_text())
    return metrics if metrics.get("run") == run else None


def _report(config: SimulateConfig, fit: ResponseFit, calibration: Calibration) -> dict[str, Any]:
    """JSON values; there is no NaN in JSON."""
    return {
        "response": {"rows": fit.rows, "test_rows": fit.test_rows,
                     "auc": {name: None if np.isnan(area) else area for name, area in fit.auc.items()},
                     "rates": {name: list(pair) for name, pair in fit.rates.items()}},
        "calibration": [list(row) for row in calibration.rows],
        "behaviour_policy": {"mu": config.behaviour_mu, "sigma": config.behaviour_sigma},
        "world": dataclasses.asdict(config.world),
    }
