"""The main job end to end: logs → samples → scorer → policy → evaluation → bundles → ranked answers over HTTP.

Every step is a job of its own (`python jobs/NAME.py`); here they run one after the other on one Ray. A rerun takes up
what is finished.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from pydantic import Field

from jobs import ab_test, evaluate, export, ingest, simulate, train_fusion, train_scenes
from recfuse.config import Config
from recfuse.runtime.cluster import cluster
from recfuse.runtime.console import start, table
from recfuse.runtime.outputs import Output, claim
from recfuse.scenes.training.config import TrainingConfig
from recfuse.simulation.arms import CEM, LOGGED_MEAN
from recfuse.simulation.cem import CemConfig
from recfuse.simulation.verdict import verdict
from serving.config import ServingConfig
from serving.local import Latency, example_request, measure, running

SCENE = "1"  # the largest page of the logs
SERVING = "serving.json"
LEARNED = "two_stage"


class DemoConfig(Config):
    """Config of the demo."""

    logs: str = Field(
        "", description="A directory with KuaiRand files is read; empty takes the embedded simulator's exposures.")
    output: str = Field("runs/demo", description="Everything that is made lies beneath this directory.")
    persons: int = Field(18_000, description="The simulated logs hold so many people.", ge=1)
    requests: int = Field(200, description="So many HTTP requests are timed at each endpoint.", ge=1)
    cem: CemConfig = Field(CemConfig(), description="The cross-entropy method searches the simulator so.")
    portable: bool = Field(False, description="Nothing is rounded to bfloat16 by itself, so that processors with and "
                           "without it agree; `make demo PORTABLE=1` also asks for the same instructions.")


def main(config: DemoConfig) -> Path:
    """Runs the whole flow and returns the path of the report."""
    logs, out = config.logs or "embedded", Path(config.output)
    begin = time.monotonic()
    with claimed(config.output) as output, cluster():
        with step("1/8 train the multi-scene scorer"):
            scenes = train_scenes.main(train_scenes.TrainScenesConfig(
                logs=logs, output=f"{out}/scenes",
                training=TrainingConfig(bfloat16=False if config.portable else None)))
        with step("2/8 fit the response model, simulate sessions, write session logs"):
            world = simulate.main(simulate.SimulateConfig(
                logs=logs, scorer=str(scenes.bundle), output=f"{out}/simulation", persons=config.persons))
        with step("3/8 ingest the session logs"):
            samples = ingest.main(ingest.IngestConfig(logs=str(world.logs), output=f"{out}/samples"))
        with step("4/8 train the two-stage fusion policy"):
            fusion = train_fusion.main(train_fusion.TrainFusionConfig(
                samples=samples.samples, scorer=str(scenes.bundle), output=f"{out}/fusion"))
        with step("5/8 A/B test in the simulator"):
            # As served: all of them explore, and what merely not exploring brings has its own row. Everybody lives once
            # under each policy, as in no real test, so that a few thousand people tell them apart.
            comparison = ab_test.AbTestConfig(
                simulation=f"{out}/simulation", output=f"{out}/ab_test", users="held_out", explore=True, paired=True,
                persons=15_000,
                policies=("logged", LOGGED_MEAN, CEM, f"{LEARNED}={fusion.bundle}"), cem=config.cem)
            tested = ab_test.main(comparison)
        with step("6/8 publish the bundles"):
            export.main(export.ExportConfig(
                logs=logs, fusion=str(fusion.bundle), scenes=str(scenes.bundle), world=str(world.world),
                models=f"{out}/models"))
        with step("7/8 serve, ask, measure"):
            latencies = serve_and_ask(f"{out}/models", f"{out}/decisions", config.requests)
        with step("8/8 evaluate on held-out logs, write the report"):
            output.replace(SERVING, json.dumps(
                {"endpoint": latencies[-1].endpoint, "latency_ms": latencies[-1].milliseconds}))
            evaluated = evaluate.main(evaluate.ReportConfig(
                fusion=f"{out}/fusion", holdout=str(world.holdout), samples=samples.samples,
                scenes=f"{out}/scenes", simulation=f"{out}/simulation", ab_test=f"{out}/ab_test",
                serving=f"{out}/{SERVING}", output=f"{out}/report", truth_persons=max(config.persons, 2)))
    close(config, scenes, tested, comparison.cem.lives, latencies, evaluated.page, time.monotonic() - begin)
    return evaluated.page


@contextmanager
def claimed(directory: str) -> Iterator[Output]:
    """Inside, the directory is this run's alone.

    Raises:
        InvalidFieldError: another run writes to it, or it has a serving.json that no demo wrote.
    """
    with claim(directory, "demo") as output:
        output.require_replaceable(SERVING)
        yield output


@contextmanager
def step(title: str) -> Iterator[None]:
    """Frames a step with its title and its time."""
    print(f"\n── {title}", flush=True)
    begin = time.monotonic()
    yield
    print(f"── done in {time.monotonic() - begin:.1f} s", flush=True)


def serve_and_ask(models: str, decisions: str, requests: int) -> list[Latency]:
    """Serves on loopback, shows one answer, times the endpoints."""
    # Each model in a deployment of its own, as on a cluster; `make serve` takes the faster layout in one process.
    with running(ServingConfig(models=models, decision_log=decisions, layout="apart")) as url:
        print(f"serving on {url} (loopback)")
        body = example_request(models, candidates=50, seed=0) | {"scene": SCENE, "stage": "fine", "top_n": 5}
        answer = httpx.post(f"{url}/v1/recommend", json=body | {"explore": False}, timeout=30).raise_for_status().json()
        table(f"POST /v1/recommend → {answer['model_version']}", ["item", "score"],
              [(item["item_id"], f"{item['score']:.4f}") for item in answer["items"]])
        return measure(url, models, SCENE, requests=requests)


def close(
    config: DemoConfig,
    scenes: train_scenes.TrainScenesResult,
    tested: ab_test.AbTestResult,
    lives: int,
    latencies: list[Latency],
    report: Path,
    seconds: float,
) -> None:
    """Prints the closing tables, what the A/B test says in words, and the path of the report.

    Args:
        lives: that CEM searched.
    """
    base, *others = tested.result.arms
    table("In the simulator, on users whom no log held: difference per user to the logged policy, the same "
          f"lives under each, 95% intervals; all but {LOGGED_MEAN} explore, as when serving",
          ["behaviour", f"{base.name} (mean)", *(arm.name for arm in others)], tested.result.rows())
    print("\n".join(verdict(tested.result, LEARNED, CEM, lives, tested.reach)))
    table(f"Scorer on the last day ({scenes.test_day})", ["scene", "task", "rows", "AUC"],
          [(metric.scene, metric.task, f"{metric.rows:,}", f"{metric.auc:.4f}") for metric in scenes.metrics])
    table(f"Serving, {config.requests} requests at each endpoint, one connection", ["endpoint", "p50 ms", "p95 ms"],
          [(latency.endpoint, f"{latency.percentile(50):.1f}", f"{latency.percentile(95):.1f}")
           for latency in latencies])
    print(f"\nreport: {report}\n{seconds:.0f} s in all")


if __name__ == "__main__":
    try:
        main(start(DemoConfig, description=__doc__))
    except KeyboardInterrupt:
        print("\ninterrupted; a rerun takes up what is finished", file=sys.stderr)
        sys.exit(130)
