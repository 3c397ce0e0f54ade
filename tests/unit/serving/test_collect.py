"""The job from the decision log to a session log."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable

from recfuse.behaviours import Vocabulary
from recfuse.bundle.pointer import Pointer, write_pointer
from recfuse.config import InvalidFieldError
from recfuse.evaluation.config import Targets
from recfuse.jobs._loop import Steps
from recfuse.jobs.collect import CollectConfig, main
from recfuse.rollout.config import LoopConfig, Plan


def config(application: Any, models: Path, output: Path) -> CollectConfig:
    return CollectConfig(decision_log=str(application.log_directory), models=str(models), output=str(output))


def test_the_vocabulary_is_that_of_the_served_bundle(
    application: Any, models: Path, tmp_path: Path, vocabulary: Vocabulary, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"user_id": 7, "candidates": {"item_id": [1], "predictions": {"click": [.1], "long_view": [.3]}}}
    answer = application.post("/v1/fusion/fine/rank", body).json()
    application.post("/v1/feedback", {"request_id": answer["request_id"], "feedback": {"like": 1}})
    waiting = main(config(application, models, tmp_path / "out"))
    assert (waiting.written, waiting.joined) == (0, 0)
    assert waiting.waiting_bytes > 0
    assert waiting.oldest is not None
    account = main(config(application, models, tmp_path / "out"), now=4e9)
    assert (account.written, account.joined) == (1, 1)
    assert Vocabulary.load(tmp_path / "out" / "vocabulary.yaml") == vocabulary
    assert DeltaTable(tmp_path / "out" / "sessions").to_pyarrow_table()["feedback"].to_pylist() == [
        {"watch_time": 0.0, "like": 1.0}]
    assert "joined" in capsys.readouterr().out


def test_models_without_a_policy_are_named(application: Any, tmp_path: Path) -> None:
    write_pointer(tmp_path / "empty", Pointer())
    for models in ("empty", "nowhere"):
        with pytest.raises(InvalidFieldError, match="fusion bundle"):
            main(config(application, tmp_path / models, tmp_path / "out"))


def test_a_step_of_the_loop_collects_by_the_clock_of_the_loop(
    application: Any, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    body = {"user_id": 7, "candidates": {"item_id": [1], "predictions": {"click": [.1], "long_view": [.3]}}}
    application.post("/v1/fusion/fine/rank", body)
    loop = LoopConfig(models=str(models), decision_log=str(application.log_directory), output=str(tmp_path / "loop"),
                      plan=Plan(logs=str(tmp_path / "out"), targets=Targets(goals={"like": 0.0})))
    assert Steps(loop).collect(tmp_path).startswith("0 decisions")
    assert Steps(loop, clock=lambda: 4e9).collect(tmp_path).startswith("1 decisions")
    assert "written" in capsys.readouterr().out
