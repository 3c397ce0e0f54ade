"""What keeps the layout from rotting unseen, beside the import contracts in pyproject.toml."""

from __future__ import annotations

import ast
import importlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import rooms
from recfuse.config import Config

ROOT = Path(__file__).parents[2]
SOURCES = [file for room in ("platform", "serving", "tune", "jobs") for file in sorted((ROOT / room).rglob("*.py"))]
MOST_PAIRS, MOST_LINES, MOST_FUNCTION_LINES = 110, 450, 40
# Longer functions that there were when the limit was set; it may fall and never grow.
MOST_LONG_FUNCTIONS = 5


def test_platform_is_no_package():
    """With `platform/__init__.py` our source root would hide Python's own `platform` module."""
    assert not (ROOT / "platform" / "__init__.py").exists()
    assert platform.python_version()


def test_python_keeps_its_platform_module_from_the_repository_root():
    code = "import platform, uuid; print(platform.python_version())"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


def test_every_room_says_what_comes_in_and_what_goes_out():
    for init in (ROOT / "platform" / "recfuse").glob("*/__init__.py"):
        text = init.read_text()
        assert "In: " in text, f"{init.parent.name}: its docstring says what comes in"
        assert "Out: " in text, f"{init.parent.name}: its docstring says what goes out"


def test_importing_the_pure_rooms_starts_no_ray():
    code = (
        "import sys, recfuse.fusion.losses, recfuse.fusion.networks, recfuse.fusion.inference, recfuse.scenes.model, "
        "recfuse.scenes.loss, recfuse.scenes.inference, recfuse.scenes.training.local, recfuse.bundle, "
        "recfuse.evaluation.ope, recfuse.state.encoder; "
        "assert 'ray' not in sys.modules, sorted(m for m in sys.modules if m.startswith('ray'))"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "platform", check=True)


def test_every_environment_variable_is_explained():
    """Of Ray Serve's the page names the family."""
    files = [ROOT / name for name in ("Makefile", "Dockerfile", "runtime_env.yaml")]
    files += [file for room in ("platform", "jobs", "tune", "serving") for file in (ROOT / room).rglob("*")
              if file.suffix in (".py", ".yaml") or file.name == "haproxy-loopback"]
    page = (ROOT / "docs" / "cluster.md").read_text()
    for file in files:
        for name in re.findall(r"\b(?:RECFUSE|RAY|TUNE)_[A-Z][A-Z_]+[A-Z]\b", file.read_text()):
            known = f"`{name}`" in page or name.startswith("RAY_SERVE_")
            assert known, f"{file.relative_to(ROOT)}: {name} is not in docs/cluster.md"


def test_every_benchmark_finds_what_it_imports():
    """Nobody runs them in every change; those of a peer's own environment are left out."""
    for file in sorted((ROOT / "benchmarks").glob("*.py")):
        if file.stem not in ("learner_d3rlpy", "scorer_peer"):
            importlib.import_module(f"benchmarks.{file.stem}")


def test_rooms_do_not_grow_together():
    pairs = rooms.pairs()
    assert len(pairs) <= MOST_PAIRS, "\n".join(f"{importer} → {imported}" for importer, imported in sorted(pairs))


def test_a_file_holds_one_matter():
    lines = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in SOURCES}
    long = {name: count for name, count in lines.items() if count > MOST_LINES}
    assert not long


def test_a_function_fits_a_screen():
    long = [f"{file.relative_to(ROOT)}: {node.name}, {length} lines"
            for file in SOURCES for node in ast.walk(ast.parse(file.read_text()))
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and (length := node.end_lineno - node.lineno + 1) > MOST_FUNCTION_LINES]
    assert len(long) <= MOST_LONG_FUNCTIONS, "\n".join(long)


def test_every_field_of_every_config_says_what_it_is():
    for file in SOURCES:
        if re.search(r"^class \w+\(.*Config", file.read_text(), re.MULTILINE):
            name = ".".join(file.relative_to(ROOT).with_suffix("").parts).removeprefix("platform.recfuse.")
            importlib.import_module(f"recfuse.{name}")
    configs = {config for config in _beneath(Config) if config.__module__.startswith("recfuse.")}
    assert len(configs) >= 4
    for config in configs:
        assert (config.__doc__ or "").strip(), f"{config.__qualname__} says what it is"
        for name, field in config.model_fields.items():
            sentence = (field.description or "").strip()
            where = f"{config.__module__}.{config.__qualname__}.{name}: {sentence!r}"
            assert sentence.endswith("."), f"{where} is no sentence"
            assert len(sentence.split()) < 30, f"{where} has 30 words or more"


def _beneath(config: type[Config]) -> Iterator[type[Config]]:
    for below in config.__subclasses__():
        yield below
        yield from _beneath(below)


def test_a_tensor_comes_to_the_cpu_before_numpy():
    """`tensor.numpy()` raises where the tensor is on a GPU; `.cpu()` costs nothing where it is not."""
    found = [f"{file.relative_to(ROOT)}:{node.lineno}" for file in SOURCES for node in _straight_to_numpy(file)]
    assert not found, "without .cpu() before .numpy(): " + ", ".join(found)


def _straight_to_numpy(file: Path) -> Iterator[ast.Call]:
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "numpy":
            called = {call.func.attr for call in ast.walk(node.func.value)
                      if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)}
            if "cpu" not in called:
                yield node


@pytest.mark.parametrize(("line", "found"), [
    ("x.numpy()", 1), ("x.detach().numpy()", 1), ("x.cpu().numpy()", 0), ("x.detach().cpu().double().numpy()", 0),
    ("column.to_numpy()", 0), ("(a + b.cpu()).numpy().copy()", 0), ("f(x.numpy(), y.numpy())", 2)])
def test_the_search_for_numpy_finds_it(tmp_path, line, found):
    (tmp_path / "line.py").write_text(line)
    assert len(list(_straight_to_numpy(tmp_path / "line.py"))) == found
