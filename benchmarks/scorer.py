"""The multi-scene scorer against published MMoEs on real logs: training speed and test metrics, side by side.

Every contender gets the same rows, fields, widths, batches, epochs and threads, and its own trainer with its default
optimizer. Peers live in environments of their own, which are created at the first run and never touch the project's.
Rounds are interleaved (one training of each contender a round, each in a fresh process, seed = round), so that a busy
minute of the machine hits all alike; the table shows medians over rounds, with the range.

    python -m benchmarks.scorer --logs DIRECTORY --rounds 3
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from recfuse.console import log_to_terminal, table
from recfuse.evaluation.ranking import auc, gauc, predicted_over_observed
from recfuse.logs.exposures import Exposures
from recfuse.logs.kuairand import read_exposures
from recfuse.scenes.dataset import encode_exposures, scene_rows
from recfuse.scenes.features import Feature, FeatureEncoder, declared_features
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.model import ModelConfig
from recfuse.scenes.registry import Registry, Scene
from recfuse.scenes.trainer import Problem, TrainingConfig, fit_in_process, prepare, recent_shift

ROOT = Path(__file__).parents[1]
TASKS = ("click", "long_view")
REGISTRY = Registry(scenes=tuple(Scene(name=tab, tasks=TASKS) for tab in ("0", "1", "2", "4", "6")))
# deepctr-torch imports `requests` without declaring it.
PEERS = {"torch-rechub": ("torch-rechub==0.9.0",), "deepctr-torch": ("deepctr-torch==0.3.0", "requests")}
OURS = {
    "ours, no history": ModelConfig(history_length=0),
    "ours": ModelConfig(),
}


@dataclass(frozen=True, kw_only=True)
class ScoreboardConfig:
    """Attributes:
        logs: a directory with KuaiRand files.
        output: gets the environments, the shared data and `scorer.json`.
        rounds: trainings of every contender.
        last_training_day: yyyymmdd; the days after it test.
        batch_size, threads: of every contender.
        contenders: which take part.
        child: internal, one training of one of ours: its name and seed.
    """

    logs: str
    output: str = "runs/benchmarks"
    rounds: int = 3
    last_training_day: int = 20220503
    batch_size: int = 2048
    threads: int = 2
    contenders: tuple[str, ...] = (*OURS, *PEERS)
    child: tuple[str, int] | None = None


@dataclass(frozen=True)
class Round:
    """One training: seconds, and the test metrics by task."""

    seconds: float
    auc: tuple[float, ...]
    gauc: tuple[float, ...]
    calibration: tuple[float, ...]
    versions: str


def main(config: ScoreboardConfig) -> None:
    """Runs the scoreboard, or one training of it."""
    if config.child is not None:
        train_ours(config, *config.child)
        return
    log_to_terminal()
    output = (ROOT / config.output).resolve()
    exposures, training = rows_of(config)
    features = fields(exposures)
    write_shared(output, exposures, training, features)
    pythons = {name: environment(output, name) for name in config.contenders if name in PEERS}
    rounds: dict[str, list[Round]] = {name: [] for name in config.contenders}
    for seed in range(config.rounds):
        for name in config.contenders:
            result = run(config, output, name, pythons.get(name), seed)
            rounds[name].append(measure(output, exposures, ~training, result))
            latest = rounds[name][-1]
            areas = ", ".join(f"{task} {area:.4f}" for task, area in zip(TASKS, latest.auc, strict=True))
            print(f"round {seed + 1}: {name}: {training.sum() / latest.seconds:,.0f} samples/s; AUC {areas}; "
                  f"load {os.getloadavg()[0]:.1f}", flush=True)
    show(config, rounds, int(training.sum()), int((~training).sum()), len(features), output)


def rows_of(config: ScoreboardConfig) -> tuple[Exposures, np.ndarray]:
    """The exposures of the five pages, and which rows train."""
    exposures = scene_rows(read_exposures(config.logs), REGISTRY)
    return exposures, exposures.column("day") <= config.last_training_day


def fields(exposures: Exposures) -> tuple[Feature, ...]:
    """Categories alone, which every contender reads the same way."""
    return tuple(feature for feature in declared_features(exposures) if feature.kind != "numeric")


def problem_of(config: ScoreboardConfig, exposures: Exposures, training: np.ndarray, features: tuple[Feature, ...],
               model: ModelConfig, seed: int) -> Problem:
    settings = TrainingConfig(workers=0, batch_size=config.batch_size, threads=config.threads, seed=seed)
    return prepare(exposures, training, REGISTRY, model, settings, features)


def write_shared(output: Path, exposures: Exposures, training: np.ndarray, features: tuple[Feature, ...]) -> None:
    """Encodes the fields once, by our encoder fitted on the training rows, for all peers."""
    encoder = FeatureEncoder.fit(features, exposures, training, 0)
    rows = encode_exposures(exposures, REGISTRY, encoder)
    offsets = np.array([one.offset for one in encoder.fitted])
    output.mkdir(parents=True, exist_ok=True)
    np.savez(output / "scorer.npz", codes=(rows.ids() - offsets).astype(np.int32), labels=rows.labels,
             sizes=np.array([one.size for one in encoder.fitted]), training=training)


def environment(output: Path, name: str) -> Path:
    """The Python of a peer's own environment, made where it is missing."""
    directory = output / "environments" / name
    python = directory / "bin" / "python"
    installed = directory / ".installed"
    if not installed.exists():
        print(f"making the environment of {name} (once)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", directory], check=True)
        subprocess.run([python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet",
                        f"torch=={torch.__version__.split('+')[0]}", *PEERS[name], "setuptools"], check=True)
        installed.touch()
    return python


