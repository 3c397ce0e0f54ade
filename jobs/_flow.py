"""The steps of the demo, and its closing words: what `jobs/demo.py` runs."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pyarrow.parquet as pq

from recfuse.jobs import ab_test, evaluate, export, ingest, simulate, train_fusion, train_scenes
from recfuse.learning.training import TrainFusionResult
from recfuse.logs.exposures import SCORER_SHARE
from recfuse.logs.ingest import IngestResult
from recfuse.runtime.console import table, to_text
from recfuse.runtime.outputs import Output
from recfuse.runtime.screen import Screen, Step
from recfuse.scenes.result import TrainScenesResult
from recfuse.scenes.training.config import TrainingConfig
from recfuse.serving.config import ServingConfig
from recfuse.serving.endpoints import RECOMMEND
from recfuse.serving.local import Latency, example_request, measure, running
from recfuse.simulation.config import CEM, LOGGED_MEAN
from recfuse.simulation.simulate import SimulateResult
from recfuse.simulation.verdict import Comparison, to_span

if TYPE_CHECKING:
    from recfuse.jobs.demo import DemoConfig

SERVING = "serving.json"
LEARNED = "two_stage"
# The A/B test takes as many people as the logs hold, but within these.
_TESTED_PERSONS = (1_000, 15_000)


@dataclass(frozen=True)
class Made:
    """What the first steps made."""

    scenes: TrainScenesResult
    world: SimulateResult
    samples: IngestResult
    fusion: TrainFusionResult


def flow(config: DemoConfig, output: Output, screen: Screen) -> Path:
    """The steps and the closing words."""
    out, begin = Path(config.output), time.monotonic()
    made = learn(config, screen, config.exposures or "embedded", out)
    with screen.step("A/B test") as step:
        # As served: all of them explore, and what merely not exploring brings has its own row. Everybody lives once
        # under each policy, as in no real test, so that a few thousand people tell them apart.
        comparison = ab_test.AbTestConfig(
            simulation=f"{out}/simulation", output=f"{out}/ab_test", users="held_out", explore=True, paired=True,
            persons=sorted((*_TESTED_PERSONS, config.persons))[1],
            policies=("logged", LOGGED_MEAN, CEM, f"{LEARNED}={made.fusion.bundle}"), cem=config.cem)
        tested = ab_test.main(comparison)
        amount = tested.result.measures[0]
        step.figure = f"{amount} {to_span(tested.result.effect(LEARNED, amount))} over hand-tuned weights"
    publish_and_serve(config, output, screen, made)
    with screen.step("report") as step:
        evaluated = evaluate.main(evaluate.ReportConfig(
            fusion=f"{out}/fusion", holdout=str(made.world.holdout), samples=made.samples.samples,
            scenes=f"{out}/scenes", simulation=f"{out}/simulation", ab_test=f"{out}/ab_test",
            serving=f"{out}/{SERVING}", output=f"{out}/report", truth_persons=max(config.persons, 2)))
        step.figure = f"{evaluated.evaluation.off_policy.requests:,} held-out requests evaluated"
    words = Comparison.of(tested, made.samples.samples, LEARNED, CEM, config.cem.lives)
    close(config, screen, words, evaluated.page, time.monotonic() - begin)
    return evaluated.page


def learn(config: DemoConfig, screen: Screen, exposures: str, out: Path) -> Made:
    """From exposures to a fusion policy."""
    with screen.step("scorer") as step:
        scenes = train_scenes.main(train_scenes.TrainScenesConfig(
            exposures=exposures, output=f"{out}/scenes", share=SCORER_SHARE,
            training=TrainingConfig(bfloat16=False if config.portable else None)))
        step.figure, step.kept = scenes.headline, scenes.reused
    with screen.step("world") as step:
        world = simulate.main(simulate.SimulateConfig(
            exposures=exposures, scorer=str(scenes.bundle), output=f"{out}/simulation", persons=config.persons))
        step.figure = f"{world.requests:,} requests of {config.persons:,} people in session logs"
        step.kept = world.reused
    with screen.step("samples") as step:
        samples = ingest.main(ingest.IngestConfig(logs=str(world.logs), output=f"{out}/samples"))
        account = samples.account
        step.figure = f"{account.kept:,} of {account.rows_in:,} rows, {sum(account.quarantined.values()):,} quarantined"
        step.kept = samples.resumed
    with screen.step("policy") as step:
        fusion = train_fusion.main(train_fusion.TrainFusionConfig(
            samples=samples.samples, scorer=str(scenes.bundle), output=f"{out}/fusion"))
        say_policy(step, fusion)
    return Made(scenes, world, samples, fusion)


def publish_and_serve(config: DemoConfig, output: Output, screen: Screen, made: Made) -> None:
    """From bundles to answers over HTTP, and how long these take."""
    out = Path(config.output)
    with screen.step("models") as step:
        pointer = export.main(export.ExportConfig(
            exposures=config.exposures or "embedded", fusion=str(made.fusion.bundle), scenes=str(made.scenes.bundle),
            world=str(made.world.world), models=f"{out}/models"))
        if (catalogue := pointer.path(out / "models", "catalogue")) is not None:
            step.figure = f"{pq.read_metadata(catalogue).num_rows:,} items in the catalogue"
    with screen.step("serving") as step:
        latencies = serve_and_ask(f"{out}/models", f"{out}/decisions", made.scenes.largest_scene, config.requests)
        last = latencies[-1]
        step.figure = f"{last.percentile(50):.1f} ms, the median of {config.requests:,} answers of {last.endpoint}"
    output.replace(SERVING, json.dumps({"endpoint": last.endpoint, "latency_ms": last.milliseconds}))


def say_policy(step: Step, fusion: TrainFusionResult) -> None:
    """What replay says of it, or how many passes it took."""
    passes = sum(numbers.get("iterations", 0) for numbers in fusion.metrics.values())
    gate = fusion.metrics.get("gate")
    step.figure = f"{passes} passes" if gate is None else (
        f"{gate['gain']:+.1%} by replay over one vector for everybody; the "
        f"{'vector' if gate['publishes_vector'] else 'policy'} is published")
    step.kept = fusion.resumed_at == passes


def serve_and_ask(models: str, decisions: str, scene: str, requests: int) -> list[Latency]:
    """Serves on loopback, shows one answer, times the endpoints."""
    # Each model in a deployment of its own, as on a cluster; `make serve` takes the faster layout in one process.
    with running(ServingConfig(models=models, decision_log=decisions, layout="apart")) as url:
        print(f"serving on {url} (loopback)")
        body = example_request(models, candidates=50, seed=0) | {"scene": scene, "stage": "fine", "top_n": 5}
        answer = httpx.post(f"{url}{RECOMMEND.path}", json=body | {"explore": False},
                            timeout=30).raise_for_status().json()
        table(f"POST {RECOMMEND.path} → {answer['model_version']}", ["item", "score"],
              [(item["item_id"], f"{item['score']:.4f}") for item in answer["items"]])
        latencies = measure(url, models, scene, requests=requests)
    table(f"Serving, {requests} requests at each endpoint, one connection", ["endpoint", "p50 ms", "p95 ms"],
          [(latency.endpoint, f"{latency.percentile(50):.1f}", f"{latency.percentile(95):.1f}")
           for latency in latencies])
    return latencies


def close(config: DemoConfig, screen: Screen, words: Comparison, report: Path, seconds: float) -> None:
    """Says what the A/B test found, in a table and in words, and what to do next."""
    base = words.result.arms[0]
    screen.say(to_text(f"{base.users:,} simulated people whom no log held, the same lives under each policy; "
                       f"difference per person to hand-tuned weights ({base.name}), 95% intervals",
                       words.columns, words.rows(), screen.width))
    screen.say("\n".join(words.sentences()))
    models = f"{config.output}/models"
    serve = "make serve" if models == ServingConfig().models else f".venv/bin/recfuse serve --models {models}"
    screen.say("\n".join([
        f"\nin all {seconds:.0f} s; next:",
        f"  .venv/bin/python -m webbrowser {report}   the report: what was learned, can one believe it",
        f"  {serve}   these models over HTTP; README.md, Serving, has the first request",
        "  .venv/bin/recfuse init   a vocabulary from a session log of your own; docs/tutorial.md goes on"]))
