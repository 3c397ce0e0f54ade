"""What keeps the layout from rotting unseen, beside the import contracts in pyproject.toml."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


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
