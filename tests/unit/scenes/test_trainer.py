"""Training in the calling process: it learns, it is reproducible, and it refuses what it cannot learn."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from recfuse.errors import InvalidFieldError
from recfuse.evaluation.ranking import auc
from recfuse.logs.exposures import Exposures
from recfuse.scenes.model import ModelConfig
from recfuse.scenes.registry import Registry, Scene
from recfuse.scenes.trainer import Problem, TrainingConfig, prepare, train


def test_training_learns_and_the_seed_decides(problem: Problem, exposures: Exposures, training_rows: np.ndarray,
                                              tmp_path: Path) -> None:
    longer = dataclasses.replace(problem, training=dataclasses.replace(problem.training, epochs=4))
    first, again = (train(longer, tmp_path).score_exposures(exposures) for _ in range(2))
    np.testing.assert_array_equal(first["click"], again["click"])
    assert auc(exposures.column("click")[training_rows], first["click"][training_rows]) > 0.75


def test_unseen_optional_pairs_are_left_out(problem: Problem) -> None:
    """Hate comes in 0.1% of a thousand rows."""
    assert ("1", "hate") not in problem.registry.pairs
    assert len(problem.positive_weight) == len(problem.registry.pairs)


def test_required_pair_without_positives_is_named(exposures: Exposures, training_rows: np.ndarray) -> None:
    inside = np.array(exposures.rows["scene"].to_pylist()) == "0"
    quiet = training_rows & (exposures.column("click") == 0)
    registry = Registry(scenes=(Scene(name="0", tasks=("click",)),))
    with pytest.raises(InvalidFieldError, match=r"pair \(0, click\): got '0 positives'"):
        prepare(exposures.filter(inside), quiet[inside], registry, ModelConfig(experts=2), TrainingConfig(workers=0))


@pytest.mark.parametrize(("field", "value"), [
    ("epochs", 0), ("batch_size", 0), ("embedding_rate", 0.0), ("dense_rate", -1.0), ("strategy", "none"),
    ("workers", -1), ("threads", 0), ("minimum_positives", 0),
])
def test_bad_configs_are_named(field: str, value: object) -> None:
    with pytest.raises(InvalidFieldError, match=f"{field}: got "):
        TrainingConfig(**{field: value})
