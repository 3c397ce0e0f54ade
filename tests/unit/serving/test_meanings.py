"""Decisions that do not name their vocabulary: their model's bundle tells it, or a file beside the log, or nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from recfuse.behaviours import Vocabulary
from recfuse.bundle.pointer import Pointer, write_pointer
from recfuse.config import InvalidFieldError
from recfuse.jobs.collect import CollectConfig, main
from recfuse.serving.decision_log import DECISION
from recfuse.serving.mover import Mover

from .conftest import write_policy
from .test_decision_log import decision, write
from .test_mover import reordered, rows_of


@pytest.fixture
def bundles(tmp_path: Path, vocabulary: Vocabulary) -> tuple[str, str]:
    """Versions of a served model, and of an earlier one whose parameters have another order."""
    served = write_policy(tmp_path / "models", vocabulary, seed=0).name
    earlier = write_policy(tmp_path / "models", reordered(vocabulary), seed=1).name
    write_pointer(tmp_path / "models", Pointer(fusion=served))
    return served, earlier


def test_the_bundle_of_the_model_tells_what_its_decisions_mean(tmp_path: Path, bundles: tuple[str, str]) -> None:
    served, earlier = bundles
    write(tmp_path / "log", (DECISION, decision("a", 1.0, model_version=served)),
          (DECISION, decision("b", 2.0, model_version=earlier)),
          (DECISION, decision("c", 3.0, model_version=f"../models/{earlier}")))
    account = main(CollectConfig(decision_log=str(tmp_path / "log"), models=str(tmp_path / "models"),
                                 output=str(tmp_path / "out"), window_minutes=0), now=1e6)
    assert (account.written, account.misfits, account.unnamed) == (2, 1, 1)
    [misfit] = rows_of(tmp_path / "out", "events")
    assert (misfit["request_id"], misfit["reason"]) == ("b", f"vocabulary: {earlier} has other fusion_parameters")


@pytest.mark.parametrize(("same", "written"), [(True, 1), (False, 0)])
def test_a_vocabulary_beside_the_log_is_that_of_its_decisions(
    tmp_path: Path, vocabulary: Vocabulary, same: bool, written: int
) -> None:
    write(tmp_path / "log", (DECISION, decision("a", 1.0)))
    (vocabulary if same else reordered(vocabulary)).save(tmp_path / "log" / "vocabulary.yaml")
    account = Mover(tmp_path / "log", tmp_path / "out", vocabulary).move(now=1e6)
    assert (account.written, account.misfits, account.unnamed) == (written, 1 - written, 0)


def test_a_decision_of_which_nothing_tells_the_vocabulary_is_counted_and_said(
    tmp_path: Path, bundles: tuple[str, str], caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "log", (DECISION, decision("a", 1.0, model_version="gone")))
    config = CollectConfig(decision_log=str(tmp_path / "log"), models=str(tmp_path / "models"),
                           output=str(tmp_path / "out"))
    with caplog.at_level(logging.WARNING, "recfuse.serving"):
        account = main(config, now=1e6)
    assert (account.written, account.unnamed) == (1, 1)
    assert "1 decisions, the first a of model gone, have no vocabulary_hash" in caplog.text
    assert "unnamed" in capsys.readouterr().out


def test_a_decision_of_which_nothing_tells_the_vocabulary_can_be_refused(
    tmp_path: Path, bundles: tuple[str, str], vocabulary: Vocabulary
) -> None:
    write(tmp_path / "log", (DECISION, decision("a", 1.0, model_version="gone")),
          (DECISION, decision("b", 2.0, model_version="gone", vocabulary_hash=vocabulary.meaning)))
    account = main(CollectConfig(decision_log=str(tmp_path / "log"), models=str(tmp_path / "models"),
                                 output=str(tmp_path / "out"), unnamed="refuse"), now=1e6)
    assert (account.written, account.misfits, account.unnamed) == (1, 1, 0)
    [misfit] = rows_of(tmp_path / "out", "events")
    assert misfit["reason"].startswith("vocabulary_hash: absent, and neither a bundle gone nor vocabulary.yaml")


def test_a_vocabulary_beside_the_log_that_is_none_is_named(tmp_path: Path, vocabulary: Vocabulary) -> None:
    write(tmp_path / "log", (DECISION, decision("a", 1.0)))
    (tmp_path / "log" / "vocabulary.yaml").write_text("behaviours: 3")
    with pytest.raises(InvalidFieldError, match="behaviours"):
        Mover(tmp_path / "log", tmp_path / "out", vocabulary)


@pytest.mark.parametrize("content", ["{oops", "[]", '{"app": "a"}', '{"app": 1, "sessions": {}, "events": {}}'])
def test_progress_that_cannot_be_read_is_named(tmp_path: Path, vocabulary: Vocabulary, content: str) -> None:
    write(tmp_path / "log", (DECISION, decision("a", 1.0)))
    (tmp_path / "log" / "moving.json").write_text(content)
    with pytest.raises(InvalidFieldError, match=r"decision_log: got .*moving.json'; allowed: how far the log has"):
        Mover(tmp_path / "log", tmp_path / "out", vocabulary)
