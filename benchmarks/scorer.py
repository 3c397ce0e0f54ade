"""The multi-scene scorer against published MMoEs on real logs: training speed and test metrics, side by side.

Every contender gets the same rows, fields, widths, batches, epochs and threads, and its own trainer with its default
optimizer; networks and optimizers are built before anybody's clock starts. Peers live in environments of their own,
which are created at the first run and never touch the project's. Rounds are interleaved (one training of each contender
a round, each in a fresh process, seed = round), so that a busy minute of the machine hits all alike. Every training is
a line in a file: a run that was cut off, or stopped at `--budget`, goes on where it ended, and prints what there is.

    python -m benchmarks.scorer --logs DIRECTORY
    python -m benchmarks.scorer --logs DIRECTORY --contenders ours+history mmoe ple star pepnet esmm   # our rivals

Our settings were chosen on 2 and 3 May with training to 1 May, never on the days that test here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

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
from recfuse.scenes.model import Architecture, ModelConfig
from recfuse.scenes.registry import Registry, Scene
from recfuse.scenes.trainer import Problem, Stepper, TrainingConfig, fit_in_process, prepare, recent_shift, untrained

ROOT = Path(__file__).parents[1]
TASKS = ("click", "long_view")
SCENES = ("0", "1", "2", "4", "6")
REGISTRY = Registry(scenes=tuple(Scene(name=tab, tasks=TASKS) for tab in SCENES))
# deepctr-torch imports `requests` without declaring it; FuxiCTR imports Ray Data.
PEERS = {"torch-rechub": ("torch-rechub==0.9.0",), "deepctr-torch": ("deepctr-torch==0.3.0", "requests"),
         "fuxictr": ("fuxictr==2.3.10",)}
# Counts that have their range beside them as a category: without them and without history the fields are 39.
LEFT_OUT = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days", "server_width")
# What was counted from the users' sequences before the logs: history too.
COUNTED = ("user_past_views", "user_past_long_view_ratio", "user_past_like_ratio", "item_past_views",
           "item_past_long_view_ratio", "item_past_like_ratio")


@dataclass(frozen=True)
class Ours:
    """One of ours: its network, its rate of Adagrad, and whether it sees what was counted from the sequences."""

    model: ModelConfig
    embedding_rate: float
    counts: bool = False


OURS = {"ours": Ours(ModelConfig(history_length=0), .2), "ours+history": Ours(ModelConfig(), .1),
        "ours+history+counts": Ours(ModelConfig(), .1, counts=True)}
RIVALS = {name: Ours(ModelConfig(architecture=name), .1) for name in get_args(Architecture) if name != "multi_scene"}
# Student's t, 97.5%, by degrees of freedom.
_STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
ENOUGH_ROWS = 5_000


@dataclass(frozen=True, kw_only=True)
class ScoreboardConfig:
    """Attributes:
        logs: a directory with KuaiRand files.
        output: gets the environments, the shared data, and the trainings done so far.
        rounds: trainings of every contender.
        last_training_day: yyyymmdd; the days after it test.
        batch_size, threads: of every contender.
        contenders: which take part: ours, peers, and our renderings of published architectures.
        budget: seconds after which no further training starts; a later run goes on.
        child: internal, one training of one of ours: its name and seed.
    """

    logs: str
    output: str = "runs/benchmarks"
    rounds: int = 5
    last_training_day: int = 20220503
    batch_size: int = 2048
    threads: int = 2
    contenders: tuple[str, ...] = (*OURS, *PEERS)
    budget: float = float("inf")
    child: tuple[str, int] | None = None


@dataclass(frozen=True)
class Round:
    """One training: seconds, and the test metrics by task; `pairs`: [scene, task, rows, predicted over observed]."""

    seconds: float
    auc: tuple[float, ...]
    gauc: tuple[float, ...]
    calibration: tuple[float, ...]
    pairs: tuple[tuple[str, str, int, float], ...]
    versions: str
    load: float


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
    for seed in range(config.rounds):
        for name in config.contenders:
            if (name, seed) in done or time.monotonic() - begin > config.budget:
                continue
            latest = measure(output, exposures, ~training, run(config, output, name, pythons.get(name), seed))
            done[name, seed] = latest
            with journal.open("a") as lines:
                lines.write(json.dumps({"name": name, "seed": seed, "key": settings_key(config, name),
                                        "round": dataclasses.asdict(latest)}) + "\n")
            areas = ", ".join(f"{task} {area:.4f}" for task, area in zip(TASKS, latest.auc, strict=True))
            print(f"round {seed + 1}: {name}: {training.sum() / latest.seconds:,.0f} samples/s; AUC {areas}; "
                  f"load {latest.load:.1f}", flush=True)
    rounds = {name: [done[name, seed] for seed in range(config.rounds) if (name, seed) in done]
              for name in config.contenders}
    show(config, {name: results for name, results in rounds.items() if results}, int(training.sum()),
         int((~training).sum()), len(features))


def settings_key(config: ScoreboardConfig, name: str) -> str:
    """Of everything that decides the result of a contender's training: only equal ones add up in a journal."""
    same = (config.last_training_day, config.batch_size, config.threads, LEFT_OUT, COUNTED,
            PEERS.get(name) or (OURS | RIVALS)[name])
    return hashlib.sha256(repr(same).encode()).hexdigest()[:8]


