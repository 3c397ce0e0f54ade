"""The scoreboard's tables: speed, metrics, differences, and calibration by pair."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from scipy.stats import t as student

from benchmarks.scorer_contenders import BASELINES, PEERS, TASKS, Done, Round, ScoreboardConfig, timed
from recfuse.runtime.console import table

METRICS = ("auc", "gauc")
ENOUGH_ROWS = 5_000


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
             *(("ours+history", [name]) for name in rounds if name in BASELINES)]
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
