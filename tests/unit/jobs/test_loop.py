"""What the loop refuses before it begins."""

from __future__ import annotations

from pathlib import Path

import pytest

from recfuse.config import InvalidFieldError
from recfuse.evaluation.config import Targets
from recfuse.jobs import loop
from recfuse.rollout.config import LoopConfig, Plan


@pytest.mark.parametrize(("goals", "message"), [
    ({}, r"plan\.targets\.goals: got {}; allowed: at least one goal"),
    ({"like": 0.0}, "models: got '.*none'; allowed: a directory with current.json")])
def test_what_is_refused_writes_nothing(tmp_path: Path, goals: dict[str, float], message: str) -> None:
    config = LoopConfig(models=str(tmp_path / "none"), output=str(tmp_path / "loop"), cycles=1,
                        plan=Plan(targets=Targets(goals=goals)))
    with pytest.raises(InvalidFieldError, match=message):
        loop.main(config)
    assert not list(tmp_path.iterdir())
