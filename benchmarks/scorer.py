"""The multi-scene scorer against published MMoEs on real logs: training speed and test metrics, side by side.

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
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
import tyro
from scipy.stats import t as student

from benchmarks.stopwatch import Stopwatch
from recfuse.logs.exposures import Exposures
from recfuse.logs.kuairand import read_exposures
from recfuse.runtime.console import log_to_terminal, table
from recfuse.scenes.dataset import encode_exposures, scene_rows
from recfuse.scenes.encoder import FeatureEncoder
from recfuse.scenes.features import Feature, declared_features
from recfuse.scenes.histories import row_histories
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.model import Architecture, ModelConfig
from recfuse.scenes.registry import Registry, Scene
from recfuse.scenes.training.config import TrainingConfig
from recfuse.scenes.training.local import fit_in_process
from recfuse.scenes.training.problem import Problem, prepare, untrained
from recfuse.scenes.training.shift import recent_shift
from recfuse.scenes.training.step import Stepper
from recfuse.stats.ranking import auc, gauc, predicted_over_observed

ROOT = Path(__file__).parents[1]
TASKS = ("click", "long_view")
METRICS = ("auc", "gauc")
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
    """One of ours: its network, the rates of Adagrad and Adam, whether it sees what was counted from the sequences."""

    model: ModelConfig
    embedding_rate: float
    dense_rate: float = 1e-3
    counts: bool = False


OURS = {"ours": Ours(ModelConfig(history_length=0), .2), "ours+history": Ours(ModelConfig(), .05, 3e-3),
        "ours+history+counts": Ours(ModelConfig(), .05, 3e-3, counts=True)}
RIVALS = {name: Ours(ModelConfig(architecture=name), .05, 3e-3) for name in get_args(Architecture)
          if name != "multi_scene"}
ENOUGH_ROWS = 5_000


@dataclass(frozen=True, kw_only=True)
class ScoreboardConfig:
    """Attributes:
        logs: a directory with KuaiRand files.
        output: gets the environments, the shared data, and the trainings done so far.
        rounds: seeds of every contender.
        timings: undisturbed trainings of every contender that speed is the median of; a run tries so often.
        last_training_day: yyyymmdd; the days after it test.
        quiet: the largest part of the machine that others may use during a training whose speed counts.
        batch_size, threads: of every contender.
        strategy: of the weights of ours (maths 3.3); with another than `uniform` positives weigh without a bound.
        contenders: which take part: ours, peers, and our renderings of published architectures.
        budget: seconds after which no further training starts; a later run goes on.
        child: internal, one training of one of ours: its name, its seed, and where its predictions go.
    """

    logs: str
    output: str = "runs/benchmarks"
    rounds: int = 5
    timings: int = 3
    quiet: float = 0.05
    last_training_day: int = 20220503
    batch_size: int = 2048
    threads: int = 2
    strategy: Literal["balanced", "sqrt", "uniform"] = "uniform"
    contenders: tuple[str, ...] = (*OURS, *PEERS)
    budget: float = float("inf")
    child: tuple[str, int, str] | None = None


@dataclass(frozen=True)
class Round:
    """One training, and its test metrics by task.

    Attributes:
        seconds, processor, threads: of the training: by the clock, of its process' processor time, of torch.
        others: the part of the machine's processors that other processes used meanwhile.
        pairs: [scene, task, rows, predicted over observed].
    """

    seconds: float
    processor: float
    threads: int
    others: float
    auc: tuple[float, ...]
    gauc: tuple[float, ...]
    calibration: tuple[float, ...]
    pairs: tuple[tuple[str, str, int, float], ...]
    versions: str


# Contender → seed → its trainings.
Done = dict[str, dict[int, list[Round]]]


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


def timed(trainings: dict[int, list[Round]], config: ScoreboardConfig) -> list[Round]:
    """The trainings whose speed counts."""
    return [one for several in trainings.values() for one in several
            if one.others <= config.quiet and one.threads == config.threads]


def settings_key(config: ScoreboardConfig, name: str) -> str:
    """Of everything that decides a contender's metrics: only equal ones add up in a journal."""
    same = (config.last_training_day, config.batch_size, LEFT_OUT, COUNTED,
            PEERS.get(name) or ((OURS | RIVALS)[name], config.strategy))
    return hashlib.sha256(repr(same).encode()).hexdigest()[:8]


def read_journal(path: Path, config: ScoreboardConfig) -> Done:
    """The trainings that earlier runs have done with these settings."""
    done: Done = {name: {} for name in config.contenders}
    for line in (json.loads(text) for text in (path.read_text().splitlines() if path.is_file() else [])):
        if line["name"] in done and line["seed"] < config.rounds and line["key"] == settings_key(config, line["name"]):
            done[line["name"]].setdefault(line["seed"], []).append(Round(**line["round"]))
    return done


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
                              embedding_rate=one.embedding_rate, dense_rate=one.dense_rate)
    if config.strategy != "uniform":
        settings = dataclasses.replace(settings, strategy=config.strategy, largest_positive_weight=None)
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
            settings.write_text(json.dumps(dataclasses.asdict(config) | {"child": None, "budget": 0.0}))  # YAML is JSON
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
    problem = problem_of(config, exposures, training, (OURS | RIVALS)[name], seed)
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