def read_journal(path: Path, config: ScoreboardConfig) -> dict[tuple[str, int], Round]:
    """The trainings that earlier runs have done with these settings, by contender and seed."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {(line["name"], line["seed"]): Round(**line["round"]) for line in lines
            if line["name"] in config.contenders and line["key"] == settings_key(config, line["name"])}


def rows_of(config: ScoreboardConfig) -> tuple[Exposures, np.ndarray]:
    """The exposures of the five pages, and which rows train."""
    exposures = scene_rows(read_exposures(config.logs), REGISTRY)
    return exposures, exposures.column("day") <= config.last_training_day


def fields(exposures: Exposures, counts: bool) -> tuple[Feature, ...]:
    """Categories alone, which every contender reads the same way."""
    left_out = LEFT_OUT if counts else LEFT_OUT + COUNTED
    return tuple(feature for feature in declared_features(exposures)
                 if feature.kind != "numeric" and feature.name not in left_out)


def problem_of(config: ScoreboardConfig, exposures: Exposures, training: np.ndarray, one: Ours, seed: int) -> Problem:
    """What one of ours is trained on."""
    settings = TrainingConfig(workers=0, batch_size=config.batch_size, threads=config.threads, seed=seed,
                              embedding_rate=one.embedding_rate)
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


def run(config: ScoreboardConfig, output: Path, name: str, python: Path | None, seed: int) -> dict[str, Any]:
    """One training in a process of its own; its last line of output is its result."""
    environ = os.environ | {"OMP_NUM_THREADS": str(config.threads)}
    load = os.getloadavg()[0]
    if python is None:
        environ["PYTHONPATH"] = f"{ROOT}/platform{os.pathsep}{ROOT}"
        settings = output / "training.yaml"
        settings.write_text(json.dumps(dataclasses.asdict(config) | {"child": None, "budget": 0.0}))  # YAML reads JSON
        command = [sys.executable, "-m", "benchmarks.scorer", "--child", str(settings), name, str(seed)]
    else:
        command = [str(python), str(Path(__file__).with_name("scorer_peer.py")), name, str(output / "scorer.npz"),
                   str(output / "predictions.npy"), str(config.batch_size), str(config.threads), str(seed)]
    done = subprocess.run(command, cwd=ROOT, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result | {"load": load}


def train_ours(config: ScoreboardConfig, name: str, seed: int) -> None:
    """A child's work: trains one of ours, writes its test predictions, prints its seconds."""
    torch.set_num_threads(config.threads)
    exposures, training = rows_of(config)
    problem = problem_of(config, exposures, training, (OURS | RIVALS)[name], seed)
    Stepper(untrained(problem), problem, problem.steps)  # what a first network and optimizer import is nobody's time
    with tempfile.TemporaryDirectory() as directory:
        begin = time.perf_counter()
        model = fit_in_process(problem, Path(directory))
        seconds = time.perf_counter() - begin
    scorer = SceneScorer(model, problem.registry, problem.encoder, problem.positive_weight,
                         shift=recent_shift(model, problem))
    scores = scorer.score_exposures(exposures)
    np.save(ROOT / config.output / "predictions.npy", np.stack([scores[task][~training] for task in TASKS], 1))
    print(json.dumps({"seconds": seconds, "versions": f"torch {torch.__version__}"}))


def measure(output: Path, exposures: Exposures, test: np.ndarray, result: dict[str, Any]) -> Round:
    """Metrics of the predictions that the last training left."""
    path = output / "predictions.npy"
    predictions = np.load(path)
    path.unlink()
    user, scene = exposures.column("user_id")[test], exposures.rows["scene"].to_numpy(zero_copy_only=False)[test]
    labels = [exposures.column(task)[test] for task in TASKS]
    both = list(zip(labels, predictions.T, strict=True))
    pairs = [(tab, task, int((scene == tab).sum()), predicted_over_observed(y[scene == tab], p[scene == tab]))
             for task, (y, p) in zip(TASKS, both, strict=True) for tab in SCENES]
    return Round(result["seconds"], tuple(auc(y, p) for y, p in both), tuple(gauc(y, p, user)[0] for y, p in both),
                 tuple(predicted_over_observed(y, p) for y, p in both), tuple(pairs), result["versions"],
                 result["load"])


