"""The job `simulate`: from the embedded exposures to a world and its logs, resumed where it stopped."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError
from recfuse.jobs import simulate as job
from recfuse.logs.account import Account
from recfuse.logs.schema import session_log_schema
from recfuse.scenes.registry import KUAIRAND
from recfuse.scenes.sources import Source
from recfuse.simulation.config import ResponseConfig, SimulateConfig
from recfuse.simulation.output import claimed
from recfuse.simulation.world import World, WorldConfig
from tests.unit.simulation import worlds

SMALL = WorldConfig(users=100, pool=30, candidates=15, page=3)


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A small run whose scorer is the tests' own."""
    scorer = worlds.NoisyScorer(worlds.response())
    monkeypatch.setattr("recfuse.simulation.simulate.read_source",
                        lambda logs, *_, **__: Source(worlds.exposures()[0], KUAIRAND))
    monkeypatch.setattr("recfuse.simulation.simulate.load_scorer", lambda path: scorer)
    return SimulateConfig(output=str(tmp_path), world=SMALL, response=ResponseConfig(epochs=1), persons=200,
                          holdout_persons=50)


def test_logs_world_and_metrics(config, tmp_path, capsys):
    result = job.main(config)
    vocabulary = Vocabulary.load(tmp_path / "logs" / "vocabulary.yaml")
    log = pq.read_table(sorted((tmp_path / "logs").glob("*.parquet")))
    assert log.schema.equals(session_log_schema(vocabulary))
    assert log.num_rows == result.requests
    assert pq.read_table(sorted((tmp_path / "holdout").glob("*.parquet"))).num_rows > 0
    assert World.load(tmp_path / "world").vocabulary == vocabulary
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics["response"]["auc"]) == {"click", "long_view", *("like", "comment", "forward", "follow", "hate")}
    mu = np.array(log["mu"].to_pylist()[0])
    assert mu.tolist() == pytest.approx([1.0 if name in ("click", "long_view", "watch_time") else .3
                                         for name in vocabulary.fusion_parameters], rel=1e-6)
    users, held_out = (set(pq.read_table(sorted((tmp_path / name).glob("*.parquet")), columns=["user_id"])["user_id"]
                           .to_pylist()) for name in ("logs", "holdout"))
    tastes, of_held_out = ({user.split(".")[0] for user in some} for some in (users, held_out))
    assert len(held_out) == 50
    assert not tastes & of_held_out, "the logs and the holdout have no user in common"
    shown = capsys.readouterr().out
    assert "measures within 10% of the log" in shown
    assert "World under the logged policy" in shown
    assert len(metrics["fidelity"]) == len(result.effects)
    assert result.fidelity_verdict in " ".join(shown.split())


def test_a_rerun_takes_up_the_world_and_another_config_starts_anew(config, tmp_path):
    first = job.main(config)
    (tmp_path / "logs" / "part-00000.parquet").unlink()
    again = job.main(config)
    assert again.reused
    assert again.requests == first.requests
    other = job.main(config.replace(seed=7))
    assert not other.reused
    assert other.requests != first.requests


def test_many_quarantined_exposures_end_the_job_after_it_has_written(config, tmp_path, monkeypatch):
    exposures = worlds.exposures()[0]
    kept = exposures.rows.num_rows
    bad = replace(exposures, account=Account(rows_in=kept + 1_000, kept=kept, quarantined={"broken": 1_000}))
    monkeypatch.setattr("recfuse.simulation.simulate.read_source", lambda logs, *_, **__: Source(bad, KUAIRAND))
    config = config.replace(quarantine_limit=.5 * 1_000 / (kept + 1_000))
    for _ in range(2):  # a rerun, which takes the world up, says so too
        with pytest.raises(InvalidFieldError, match=r"exposures: got .* of the rows quarantined"):
            job.main(config)
    assert list((tmp_path / "logs").glob("*.parquet"))
    assert job.main(config.replace(quarantine_limit=1.0)).reused, "the limit is no part of the run"


def test_bad_configs_are_refused(tmp_path):
    with pytest.raises(InvalidFieldError, match=r"behaviour_sigma: got 0.*allowed: a number > 0"):
        SimulateConfig(behaviour_sigma=0.0)
    with pytest.raises(InvalidFieldError, match=r"scenes bundle: got .*allowed: a bundle of kind scenes"):
        job.main(SimulateConfig(scorer=str(tmp_path), output=str(tmp_path)))


def test_what_the_job_did_not_write_is_never_removed(config, tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mine.parquet").write_text("a year of session logs")
    with pytest.raises(InvalidFieldError, match=r"output: got 'mine.parquet'; allowed: nothing in .*logs but what"):
        job.main(config)
    assert (tmp_path / "logs" / "mine.parquet").read_text() == "a year of session logs"
    (tmp_path / "logs" / "mine.parquet").unlink()
    first = job.main(config)
    (tmp_path / "holdout" / "mine.parquet").write_text("another year")
    assert job.main(config).reused, "beside what is finished, it is in nobody's way"
    with pytest.raises(InvalidFieldError, match=r"output: got 'mine.parquet'"):
        job.main(config.replace(seed=7))
    assert (tmp_path / "holdout" / "mine.parquet").exists()
    assert job.main(config).requests == first.requests, "a run that was refused has removed nothing"


def test_the_metrics_of_somebody_else_are_not_overwritten(config, tmp_path):
    (tmp_path / "metrics.json").write_text('{"auc": 0.7}')
    with pytest.raises(InvalidFieldError, match=r"output: got .*metrics.json.*one that this job wrote"):
        job.main(config)
    assert json.loads((tmp_path / "metrics.json").read_text()) == {"auc": 0.7}


def test_a_run_that_fails_removes_nothing_and_one_cut_off_is_not_taken_for_finished(config, tmp_path, monkeypatch):
    first = job.main(config)
    with monkeypatch.context() as patch:
        patch.setattr("recfuse.simulation.simulate.read_source",
                      lambda logs, *_, **__: (_ for _ in ()).throw(InvalidFieldError("logs", logs, "exposures")))
        with pytest.raises(InvalidFieldError, match="logs"):
            job.main(config.replace(seed=7))
    assert job.main(config).reused, "the refused run has removed nothing"
    with monkeypatch.context() as patch:
        patch.setattr(World, "save", lambda world, directory: (directory / "world.npz").write_bytes(b"half"))
        patch.setattr("recfuse.simulation.output.os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            job.main(config.replace(seed=7))
    again = job.main(config)
    assert not again.reused
    assert again.requests == first.requests


def test_a_second_run_into_the_same_output_is_refused(config, tmp_path):
    with claimed(tmp_path), pytest.raises(InvalidFieldError, match="no other job is writing to"):
        job.main(config)