def show(config: ScoreboardConfig, done: Done, train_rows: int, test_rows: int, width: int) -> None:
    """Prints the tables."""
    print(f"\n{train_rows:,} training rows to {config.last_training_day}, {test_rows:,} test rows after it; "
          f"{width} fields × embedding 16, 8 experts 128-64, tower 32, "
          f"batch {config.batch_size}, one epoch; {machine()}")
    rounds = {name: {seed: trainings[0] for seed, trainings in several.items()} for name, several in done.items()}
    for name, by_seed in rounds.items():
        print(f"{name}: {next(iter(by_seed.values())).versions}; {len(by_seed)} seeds")
    peers = [name for name in rounds if name in PEERS]
    show_speed(config, done, peers, train_rows)
    lines = []
    for name, by_seed in rounds.items():
        figures = [interval(values(by_seed, metric, task)) for metric in METRICS for task in range(len(TASKS))]
        ratios = [f"{np.median(values(by_seed, 'calibration', task)):.3f}" for task in range(len(TASKS))]
        lines.append([name, *figures, *ratios])
    table("Test days, pooled over the five pages: mean ± 95% over seeds",
          ["contender", "AUC click", "AUC long view", "GAUC click", "GAUC long view", "pred/obs click", "long view"],
          lines)
    show_differences(rounds, peers)
    show_pairs(rounds)


def show_speed(config: ScoreboardConfig, done: Done, peers: list[str], train_rows: int) -> None:
    """Samples/s of the undisturbed trainings, and by processor time of those on one thread, disturbed or not."""
    quiet = {name: np.array([one.seconds for one in timed(trainings, config)]) for name, trainings in done.items()}
    alone = {name: np.array([one.processor for several in trainings.values() for one in several if one.threads == 1])
             for name, trainings in done.items()}
    clock = f"Training speed, {config.threads} threads, others at most {config.quiet:.0%} of the machine"
    for title, seconds in ((clock, quiet),
                           ("Training speed by processor time, 1 thread", alone)):
        rates = {name: train_rows / one for name, one in seconds.items() if len(one)}
        fastest = max((float(np.median(rates[name])) for name in peers if name in rates), default=float("nan"))
        if rates:
            table(title, ["contender", "trainings", "samples/s, median", "range", "to the fastest peer"],
                  [[name, str(len(one)), f"{np.median(one):,.0f}", f"{min(one):,.0f}..{max(one):,.0f}",
                    f"{np.median(one) / fastest:.2f}×" if fastest == fastest else "–"] for name, one in rates.items()])


def show_differences(rounds: dict[str, dict[int, Round]], peers: list[str]) -> None:
    """Ours against the peer that is best at each figure, history against none, and ours against each rendering."""
    pairs = [("ours", peers), ("ours+history", peers), ("ours+history", ["ours"]), ("ours+history+counts", ["ours"]),
             *(("ours+history", [name]) for name in rounds if name in RIVALS)]
    lines = []
    for name, others in pairs:
        if name not in rounds or not others or any(other not in rounds for other in others):
            continue
        cells = []
        for metric in METRICS:
            for task in range(len(TASKS)):
                best = max(others, key=lambda other: np.mean(values(rounds[other], metric, task)))
                common = sorted(rounds[name].keys() & rounds[best].keys())
                cells.append(interval(values(rounds[name], metric, task, common)
                                      - values(rounds[best], metric, task, common), "+"))
        lines.append([f"{name} − {others[0] if len(others) == 1 else 'best peer'}", *cells])
    if lines:
        table("Differences, seed by seed: mean ± 95%",
              ["", "AUC click", "AUC long view", "GAUC click", "GAUC long view"], lines)


def show_pairs(rounds: dict[str, dict[int, Round]]) -> None:
    """Predicted over observed of every pair with enough test rows, of ours."""
    lines = []
    for name, by_seed in ((name, by_seed) for name, by_seed in rounds.items() if name not in PEERS):
        for place, (tab, task, rows, _) in enumerate(next(iter(by_seed.values())).pairs):
            ratios = [one.pairs[place][3] for one in by_seed.values()]
            if rows > ENOUGH_ROWS:
                lines.append([name, tab, task, f"{rows:,}", f"{np.median(ratios):.3f}",
                              f"{min(ratios):.3f}..{max(ratios):.3f}"])
    if lines:
        table(f"Predicted over observed, pairs with more than {ENOUGH_ROWS:,} test rows",
              ["contender", "scene", "task", "rows", "median over seeds", "range"], lines)


def values(by_seed: dict[int, Round], metric: str, task: int, seeds: Iterable[int] | None = None) -> np.ndarray:
    """One metric of one task, by seed."""
    return np.array([getattr(by_seed[seed], metric)[task] for seed in (sorted(by_seed) if seeds is None else seeds)])


def interval(figures: np.ndarray, sign: str = "") -> str:
    """Mean and 95% interval over seeds (Student's t)."""
    if len(figures) < 2:
        return f"{np.mean(figures):{sign}.4f}" if len(figures) else "–"
    half = student.ppf(.975, len(figures) - 1) * np.std(figures, ddof=1) / np.sqrt(len(figures))
    return f"{np.mean(figures):{sign}.4f}±{half:.4f}"


def machine() -> str:
    """Processor, cores and Python: what the figures depend on."""
    model = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.processor()) if Path("/proc/cpuinfo").exists() else ""
    return f"{model or platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def child_config(arguments: list[str]) -> ScoreboardConfig:
    """The config of a child process: the parent's, with the contender and its seed."""
    from recfuse.config import load

    path, name, seed, predictions = arguments
    return dataclasses.replace(load(ScoreboardConfig, path), child=(name, int(seed), predictions))


if __name__ == "__main__":
    is_child = sys.argv[1:2] == ["--child"]
    main(child_config(sys.argv[2:]) if is_child else tyro.cli(ScoreboardConfig, description=__doc__))
