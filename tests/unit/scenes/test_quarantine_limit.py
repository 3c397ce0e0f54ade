"""Exposures of which many are quarantined train a scorer, and the job ends with an error that says so."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recfuse.config import InvalidFieldError
from recfuse.jobs.train_scenes import main
from recfuse.logs.account import Account
from recfuse.logs.exposures import Exposures
from recfuse.scenes.config import TrainScenesConfig
from recfuse.tune.scenes import scenes_study
from recfuse.tune.settings import ScenesConfig, SweepConfig

from .conftest import MODEL, REGISTRY, TRAINING


@pytest.fixture
def logs(tmp_path: Path, exposures: Exposures) -> Path:
    """Native files, a tenth of whose rows have a click of 7."""
    click = exposures.column("click").copy()
    click[::10] = 7
    place = exposures.rows.column_names.index("click")
    pq.write_table(exposures.rows.set_column(place, "click", pa.array(click)), tmp_path / "rows.parquet")
    pq.write_table(exposures.users, tmp_path / "users.parquet")
    pq.write_table(exposures.items, tmp_path / "items.parquet")
    return tmp_path


def test_the_job_ends_with_an_error_after_it_has_written(logs: Path) -> None:
    config = TrainScenesConfig(exposures=str(logs), layout="native", registry=REGISTRY, output=str(logs / "scenes"),
                               model=MODEL, training=TRAINING.replace(epochs=1), intervals=0)
    for _ in range(2):  # a rerun, which takes the result up, says so too
        with pytest.raises(InvalidFieldError, match=r"exposures: got '10.0% of the rows quarantined'; allowed: at most "
                                                    r"5.0% \(quarantine_limit\); the commonest fault is click is not"):
            main(config)
        assert (logs / "scenes" / "metrics.json").is_file()
    assert main(config.replace(quarantine_limit=.2)).reused, "the limit is no part of the run"


@pytest.mark.parametrize("content", ["{oops", "[]", '{"mine": 1}'])
def test_metrics_of_somebody_else_are_not_written_over(logs: Path, content: str) -> None:
    (logs / "metrics.json").write_text(content)
    with pytest.raises(InvalidFieldError, match=r"output: got .*metrics.json'; allowed: no file of this name"):
        main(TrainScenesConfig(exposures=str(logs), layout="native", registry=REGISTRY, output=str(logs), model=MODEL,
                               training=TRAINING, intervals=0))
    assert (logs / "metrics.json").read_text() == content


def test_a_sweep_of_the_scorer_refuses_them(tmp_path: Path, exposures: Exposures, monkeypatch) -> None:
    bad = replace(exposures, account=Account(rows_in=10, kept=9, quarantined={"broken": 1}))
    monkeypatch.setattr("recfuse.tune.scenes.read_source", lambda logs: SimpleNamespace(exposures=bad))
    config = SweepConfig(learner="scenes", scenes=ScenesConfig(), space=({"training.learning_rate": [1e-3]},),
                         output=str(tmp_path))
    with pytest.raises(InvalidFieldError, match=r"scenes\.exposures: got '10.0% of the rows quarantined'"):
        scenes_study(config)
