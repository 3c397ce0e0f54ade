"""The multi-scene scorer against published MMoEs on real exposures: training speed and test metrics, side by side.

Every contender gets the same rows, fields, widths, batches, epochs and threads, and its own trainer with its default
optimizer; networks and optimizers are built before anybody's clock starts. Peers live in environments of their own,
which are created at the first run and never touch the project's. Rounds are interleaved (one training of each contender
a round, each in a fresh process, seed = round). Every training is a line in a file: a run that was cut off, or stopped
at `--budget`, goes on where it ended, and prints what there is. Metrics come from every seed's first training; speed
from trainings during which other processes used at most a twentieth of the machine, so that a busy machine can train
for the metrics now (`--timings 0 --threads 1`, with speed by processor time) and a quiet one measures speed later.

    python -m benchmarks.scorer --logs DIRECTORY
    python -m benchmarks.scorer --logs DIRECTORY --timings 0 --contenders ours+history single_task shared_bottom \\
        mmoe ple star pepnet esmm   # published architectures in our rendering

Our settings were chosen on 2 and 3 May with training to 1 May, never on the days that test here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.scorer_contenders import (
    BASELINES,
    COUNTED,
    LEFT_OUT,
    OURS,
    PEERS,
    REGISTRY,
    SCENES,
    TASKS,
    Done,
    Ours,
    Round,
    ScoreboardConfig,
    fields,
    rows_of,
    timed,
)
from benchmarks.scorer_tables import show
from benchmarks.stopwatch import Stopwatch
from recfuse.config import load
from recfuse.logs.exposures import Exposures
from recfuse.runtime.console import log_to_terminal
from recfuse.scenes.dataset import encode_exposures
from recfuse.scenes.encoder import FeatureEncoder
from recfuse.scenes.features import Feature
from recfuse.scenes.histories import row_histories
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.training.config import TrainingConfig
from recfuse.scenes.training.local import fit_in_process
from recfuse.scenes.training.problem import Problem, prepare, untrained
from recfuse.scenes.training.shift import recent_shift
from recfuse.scenes.training.step import Stepper
from recfuse.stats.ranking import auc, gauc, predicted_over_observed

ROOT = Path(__file__).parents[1]
def main(config: ScoreboardConfig) -> None:
    """Runs the scoreboard, or one training of it."""
    if config.child is not None:
        train_ours(config, *config.child)
        return
    log_to_terminal()
    begin, output = time.monotonic(), (ROOT / config.output).resolve()
    exposures, training = rows_of(config)
    features = fields(exposures, counts=False)
    write_shared(output, exposures, training, features)
    pythons = {name: environment(output, name) for name in config.contenders if name in PEERS}
    journal = output / "scorer.jsonl"
    done = read_journal(journal, config)
    for name, seed in missing(config, done):
        if time.monotonic() - begin > config.budget:
            break
        latest = measure(exposures, ~training, config.threads, *run(config, output, name, pythons.get(name), seed))
        done[name].setdefault(seed, []).append(latest)
        with journal.open("a") as lines:
            lines.write(json.dumps({"name": name, "seed": seed, "key": settings_key(config, name),
                                    "round": dataclasses.asdict(latest)}) + "\n")
        areas = ", ".join(f"{task} {area:.4f}" for task, area in zip(TASKS, latest.auc, strict=True))
        print(f"seed {seed}: {name}: {training.sum() / latest.seconds:,.0f} samples/s on {latest.threads} thread(s), "
              f"{latest.others:.0%} of the machine used by others; AUC {areas}", flush=True)
    show(config, {name: trainings for name, trainings in done.items() if trainings}, int(training.sum()),
         int((~training).sum()), len(features))


def missing(config: ScoreboardConfig, done: Done) -> Iterator[tuple[str, int]]:
    """Contender and seed of what is still to be trained: for the metrics first, then for speed."""
    for seed in range(config.rounds):
        for name in config.contenders:
            if seed not in done[name]:
                yield name, seed
    for attempt in range(config.timings):
        for name in config.contenders:
            if len(timed(done[name], config)) < config.timings:
                yield name, attempt % config.rounds


def settings_key(config: ScoreboardConfig, name: str) -> str:
    """Of everything that decides a contender's metrics: only equal ones add up in a journal."""
    same = (config.last_training_day, config.batch_size, LEFT_OUT, COUNTED,
            PEERS.get(name) or ((OURS | BASELINES)[name], config.strategy))
    return hashlib.sha256(repr(same).encode()).hexdigest()[:8]