def run(config: ScoreboardConfig, output: Path, name: str, python: Path | None, seed: int) -> dict[str, Any]:
    """One training in a process of its own; its last line of output is its result."""
    threads = {"OMP_NUM_THREADS": str(config.threads), "PYTHONPATH": f"{ROOT}/platform{os.pathsep}{ROOT}"}
    if python is None:
        command = [sys.executable, "-m", "benchmarks.scorer", "--logs", str(Path(config.logs).resolve()),
                   "--output", str(output), "--batch-size", str(config.batch_size), "--threads", str(config.threads),
                   "--last-training-day", str(config.last_training_day), "--child", name, str(seed)]
    else:
        threads.pop("PYTHONPATH")
        command = [str(python), str(Path(__file__).with_name("scorer_peer.py")), name, str(output / "scorer.npz"),
                   str(output / "predictions.npy"), str(config.batch_size), str(config.threads), str(seed)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | threads, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def train_ours(config: ScoreboardConfig, name: str, seed: int) -> None:
    """A child's work: trains one of ours, writes its test predictions, prints its seconds."""
    torch.set_num_threads(config.threads)
    exposures, training = rows_of(config)
    problem = problem_of(config, exposures, training, fields(exposures), OURS[name], seed)
    with tempfile.TemporaryDirectory() as directory:
        begin = time.perf_counter()
        model = fit_in_process(problem, Path(directory))
        seconds = time.perf_counter() - begin
    scorer = SceneScorer(model, problem.registry, problem.encoder, problem.positive_weight,
                         shift=recent_shift(model, problem))
    scores = scorer.score_exposures(exposures)
    np.save(Path(config.output) / "predictions.npy", np.stack([scores[task][~training] for task in TASKS], 1))
    print(json.dumps({"seconds": seconds, "versions": f"torch {torch.__version__}"}))


def measure(output: Path, exposures: Exposures, test: np.ndarray, result: dict[str, Any]) -> Round:
    """Metrics of the predictions that the last training left."""
    path = output / "predictions.npy"
    predictions = np.load(path)
    path.unlink()
    user = exposures.column("user_id")[test]
    labels = [exposures.column(task)[test] for task in TASKS]
    pairs = list(zip(labels, predictions.T, strict=True))
    return Round(result["seconds"], tuple(auc(y, p) for y, p in pairs), tuple(gauc(y, p, user)[0] for y, p in pairs),
                 tuple(predicted_over_observed(y, p) for y, p in pairs), result["versions"])


def show(config: ScoreboardConfig, rounds: dict[str, list[Round]], train_rows: int, test_rows: int, fields: int,
         output: Path) -> None:
    """Prints the table and writes the figures."""
    rates = {name: np.array([train_rows / one.seconds for one in results]) for name, results in rounds.items()}
    peers = [np.median(rates[name]) for name in rounds if name in PEERS]
    fastest = max(peers) if peers else float("nan")
    print(f"\n{train_rows:,} training rows to {config.last_training_day}, {test_rows:,} test rows after it; "
          f"{fields} fields × embedding 16, 8 experts 128-64, tower 32, "
          f"batch {config.batch_size}, one epoch, {config.threads} threads; "
          f"{config.rounds} interleaved rounds, medians (range)\n{machine()}")
    for name, results in rounds.items():
        print(f"{name}: {results[0].versions}")
    lines = []
    for name, results in rounds.items():
        figures = [spread([getattr(one, field)[task] for one in results], 4)
                   for field in ("auc", "gauc") for task in range(len(TASKS))]
        ratio = [f"{np.median([one.calibration[task] for one in results]):.3f}" for task in range(len(TASKS))]
        lines.append([name, spread(list(rates[name]), 0), f"{np.median(rates[name]) / fastest:.2f}×", *figures,
                      "/".join(ratio)])
    table("Scoreboard, pooled over the five pages",
          ["contender", "samples/s", "to the fastest peer", "AUC click", "AUC long view", "GAUC click",
           "GAUC long view", "pred/obs"], lines)
    (output / "scorer.json").write_text(json.dumps(
        {"machine": machine(), "train_rows": train_rows, "test_rows": test_rows, "fields": fields,
         "rounds": {name: [dataclasses.asdict(one) for one in results] for name, results in rounds.items()}}, indent=1))


def spread(values: list[float], digits: int) -> str:
    """Median and range."""
    return f"{np.median(values):,.{digits}f} ({min(values):,.{digits}f}..{max(values):,.{digits}f})"


def machine() -> str:
    """Processor, cores and load: what the figures depend on."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor()) if Path("/proc/cpuinfo").exists() else ""
    return f"{model or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, " \
           f"Python {platform.python_version()}"


if __name__ == "__main__":
    main(tyro.cli(ScoreboardConfig, description=__doc__))
