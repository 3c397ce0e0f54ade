"""From exposures and a scorer to a world and its session logs: what the job `simulate` runs."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recfuse.bundle import newest_bundle, read_bundle
from recfuse.config import from_mapping, require
from recfuse.fusion.policies import FixedGaussian
from recfuse.logs.account import Account
from recfuse.logs.exposures import SCORER_SHARE, Exposures
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.registry import Registry, Scene
from recfuse.simulation.build import build_world
from recfuse.simulation.calibration import TOLERANCE, Calibration, within_tolerance
from recfuse.simulation.config import SimulateConfig
from recfuse.simulation.fidelity import Effect, fidelity, verdict
from recfuse.simulation.output import HOLDOUT, LOGS, WORLD, behaviour_policy, claimed
from recfuse.simulation.persons import held_out, persons_of
from recfuse.simulation.predictions import Scorer, predictor, task_names
from recfuse.simulation.response_fit import ResponseFit, fit_response
from recfuse.simulation.responses import FEED, Responses
from recfuse.simulation.session_logs import write_logs
from recfuse.simulation.sources import EXPLORATION, RESPONSES, read_source
from recfuse.simulation.world import World

SIGMA = 0.7
# AUC of response models as published by others for KuaiRand-Pure, with splits of their own; for orientation.
PUBLISHED_AUC = {"click": ".673", "long_view": ".712", "like": ".81", "comment": ".81", "forward": ".79",
                 "follow": ".79", "hate": ".75"}


@dataclass(frozen=True)
class SimulateResult:
    """Where everything is, and what it is worth.

    Attributes:
        logs, holdout, world: directories; holdout is None where none was asked for.
        requests: rows of the logs.
        metrics: response AUC, rates, calibration, fidelity; as in `metrics.json`.
        reused: an earlier run of the same config had built the world already.
    """

    logs: Path
    holdout: Path | None
    world: Path
    requests: int
    metrics: dict[str, Any]
    reused: bool

    def require(self, limit: float) -> None:
        """Refuses exposures of which more than the limit was quarantined when the world was built.

        Raises:
            InvalidFieldError: with the commonest reason.
        """
        if "account" in self.metrics:  # not in those of an earlier version
            Account(**self.metrics["account"]).require(limit, "exposures")

    @property
    def response_rows(self) -> list[tuple[str, ...]]:
        """behaviour, positives and AUC on the last day with its interval, the AUC published for models on the whole
        public data, mean predicted and observed rate; as text."""
        response = self.metrics["response"]
        published = PUBLISHED_AUC if self.metrics["responses"] == FEED.to_dict() else {}
        interval = {name: "–" if None in ends else "[{:.3f}, {:.3f}]".format(*ends)
                    for name, ends in response["interval"].items()}
        return [(name, f"{response['positives'][name]:,}", "–" if area is None else f"{area:.3f}", interval[name],
                 published.get(name, "–"), *(f"{rate:.5f}" for rate in response["rates"][name]))
                for name, area in response["auc"].items()]

    @property
    def calibration_rows(self) -> list[tuple[str, str, str, str, str, str]]:
        """scene, measure, simulated, real, their ratio, and whether it is within tolerance; as text."""
        return [(scene, name, f"{simulated:.5g}", f"{real:.5g}", f"{simulated / real:.3f}" if real else "–",
                 "yes" if within_tolerance(name, simulated, real, self._seconds) else "NO")
                for scene, name, simulated, real in self.metrics["calibration"]]

    @property
    def _seconds(self) -> str:
        return from_mapping(Responses, self.metrics["responses"]).seconds

    @property
    def effects(self) -> tuple[Effect, ...]:
        """What rankings change in the world and in the log."""
        nan = float("nan")
        return tuple(Effect(*names, *(nan if value is None else value for value in values))
                     for *names, simulated, real, low, high in self.metrics["fidelity"]
                     for values in [(simulated, real, low, high)])

    @property
    def fidelity_columns(self) -> tuple[str, ...]:
        """Heads of `fidelity_rows`."""
        return ("scene", "ranking", *dict.fromkeys(effect.measure for effect in self.effects))

    @property
    def fidelity_rows(self) -> list[tuple[str, ...]]:
        """scene, ranking, and per measure what it changes in the world, in the log and there between which ends."""
        rows: dict[tuple[str, str], list[str]] = {}
        for effect in self.effects:
            cell = (f"{effect.simulated:+.1%} | {effect.real:+.1%} [{100 * effect.low:+.1f}, {100 * effect.high:+.1f}]"
                    + ("  OFF" if effect.off else "") if effect.known else "–")
            rows.setdefault((effect.scene, effect.ranking), []).append(cell)
        return [(*names, *cells) for names, cells in rows.items()]

    @property
    def fidelity_verdict(self) -> str:
        """How many effects of rankings are as in the log, in a sentence."""
        return verdict(self.effects)

    @property
    def verdict(self) -> str:
        """How much of the calibration holds, in a sentence."""
        rows = self.metrics["calibration"]
        off = [f"{scene} {name}" for scene, name, simulated, real in rows
               if not within_tolerance(name, simulated, real, self._seconds)]
        slack = f" ({self._seconds.replace('_', ' ')} also within {TOLERANCE:g} s)" if self._seconds else ""
        return (f"{len(rows) - len(off)} of {len(rows)} measures within {TOLERANCE:.0%} of the log{slack}"
                + (f"; outside: {', '.join(off)}" if off else ""))


def load_scorer(path: str | Path) -> Scorer:
    """The scorer of a bundle, or of the newest in a directory.

    Raises:
        InvalidFieldError: it was trained on the response model's rows too, and would be graded by them.
    """
    bundle = read_bundle(newest_bundle(path, "scenes"), "scenes")
    share = bundle.manifest["training"].get("share", SCORER_SHARE)
    require(share <= SCORER_SHARE, "scorer", f"{bundle.version}, trained on a share of {share:g} of the rows",
            f"one of `train-scenes --share {SCORER_SHARE:g}`, which leaves rows to the response model")
    return SceneScorer.from_bundle(bundle)


def responses_of(config: SimulateConfig) -> Responses:
    """The declared ones, or those that the exposures are known for."""
    return config.responses or RESPONSES.get(config.exposures, FEED)


def declared_policy(config: SimulateConfig, responses: Responses, parameters: tuple[str, ...]) -> FixedGaussian:
    """The behaviour policy of the logs."""
    return behaviour_policy(responses.weights(config.behaviour_mu, parameters), sigma_of(config), parameters)


def sigma_of(config: SimulateConfig) -> float:
    """How far the behaviour policy explores: as declared, or as the exposures are known."""
    return config.behaviour_sigma or EXPLORATION.get(config.exposures, SIGMA)


def _registry(config: SimulateConfig, scorer: Scorer) -> Registry | None:
    """The labels of files that are known for nothing (`native`), by which they are checked."""
    if config.layout != "native":
        return None
    responses = responses_of(config)
    return Registry(scenes=tuple(Scene(name=name, tasks=responses.feedback) for name in scorer.tasks),
                    numbers=dict.fromkeys(responses.amounts, 1.0))


def simulate(config: SimulateConfig) -> SimulateResult:
    """Builds the world, or takes up that of an earlier run of the same config, and writes the logs.

    Raises:
        InvalidFieldError: the scorer or the exposures are none; or the output has something that this job did not
            write, or another run is writing to it. Nothing has been removed then.
    """
    scorer = load_scorer(config.scorer)
    with claimed(config.output) as output:
        run = hashlib.sha256(repr((config, scorer.version)).encode()).hexdigest()[:16]
        metrics = output.metrics(run)
        reused = metrics is not None
        if metrics is None:
            output.require_own()
            world, metrics = _build(config, scorer, run)
            output.begin()
            output.save(world, metrics)
        else:
            world = World.load(output.directory / WORLD)
        result = _write(config, world, run, metrics, reused)
        output.finish(config.holdout_persons > 0)
    return result


def _build(config: SimulateConfig, scorer: Scorer, run: str) -> tuple[World, dict[str, Any]]:
    """Makes the world, and what its fit and calibration are worth; nothing is written yet."""
    exposures = read_source(config.exposures, config.layout, registry=_registry(config, scorer)).exposures
    made = make_world(config, scorer, exposures)
    return made.world, {"run": run, "exposures": str(exposures.account), "account": asdict(exposures.account),
                        **_report(config, made)}


def _write(config: SimulateConfig, world: World, run: str, metrics: dict[str, Any], reused: bool) -> SimulateResult:
    """Writes what is missing of the logs and of the holdout."""
    output, version = Path(config.output), f"declared-{run}"
    policy = declared_policy(config, world.responses, world.vocabulary.fusion_parameters)
    out = held_out(world, config.held_out_users)
    rows = write_logs(world, policy, output / LOGS, persons=persons_of(~out, config.persons), seed=config.seed,
                      model_version=version, candidates=config.candidates)
    holdout = output / HOLDOUT if config.holdout_persons else None
    if holdout:
        write_logs(world, policy, holdout, persons=persons_of(out if out.any() else ~out, config.holdout_persons),
                   seed=config.seed + 1_000_003, model_version=version, candidates=config.candidates)
    return SimulateResult(output / LOGS, holdout, output / WORLD, rows, metrics, reused)


@dataclass(frozen=True)
class Made:
    """A world, and what it is worth."""

    world: World
    fit: ResponseFit
    calibration: Calibration
    effects: tuple[Effect, ...]


def make_world(config: SimulateConfig, scorer: Scorer, exposures: Exposures) -> Made:
    """Fits the response model, builds the world and holds what ranking changes in it against the exposures."""
    scenes, parameters, responses = tuple(scorer.tasks), task_names(scorer), responses_of(config)
    exposures = exposures.filter(np.isin(exposures.column("scene"), scenes))
    scores = scorer.score_exposures(exposures)
    predictions = np.nan_to_num(np.stack([scores[task] for task in parameters], 1), nan=0.0)
    fit = fit_response(exposures, scenes, config.response, predictions, responses)
    logged = declared_policy(config, responses, parameters)
    world, calibration = build_world(
        exposures, fit.model, predictor(scorer, exposures, scenes), parameters, logged,
        config.world, stack=fit.stack, responses=responses)
    terms = np.log(predictions + np.float32(world.vocabulary.offset))
    return Made(world, fit, calibration, fidelity(world, exposures, terms, logged.mu.astype(np.float64)))


def _report(config: SimulateConfig, made: Made) -> dict[str, Any]:
    """JSON values; there is no NaN in JSON."""
    fit, world = made.fit, made.world
    return {
        "response": {"rows": fit.rows, "test_rows": fit.test_rows,
                     "auc": {name: None if np.isnan(area) else area for name, area in fit.auc.items()},
                     "positives": fit.positives,
                     "interval": {name: [None if np.isnan(end) else end for end in ends]
                                  for name, ends in fit.interval.items()},
                     "rates": {name: list(pair) for name, pair in fit.rates.items()}},
        "calibration": [list(row) for row in made.calibration.rows],
        "fidelity": [[None if isinstance(value, float) and np.isnan(value) else value
                      for value in dataclasses.astuple(effect)] for effect in made.effects],
        "behaviour_policy": {"mu": world.responses.weights(config.behaviour_mu, world.vocabulary.fusion_parameters),
                             "sigma": sigma_of(config)},
        "responses": world.responses.to_dict(),
        "world": config.world.to_dict(), "held_out_users": config.held_out_users,
    }
