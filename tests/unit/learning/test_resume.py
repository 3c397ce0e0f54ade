"""Which run a checkpoint is of: more passes go on, a change is named, and nothing is written over."""

from __future__ import annotations

from pathlib import Path

import pytest

from recfuse.learning import registry
from recfuse.learning.resume import RunIdentity, changes, identity_of
from recfuse.learning.settings import StoppingRule


def identity(samples: str = "a", **changes) -> RunIdentity:
    return identity_of("job", registry.settings(**changes).to_dict(), samples=samples)


def test_passes_and_workers_are_no_part_of_a_run():
    assert identity() == identity(stage_two=StoppingRule(iterations=99, change_below=0.0), num_learners=2, threads=3)
    assert identity() != identity(stage_two=StoppingRule(iterations=15, change_below=0.5))
    for other in (identity("b"), identity(seed=1), identity(algorithm="actor_critic")):
        assert other != identity()


def test_a_checkpoint_of_another_run_moves_aside_and_comes_back(tmp_path, caplog):
    checkpoint = tmp_path / "checkpoint"
    first, second = identity(), identity(seed=1, rho_max=5.0)
    assert not first.take_up(checkpoint)
    (checkpoint / "learner.safetensors").write_text("first")
    assert first.take_up(checkpoint)
    with caplog.at_level("WARNING", "recfuse"):
        assert not second.take_up(checkpoint)
    assert "learning.rho_max 2.0 → 5.0; learning.seed 0 → 1; it is kept as checkpoint-" in caplog.text
    (checkpoint / "learner.safetensors").write_text("second")
    assert first.take_up(checkpoint)
    assert (checkpoint / "learner.safetensors").read_text() == "first"
    assert second.take_up(checkpoint)
    assert (checkpoint / "learner.safetensors").read_text() == "second"


@pytest.mark.parametrize("text", [None, "{", "[]", "3"])
def test_a_checkpoint_that_does_not_say_whose_it_is_moves_aside(tmp_path, text):
    checkpoint = tmp_path / "checkpoint"
    for number in range(2):
        checkpoint.mkdir()
        (checkpoint / "learner.safetensors").write_text(str(number))
        if text is not None:
            (checkpoint / "run.json").write_text(text)
        assert not identity().take_up(checkpoint)
        assert [path.name for path in checkpoint.iterdir()] == ["run.json"]
        (checkpoint / "run.json").unlink()
        Path(checkpoint).rmdir()
    kept = sorted(path.name for path in tmp_path.iterdir())
    assert kept == ["checkpoint-earlier", "checkpoint-earlier-2"]


def test_changes_are_named_by_their_path():
    assert changes({"a": {"b": 1, "c": 2}, "d": None}, {"a": {"b": 1, "c": 3}, "e": [1]}) == [
        "a.c 2 → 3", "d None → absent", "e absent → [1]"]
