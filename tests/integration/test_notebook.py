"""The notebook's cells, in order and as they stand: its policy brings more than today's weights, by the truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from docs.site.notebook import cells

NOTEBOOK = Path(__file__).parents[2] / "docs" / "first_policy.ipynb"


@pytest.mark.usefixtures("local_ray")
def test_the_notebook_runs_and_its_policy_brings_more(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for cell in cells(NOTEBOOK):
        if cell["cell_type"] == "code":
            capsys.readouterr()
            exec("".join(cell["source"]), names)
            assert bool(capsys.readouterr().out) == bool(cell["outputs"]), "cells say something where the page shows it"
    brought = {name: np.mean(seconds) for name, seconds in names["brought"].items()}
    assert brought["policy"] > 1.01 * brought["today"]
    assert names["judged"].blocks[0].question.name == "one changed request"
