"""What a job prints of its config at its start is a file that gives the same config back."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from pathlib import Path

import pytest

from recfuse import jobs
from recfuse.learning.registry import names
from recfuse.runtime.console import start

JOBS = sorted(module.name for module in pkgutil.iter_modules(jobs.__path__) if not module.name.startswith("_"))
# What a job cannot do without.
LEAST = {"export": ["--fusion", "runs/fusion"], "explore": ["--weights", "click:1"]}
# What is easily lost on the way through YAML: nothing, lists, mappings, numbers that look like words.
CHANGED = {
    "ab_test": ["--policies", "logged", "mine=click:1", "--cem.floors", "like", "-0.05", "--persons", "40"],
    "demo": ["--cem.persons", "7", "--portable"],
    "simulate": ["--behaviour-sigma", "1e-3", "--world.users", "20", "--no-candidates"],
    "train_scenes": ["--test-day", "20220504", "--training.bfloat16", "False"],
    "ingest": ["--logs", "no", "--gap-minutes", "1e3"],
}


@pytest.fixture(autouse=True)
def excepthook(monkeypatch):
    """`start` replaces it; each test gives it back."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)


def given_back(name: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"recfuse.jobs.{name}")
    config_class = getattr(module, inspect.signature(module.main).parameters["config"].annotation)
    choose = getattr(module, "choose_algorithm", None)
    capsys.readouterr()
    first = start(config_class, arguments, choose=choose)
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert start(config_class, ["--config", str(file)], choose=choose) == first
    assert capsys.readouterr().out == file.read_text()


@pytest.mark.parametrize("name", JOBS)
def test_a_job_s_defaults(name, tmp_path, capsys):
    given_back(name, LEAST.get(name, []), tmp_path, capsys)


@pytest.mark.parametrize("name", CHANGED)
def test_a_job_s_overrides(name, tmp_path, capsys):
    given_back(name, CHANGED[name], tmp_path, capsys)


@pytest.mark.parametrize("algorithm", names())
def test_every_algorithm_s_own_options(algorithm, tmp_path, capsys):
    given_back("train_fusion", ["--learning.algorithm", algorithm, "--learning.seed", "3"], tmp_path, capsys)
