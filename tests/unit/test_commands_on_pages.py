"""Commands that pages show are commands that there are: their options parse, by the job's own command line."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from recfuse import cli

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
JOBS = {command.module.rpartition(".")[2]: command.name for command in cli.COMMANDS.values()}
_STARTS = re.compile(r"(?:(?:^|/)recfuse ([a-z-]+)|\bpython (?:-m )?(?:jobs|tune)[/.](\w+?)(?:\.py)?)(?= |$)(.*)")


def commands(page: Path) -> list[list[str]]:
    """Words of every command that starts a job, from blocks without a language: the job's name, then arguments."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)
    lines = [line for language, block in blocks if not language for line in block.replace("\\\n", " ").splitlines()]
    found = [(match[1] or JOBS[match[2]], match[3]) for match in map(_STARTS.search, lines) if match is not None]
    return [[name, *shlex.split(arguments, comments=True)] for name, arguments in found]


SHOWN = [(page.relative_to(ROOT), words) for page in PAGES for words in commands(page)]


def test_pages_show_commands():
    assert len(SHOWN) >= 30
    assert {words[0] for _, words in SHOWN} >= {"init", "explore", "serve", "collect", "check", "ingest", "train"}


@pytest.mark.parametrize(("page", "words"), SHOWN, ids=lambda part: part[0] if isinstance(part, list) else str(part))
def test_a_command_that_a_page_shows_parses(page, words, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    name, *arguments = words
    if name == "config":
        name, *arguments = arguments
    assert name in cli.COMMANDS, f"{page}: {name}"
    if "--config" in arguments:  # a file that the page shows, or that lies in the repository
        place = arguments.index("--config")
        file = ROOT / arguments[place + 1]
        arguments[place:place + 2] = ["--config", str(file)] if file.exists() else []
    monkeypatch.setattr(sys, "argv", [f"recfuse {name}", *arguments, "--print-config"])
    with pytest.raises(SystemExit) as end:
        importlib.import_module(f"recfuse.{cli.COMMANDS[name].module}").command()
    assert not end.value.code, f"{page}: {capsys.readouterr().err}"
