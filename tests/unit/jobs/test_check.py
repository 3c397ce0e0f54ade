"""The job that says what a log has."""

from __future__ import annotations

from pathlib import Path

import pytest
from session_logs import random_rows, table, write

from recfuse.evaluation.config import CheckConfig
from recfuse.jobs.check import main, with_logs


@pytest.mark.parametrize(("given", "taken"), [
    (["logs", "--effect", "0.1"], ["--logs", "logs", "--effect", "0.1"]), (["--logs", "a"], ["--logs", "a"]), ([], [])])
def test_a_log_may_come_first(given: list[str], taken: list[str]) -> None:
    assert with_logs(given) == taken


def test_one_table_and_one_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(CheckConfig(logs=str(write(tmp_path / "log", table(random_rows(50))))))
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("verdict: ") for line in lines) == 1
    assert sum("┏" in line for line in lines) == 1