def read_journal(path: Path, config: ScoreboardConfig) -> Done:
    """The trainings that earlier runs have done with these settings."""
    done: Done = {name: {} for name in config.contenders}
    for line in (json.loads(text) for text in (path.read_text().splitlines() if path.is_file() else [])):
        if line["name"] in done and line["seed"] < config.rounds and line["key"] == settings_key(config, line["name"]):
            done[line["name"]].setdefault(line["seed"], []).append(Round(**line["round"]))
    return done


def problem_of(config: ScoreboardConfig, exposures: Exposures, training: np.ndarray, one: Ours, seed: int) -> Problem:
    """What one of ours is trained on."""
    settings = TrainingConfig(workers=0, batch_size=config.batch_size, threads=config.threads, seed=seed,
                              embedding_rate=one.embedding_rate, dense_rate=one.dense_rate)
    if config.strategy != "uniform":
        settings = settings.replace(strategy=config.strategy, largest_positive_weight=None)
    return prepare(exposures, training, REGISTRY, one.model, settings, fields(exposures, one.counts))


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


def run(config: ScoreboardConfig, output: Path, name: str, python: Path | None,
        seed: int) -> tuple[dict[str, Any], np.ndarray]:
    """One training in a process of its own: the last line of its output, and its test predictions [rows, tasks]."""
    environ = os.environ | {"OMP_NUM_THREADS": str(config.threads)}
    with tempfile.TemporaryDirectory() as directory:
        predictions = f"{directory}/predictions.npy"
        if python is None:
            environ["PYTHONPATH"] = f"{ROOT}/platform{os.pathsep}{ROOT}"
            settings = Path(directory) / "training.yaml"
            settings.write_text(json.dumps(config.replace(child=None, budget=0.0).to_dict()))  # JSON is YAML, too.
            command = [sys.executable, "-m", "benchmarks.scorer", "--child", str(settings), name, str(seed),
                       predictions]
        else:
            command = [str(python), str(Path(__file__).with_name("scorer_peer.py")), name, str(output / "scorer.npz"),
                       predictions, str(config.batch_size), str(config.threads), str(seed)]
        done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return json.loads(done.stdout.strip().splitlines()[-1]), np.load(predictions)


def train_ours(config: ScoreboardConfig, name: str, seed: int, predictions: str) -> None:
    """A child's work: trains one of ours, writes its test predictions, prints its seconds."""
    torch.set_num_threads(config.threads)
    exposures, training = rows_of(config)
    problem = problem_of(config, exposures, training, (OURS | BASELINES)[name], seed)
    Stepper(untrained(problem), problem, problem.steps)  # what a first network and optimizer import is nobody's time
    with tempfile.TemporaryDirectory() as directory:
        clock = Stopwatch()
        model = fit_in_process(problem, Path(directory))
        times = clock.read()
    scorer = SceneScorer(model, problem.registry, problem.encoder, problem.positive_weight,
                         shift=recent_shift(model, problem))
    histories, test = row_histories(exposures, scorer.history_length)[~training], exposures.filter(~training)
    scores = scorer.score_rows(test.rows, test.users, test.items, histories)
    np.save(predictions, np.stack([scores[task] for task in TASKS], 1))
    print(json.dumps(times | {"versions": f"torch {torch.__version__}"}))


def measure(exposures: Exposures, test: np.ndarray, threads: int, training: dict[str, Any],
            predictions: np.ndarray) -> Round:
    """Metrics of a training's predictions [rows, tasks]."""
    user, scene = exposures.column("user_id")[test], exposures.rows["scene"].to_numpy(zero_copy_only=False)[test]
    labels = [exposures.column(task)[test] for task in TASKS]
    both = list(zip(labels, predictions.T, strict=True))
    pairs = [(tab, task, int((scene == tab).sum()), predicted_over_observed(y[scene == tab], p[scene == tab]))
             for task, (y, p) in zip(TASKS, both, strict=True) for tab in SCENES]
    return Round(
        **training, threads=threads,
        auc=tuple(auc(y, p) for y, p in both), gauc=tuple(gauc(y, p, user)[0] for y, p in both),
        calibration=tuple(predicted_over_observed(y, p) for y, p in both), pairs=tuple(pairs))


def child_config(arguments: list[str]) -> ScoreboardConfig:
    """The config of a child process: the parent's, with the contender and its seed."""
    path, name, seed, predictions = arguments
    return load(ScoreboardConfig, path).replace(child=(name, int(seed), predictions))


if __name__ == "__main__":
    is_child = sys.argv[1:2] == ["--child"]
    main(child_config(sys.argv[2:]) if is_child else tyro.cli(ScoreboardConfig, description=__doc__))
