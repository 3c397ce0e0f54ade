"""Logs and samples are opened in one place: no other code reads their Parquet, or looks for it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
READER = "platform/recfuse/logs/"
OPENS = re.compile(r"ds\.dataset\(|dataset\.dataset\(|\.read_table\(|ParquetFile\(|ParquetDataset\(|read_parquet\(|"
                   r"parquet_dataset\(|DeltaTable\(|glob\([^)]*\*\.(parquet|pq)")
# File → what it opens instead of a log or samples.
OTHERS = {
    "platform/recfuse/runtime/cluster.py": "defines read_parquet, which blocks of the scorer's exposures go through",
    "platform/recfuse/learning/samples.py": "streams the files that open_log lists, also through Ray Data",
    "platform/recfuse/scenes/training/blocks.py": "exposures",
    "serving/catalogue.py": "a catalogue of items",
    "serving/local.py": "a catalogue of items",
    "serving/console/inspector.py": "the ids of a catalogue of items",
    "serving/parts.py": "the ids of a catalogue of items",
    "serving/session_table.py": "writes the table of sessions, and asks for the version that it appends to",
}


def opened() -> dict[str, list[str]]:
    """File → the lines that open Parquet, outside the one reader."""
    found: dict[str, list[str]] = {}
    for room in ("platform", "serving", "tune", "jobs"):
        for file in sorted((ROOT / room).rglob("*.py")):
            name = file.relative_to(ROOT).as_posix()
            lines = [line.strip() for line in file.read_text().splitlines() if OPENS.search(line)]
            if lines and not name.startswith(READER):
                found[name] = lines
    return found


def test_logs_and_samples_are_opened_in_one_place():
    assert {name: lines for name, lines in opened().items() if name not in OTHERS} == {}


@pytest.mark.parametrize("line", ["table = ds.dataset(files)", "pq.read_table(path)", "path.glob('*.parquet')",
                                  "path.rglob(\"*.parquet\")", "ray.data.read_parquet(files)", "DeltaTable(uri)"])
def test_the_search_sees_what_it_looks_for(line):
    assert OPENS.search(line)
