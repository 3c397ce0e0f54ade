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
from recfuse.config import require
from recfuse.fusion.policies import FixedGaussian
from recfuse.logs.exposures import Exposures
from recfuse.scenes.inference import SceneScorer
from recfuse.simulation.build import TOLERANCE, Calibration, build_world, within_tolerance
from recfuse.simulation.predictions import Scorer, predictor, task_names
from recfuse.simulation.response import ResponseConfig, ResponseFit, fit_response
from recfuse.simulation.rollout import write_logs
from recfuse.simulation.sources import read_source
from recfuse.simulation.uniform import mix, uniform
from recfuse.simulation.world import World, WorldConfig

logger = logging.getLogger("recfuse")
LOGS, HOLDOUT, WORLD, METRICS = "logs", "holdout", "world", "metrics.json"

# AUC of response models as published by others for KuaiRand-Pure, with splits of their own; for orientation.
PUBLISHED_AUC = {"click": ".673", "long_view": ".712", "like": ".81", "comment": ".81", "forward": ".79",
                 "follow": ".79", "hate": ".75"}

# Hand-tuned, as an operator would: that people open an item and stay counts most, what they do with it a third of that.
HAND_TUNED = {"click": 1.0, "long_view": 1.0, "like": 0.3, "comment": 0.3, "forward": 0.3, "follow": 0.3}


@dataclass(frozen=True, kw_only=True)
class SimulateConfig:
    """Config of the job.

    Attributes:
        logs: a directory with KuaiRand files; `embedded` or `shop` for a generator.
        scorer: a bundle of kind `scenes`, or a directory that holds one.
        output: gets `logs/`, `holdout/`, `world/` and `metrics.json`.
        behaviour_mu: fusion parameter → mean of the declared behaviour policy; a parameter not named has 0.3.
        behaviour_sigma: its standard deviation, of every parameter.
        world: what the world assumes; response: how the response model is fitted.
        persons: simulated people in the logs; person p has the tastes of the world's user p mod `world.users`.
        held_out_users: share of the world's users who never occur in the logs.
        holdout_persons: of a second log with other luck, of the users held out where there are any, for evaluation:
            nothing is fitted to it; 0 for none.
        seed: of the logs.
    """

    logs: str = "embedded"
    scorer: str = "runs/scenes/bundles"
    output: str = "runs/simulation"
    behaviour_mu: dict[str, float] = field(default_factory=lambda: dict(HAND_TUNED))
    behaviour_sigma: float = 0.7
    world: WorldConfig = field(default_factory=WorldConfig)
    response: ResponseConfig = field(default_factory=ResponseConfig)
    persons: int = 18_000
    held_out_users: float = 0.2
    holdout_persons: int = 2_000
    seed: int = 1

    def __post_init__(self) -> None:
        require(self.behaviour_sigma > 0, "behaviour_sigma", self.behaviour_sigma, "a number > 0")
        require(self.persons >= 1, "persons", self.persons, "an integer ≥ 1")
        require(0 <= self.held_out_users < 1, "held_out_users", self.held_out_users, "a share in [0, 1)")
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
    def response_rows(self) -> list[tuple[str, ...]]:
        """behaviour, positives and AUC on the last day with its interval, the AUC published for models on the whole
        public data, mean predicted and observed rate; as text."""
        response = self.metrics["response"]
        interval = {name: "–" if None in ends else "[{:.3f}, {:.3f}]".format(*ends)
                    for name, ends in response["interval"].items()}
        return [(name, f"{response['positives'][name]:,}", "–" if area is None else f"{area:.3f}", interval[name],
                 PUBLISHED_AUC[name], *(f"{rate:.5f}" for rate in response["rates"][name]))
                for name, area in response["auc"].items()]

    @property
    def calibration_rows(self) -> list[tuple[str, str, str, str, str, str]]:
        """scene, measure, simulated, real, their ratio, and whether it is within tolerance; as text."""
        return [(scene, name, f"{simulated:.5g}", f"{real:.5g}", f"{simulated / real:.3f}" if real else "–",
                 "yes" if within_tolerance(name, simulated, real) else "NO")
                for scene, name, simulated, real in self.metrics["calibration"]]

    @property
    def verdict(self) -> str:
        """How much of the calibration holds, in a sentence."""
        rows = self.metrics["calibration"]
        off = [f"{scene} {name}" for scene, name, *values in rows if not within_tolerance(name, *values)]
        return (f"{len(rows) - len(off)} of {len(rows)} measures within {TOLERANCE:.0%} of the log (watch time also "
                f"within {TOLERANCE:g} s)" + (f"; outside: {', '.join(off)}" if off else ""))


def load_scorer(path: str | Path) -> Scorer:
    """The scorer of a bundle, or of the newest in a directory."""
    return SceneScorer.from_bundle(read_bundle(newest_bundle(path, "scenes"), "scenes"))


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
        exposures = read_source(config.logs).exposures
        world, fit, calibration = make_world(config, scorer, exposures)
        world.save(output / WORLD)
        metrics = {"run": run, "exposures": str(exposures.account), **_report(config, fit, calibration)}
        (output / METRICS).write_text(json.dumps(metrics, indent=1, allow_nan=False))
    else:
        world = World.load(output / WORLD)
    policy = behaviour_policy(config.behaviour_mu, config.behaviour_sigma, world.vocabulary.fusion_parameters)
    version = f"declared-{run}"
    out = held_out(world, config.held_out_users)
    rows = write_logs(world, policy, output / LOGS, persons=persons_of(~out, config.persons), seed=config.seed,
                      model_version=version)
    holdout = output / HOLDOUT if config.holdout_persons else None
    if holdout:
        write_logs(world, policy, holdout, persons=persons_of(out if out.any() else ~out, config.holdout_persons),
                   seed=config.seed + 1_000_003, model_version=version)
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


def held_out(world: World, share: float) -> np.ndarray:
    """bool[U]: the users who are held out of the logs, by a hash of their ids: the same in every run and world."""
    return uniform(mix(0x4E1D0, world.user_ids)) < share


def persons_of(users: np.ndarray, count: int) -> np.ndarray:
    """The first `count` persons with the tastes of the users in the mask bool[U], int64[count]; see `rollout`."""
    chosen = np.flatnonzero(users)
    require(len(chosen) > 0, "users", 0, "a mask with at least one user")
    number = np.arange(count)
    persons: np.ndarray = chosen[number % len(chosen)] + len(users) * (number // len(chosen))
    return persons


def behaviour_policy(mu: dict[str, float], sigma: float, parameters: tuple[str, ...]) -> FixedGaussian:
    """The declared behaviour policy, in the order of the fusion parameters.

    A parameter that the scorer lacks is left out: which rare tasks it has depends on its data.
    """
    return FixedGaussian(np.array([mu.get(name, 0.3) for name in parameters]), sigma)


def logged_policy(simulation: Path, world: World) -> FixedGaussian:
    """The policy that a simulation's logs were made by; `simulation`: output of the job."""
    declared = json.loads((simulation / METRICS).read_text())["behaviour_policy"]
    return behaviour_policy(declared["mu"], declared["sigma"], world.vocabulary.fusion_parameters)


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
                     "positives": fit.positives,
                     "interval": {name: [None if np.isnan(end) else end for end in ends]
                                  for name, ends in fit.interval.items()},
                     "rates": {name: list(pair) for name, pair in fit.rates.items()}},
        "calibration": [list(row) for row in calibration.rows],
        "behaviour_policy": {"mu": config.behaviour_mu, "sigma": config.behaviour_sigma},
        "world": dataclasses.asdict(config.world), "held_out_users": config.held_out_users,
    }
