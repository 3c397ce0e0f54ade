"""The scoreboard's bookkeeping: what is still to be trained, what may tell a speed, what of a journal counts."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.scorer import missing, read_journal, settings_key
from benchmarks.scorer_contenders import Round, ScoreboardConfig, timed
from benchmarks.scorer_tables import interval
from benchmarks.stopwatch import Stopwatch

CONFIG = ScoreboardConfig(exposures="", rounds=2, timings=2, contenders=("ours", "fuxictr"))


def training(seconds: float = 1.0, threads: int = 2, others: float = 0.0) -> Round:
    return Round(seconds, seconds, threads, others, (.7, .7), (.6, .6), (1.0, 1.0), (), "")


def test_metrics_come_before_timings_and_nothing_is_done_twice() -> None:
    done = {"ours": {0: [training()]}, "fuxictr": {}}
    planned = []
    for name, seed in missing(CONFIG, done):
        planned.append((name, seed))
        done[name].setdefault(seed, []).append(training(others=.5 if name == "fuxictr" else 0.0))
    # Ours has two undisturbed trainings by then; the peer, always disturbed, is tried as often as timings are wanted.
    assert planned == [("fuxictr", 0), ("ours", 1), ("fuxictr", 1), ("fuxictr", 0), ("fuxictr", 1)]
    assert timed(done["fuxictr"], CONFIG) == []
    assert not list(missing(CONFIG.replace(timings=0), done))


def test_speed_counts_undisturbed_and_with_the_threads_asked_for() -> None:
    kept = training(3.0, others=.05)
    assert timed({0: [training(threads=1), kept], 1: [training(others=.06)]}, CONFIG) == [kept]


def test_a_journal_adds_up_equal_settings_only(tmp_path: Path) -> None:
    path, other = tmp_path / "scorer.jsonl", CONFIG.replace(batch_size=512)
    lines = [{"name": name, "seed": seed, "key": settings_key(config, name), "round": dataclasses.asdict(training())}
             for name, seed, config in (("ours", 1, CONFIG), ("ours", 1, CONFIG), ("ours", 0, other),
                                        ("ours", 7, CONFIG), ("torch-rechub", 0, CONFIG))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert {name: {seed: len(several) for seed, several in by_seed.items()}
            for name, by_seed in read_journal(path, CONFIG).items()} == {"ours": {1: 2}, "fuxictr": {}}
    weighted = CONFIG.replace(strategy="balanced")
    assert settings_key(weighted, "ours") != settings_key(CONFIG, "ours")
    assert settings_key(weighted, "fuxictr") == settings_key(CONFIG, "fuxictr")


def test_an_interval_by_hand() -> None:
    """Mean 2, deviation 1, three seeds: ± 4.3027 / √3."""
    assert interval(np.array([1.0, 2.0, 3.0])) == "2.0000±2.4841"


def test_the_stopwatch_sees_its_own_work_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ten busy seconds on two processors in five, four are this process' own: others used 60%."""
    busy = iter([100.0, 110.0])
    monkeypatch.setattr("benchmarks.stopwatch._busy_seconds", lambda: next(busy))
    clock, processor = iter([0.0, 5.0]), iter([1.0, 5.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    monkeypatch.setattr("time.process_time", lambda: next(processor))
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    watch = Stopwatch()
    assert watch.read() == {"seconds": 5.0, "processor": 4.0, "others": pytest.approx(.6)}
