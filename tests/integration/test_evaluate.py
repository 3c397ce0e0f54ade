"""The job `evaluate`: NCIS on held-out logs, and the report."""

import json

import numpy as np
import pytest

from jobs import evaluate as job
from recfuse.errors import InvalidFieldError
from recfuse.evaluation.evaluate import EvaluateConfig
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.simulation.rollout import write_logs
from tests.unit.simulation import worlds


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A held-out log of the declared policy."""
    root = tmp_path_factory.mktemp("run")
    write_logs(worlds.world(), worlds.LOGGED, root / "holdout", persons=300, seed=5, model_version="declared")
    return root


def config(run, output, policy):
    bundle = export_policy(output / "fusion", policy, worlds.world().vocabulary, training={}, data_fingerprint="none",
                           metrics={})
    return EvaluateConfig(fusion=str(bundle.parent), holdout=str(run / "holdout"), samples=str(run / "none"),
                          scenes=str(run / "none"), simulation=str(run / "none"), ab_test=str(run / "none"),
                          serving=str(run / "none.json"), output=str(output / "report"))


def test_the_logging_policy_has_the_value_of_its_log(run, tmp_path, capsys):
    result = job.main(config(run, tmp_path, worlds.LOGGED))
    found = result.off_policy
    np.testing.assert_allclose(found.estimate, found.logged, rtol=1e-4)
    assert found.ess[0] == pytest.approx(found.requests, rel=1e-4)
    assert result.report.read_text().count("<img") == 1
    written = json.loads((tmp_path / "report" / "metrics.json").read_text())
    assert written["off_policy"]["behaviours"] == ["watch_time", "like", "comment", "forward", "follow"]
    assert "report:" in capsys.readouterr().out


def test_a_policy_far_from_the_log_is_refused(run, tmp_path):
    result = job.main(config(run, tmp_path, FixedGaussian([9] * 6, .1)))
    assert "effective sample size" in result.off_policy.refused
    assert result.rows()[0][2] == "–"


def test_bad_input_is_refused(run, tmp_path):
    import dataclasses

    good = config(run, tmp_path, worlds.LOGGED)
    with pytest.raises(InvalidFieldError, match=r"holdout: got .*nowhere.*a directory of session logs or samples"):
        job.main(dataclasses.replace(good, holdout=str(tmp_path / "nowhere")))
    with pytest.raises(InvalidFieldError, match=r"fusion bundle: got .*a bundle of kind fusion, or a directory"):
        job.main(dataclasses.replace(good, fusion=str(tmp_path / "nowhere")))
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(InvalidFieldError, match=r"broken\.json: got .*a JSON file"):
        job.main(dataclasses.replace(good, serving=str(tmp_path / "broken.json")))
    with pytest.raises(InvalidFieldError, match=r"cap: got 0.*allowed: a number > 0"):
        dataclasses.replace(good, cap=0.0)