def show(config: ScoreboardConfig, rounds: dict[str, list[Round]], train_rows: int, test_rows: int,
         width: int) -> None:
    """Prints the tables."""
    rates = {name: np.array([train_rows / one.seconds for one in results]) for name, results in rounds.items()}
    peers = [name for name in rounds if name in PEERS]
    fastest = max((float(np.median(rates[name])) for name in peers), default=float("nan"))
    print(f"\n{train_rows:,} training rows to {config.last_training_day}, {test_rows:,} test rows after it; "
          f"{width} fields × embedding 16, 8 experts 128-64, tower 32, "
          f"batch {config.batch_size}, one epoch, {config.threads} threads; {machine()}")
    for name, results in rounds.items():
        loads = f"load {min(r.load for r in results):.1f}..{max(r.load for r in results):.1f}"
        print(f"{name}: {results[0].versions}; {len(results)} trainings, {loads}")
    speeds, lines = [], []
    for name, results in rounds.items():
        figures = [interval([getattr(one, metric)[task] for one in results])
                   for metric in ("auc", "gauc") for task in range(len(TASKS))]
        ratio = [f"{np.median([one.calibration[task] for one in results]):.3f}" for task in range(len(TASKS))]
        speed = f"{np.median(rates[name]):,.0f}", f"{min(rates[name]):,.0f}..{max(rates[name]):,.0f}"
        speeds.append([name, *speed, f"{np.median(rates[name]) / fastest:.2f}×"])
        lines.append([name, *figures, *ratio])
    table("Training speed", ["contender", "samples/s, median", "range", "to the fastest peer"], speeds)
    table("Test days, pooled over the five pages: mean ± 95% over seeds",
          ["contender", "AUC click", "AUC long view", "GAUC click", "GAUC long view", "pred/obs click", "long view"],
          lines)
    show_differences(rounds, peers)
    show_pairs(rounds)


def show_differences(rounds: dict[str, list[Round]], peers: list[str]) -> None:
    """Ours against the peer that is best at each figure, and history against none, seed by seed."""
    lines = []
    for name, base in (("ours", "best peer"), ("ours+history", "best peer"), ("ours+history", "ours"),
                       ("ours+history+counts", "ours")):
        if name not in rounds or (base == "ours" and base not in rounds) or (base == "best peer" and not peers):
            continue
        cells = []
        for metric in ("auc", "gauc"):
            for task in range(len(TASKS)):
                mine = by_seed(rounds[name], metric, task)
                other = max((by_seed(rounds[peer], metric, task) for peer in peers), key=np.mean) \
                    if base == "best peer" else by_seed(rounds[base], metric, task)
                both = min(len(mine), len(other))
                cells.append(interval(list(mine[:both] - other[:both]), "+"))
        lines.append([f"{name} − {base}", *cells])
    if lines:
        table("Differences, seed by seed: mean ± 95%",
              ["", "AUC click", "AUC long view", "GAUC click", "GAUC long view"], lines)


def show_pairs(rounds: dict[str, list[Round]]) -> None:
    """Predicted over observed of every pair with enough test rows, of ours."""
    lines = [[name, tab, task, f"{rows:,}", f"{np.median([one.pairs[place][3] for one in results]):.3f}"]
             for name, results in rounds.items() if name not in PEERS
             for place, (tab, task, rows, _) in enumerate(results[0].pairs) if rows > ENOUGH_ROWS]
    if lines:
        table(f"Predicted over observed, pairs with more than {ENOUGH_ROWS:,} test rows, median over seeds",
              ["contender", "scene", "task", "rows", "pred/obs"], lines)


def by_seed(results: list[Round], metric: str, task: int) -> np.ndarray:
    """One metric of one task, by seed."""
    return np.array([getattr(one, metric)[task] for one in results])


def interval(values: list[float], sign: str = "") -> str:
    """Mean and 95% interval over seeds (Student's t)."""
    if len(values) < 2:
        return f"{np.mean(values):{sign}.4f}"
    half = _STUDENT.get(len(values) - 1, 1.96) * np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):{sign}.4f}±{half:.4f}"


def machine() -> str:
    """Processor, cores and load: what the figures depend on."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor()) if Path("/proc/cpuinfo").exists() else ""
    return f"{model or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def child_config(arguments: list[str]) -> ScoreboardConfig:
    """The config of a child process: the parent's, with the contender and its seed."""
    from recfuse.console import load_config

    path, name, seed = arguments
    return dataclasses.replace(load_config(ScoreboardConfig, path), child=(name, int(seed)))


if __name__ == "__main__":
    is_child = sys.argv[1:2] == ["--child"]
    main(child_config(sys.argv[2:]) if is_child else tyro.cli(ScoreboardConfig, description=__doc__))
