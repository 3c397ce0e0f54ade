"""The command `recfuse`: names, help that costs little, options as a file, and what the wheel holds."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from recfuse import __version__, cli

ROOT = Path(__file__).parents[2]
# What a job cannot do without.
LEAST = {"explore": ("--weights", "click:1"), "export": ("--fusion", "runs/fusion")}
WHOLE_HELP = """
import io, json, sys
from contextlib import redirect_stdout, suppress
from recfuse import cli
found, heavy = {}, ("torch", "ray", "pandas", "matplotlib", "scipy", "optuna", "deltalake")
for name in sys.argv[1:]:
    out, sys.argv = io.StringIO(), ["recfuse", name, "--help"]
    with redirect_stdout(out), suppress(SystemExit):
        cli.main()
    found[name] = [out.getvalue(), [each for each in heavy if each in sys.modules]]
print(json.dumps(found))
"""


def call(monkeypatch, capsys, *arguments: str) -> tuple[int, str, str]:
    """Exit status, output and errors of `recfuse` with these arguments."""
    monkeypatch.setattr(sys, "argv", ["recfuse", *arguments])
    code = 0
    try:
        cli.main()
    except SystemExit as end:
        code = int(end.code or 0)
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def helps() -> dict[str, list]:
    """Of every job its help, and which heavy libraries had been imported by then."""
    done = subprocess.run([sys.executable, "-c", WHOLE_HELP, *cli.COMMANDS], check=True,
                          capture_output=True, text=True, cwd=ROOT, env={"PYTHONPATH": "platform", "COLUMNS": "160"})
    return json.loads(done.stdout.splitlines()[-1])


def test_usage_names_every_job(monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys)
    assert code == 0
    assert all(f"  {name} " in out for name in cli.COMMANDS)
    assert call(monkeypatch, capsys, "--version") == (0, f"recfuse {__version__}\n", "")


@pytest.mark.parametrize("arguments", [("trian",), ("config",), ("config", "trian")])
def test_what_is_no_job_is_answered_by_a_line_that_names_the_nearest(monkeypatch, capsys, arguments):
    code, out, err = call(monkeypatch, capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1
    assert "train" in err


def test_help_waits_for_no_heavy_library(helps):
    assert {name: heavy for name, (_, heavy) in helps.items() if heavy} == {}


def test_every_help_tells_the_config_file_and_its_options_in_sentences(helps):
    assert set(helps) == set(cli.COMMANDS)
    for name, (text, _) in helps.items():
        assert f"usage: recfuse {name}" in text
        assert "--config FILE" in text
        assert "--print-config" in text


def test_the_help_of_training_is_that_of_the_chosen_algorithm(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "160")
    _, default, _ = call(monkeypatch, capsys, "train", "--help")
    _, other, _ = call(monkeypatch, capsys, "train", "--algorithm", "iql", "--help")
    assert "--learning.replay." in default
    assert "--learning.replay." not in other
    assert "--learning.expectile" in other.replace("--expectile", "--learning.expectile")


def test_what_has_no_default_is_printed_as_asked_for(monkeypatch, capsys):
    assert "# weights: (required)" in call(monkeypatch, capsys, "config", "explore")[1]


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_printed_options_come_back_as_the_same_options(monkeypatch, capsys, tmp_path, name):
    code, text, _ = call(monkeypatch, capsys, "config", name, *LEAST.get(name, ()))
    assert code == 0
    assert yaml.safe_load(text)
    assert text.count("# ") >= len(yaml.safe_load(text))
    file = tmp_path / "options.yaml"
    file.write_text(text)
    assert call(monkeypatch, capsys, "config", name, "--config", str(file)) == (0, text, "")


def test_every_job_has_a_command_of_its_own():
    for command in cli.COMMANDS.values():
        module = importlib.import_module(f"recfuse.{command.module}")
        assert callable(module.command)
        assert module.__doc__


def test_the_package_itself_imports_nothing_heavy():
    code = ("import sys, recfuse, recfuse.cli; "
            "assert not {'numpy', 'torch', 'ray', 'pandas', 'pydantic'} & set(sys.modules), sys.modules.keys()")
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": str(ROOT / "platform")})


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", str(ROOT), "--no-deps",
                    "--no-build-isolation", "--quiet", "--wheel-dir", str(out)], check=True, capture_output=True)
    return next(out.glob("*.whl"))


def test_the_wheel_holds_one_name_and_the_command(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
        archive.extractall(tmp_path)
    assert {file.split("/")[0] for file in files} == {"recfuse", f"recfuse-{__version__}.dist-info"}
    for data in ("jobs/config/simulate.yaml", "tune/config/fusion.yaml", "serving/haproxy-loopback",
                 "report/templates/page.html", "serving/console/templates/base.html",
                 "serving/console/static/inspector.js", "serving/app.py", "tune/sweep.py", "jobs/ingest.py"):
        assert f"recfuse/{data}" in files
    entry = next(tmp_path.glob("*.dist-info/entry_points.txt")).read_text()
    assert "recfuse = recfuse.cli:main" in entry
    done = subprocess.run([sys.executable, "-m", "recfuse.cli", "config", "ingest"], cwd=tmp_path, check=True,
                          capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path)})
    assert "quarantine_limit:" in done.stdout
