"""The real ingest and the real evaluation on random logs: the same rows, sessions and account, streaming or not."""

from __future__ import annotations

from dataclasses import asdict

import hypothesis
import numpy as np
import pytest
import random_logs
from hypothesis import strategies as st

from recfuse.evaluation.evaluate import evaluate
from recfuse.fusion.inference import export_policy
from recfuse.fusion.policies import FixedGaussian
from recfuse.logs.config import IngestConfig
from recfuse.logs.ingest import ingest
from recfuse.logs.reading import read_log
from recfuse.report.config import ReportConfig
from tests.unit.evaluation.test_one_reading import sessions_of


@pytest.fixture(scope="module")
def logs():
    """Four logs, the same ones in every run."""
    drawn = []

    @hypothesis.settings(max_examples=4, deadline=None, derandomize=True, database=None,
                         phases=[hypothesis.Phase.generate])
    @hypothesis.given(requests=st.lists(random_logs.REQUEST, min_size=25, max_size=40), options=random_logs.OPTIONS)
    def draw(requests, options):
        drawn.append((requests, options))

    draw()
    return drawn


@pytest.mark.usefixtures("local_ray")
def test_ingest_and_evaluate_read_the_same(logs, tmp_path):
    bundle = export_policy(tmp_path / "fusion", FixedGaussian(random_logs.MU, random_logs.SIGMA),
                           random_logs.VOCABULARY, training={}, data_fingerprint="", metrics={})
    judged = 0
    for number, (requests, options) in enumerate(logs):
        path = str(random_logs.write_log(tmp_path / f"log {number}", requests, options))
        raw = read_log(path)
        if not raw.account.kept:
            continue
        samples = str(tmp_path / f"samples {number}")
        ingested = ingest(IngestConfig(logs=path, output=samples, quarantine_limit=1.0))
        assert asdict(ingested.account) | {"notes": None} == asdict(raw.account) | {"notes": None}
        assert sessions_of(read_log(samples).sessions) == sessions_of(raw.sessions)
        none = str(tmp_path / "none")
        config = ReportConfig(fusion=str(bundle), holdout=path, samples="", min_ess=0, scenes=none,
                              output=str(tmp_path / f"report {number}"), simulation=none, ab_test=none,
                              serving=none)
        results = [evaluate(config), evaluate(config.replace(holdout=samples)),
                   evaluate(config.replace(streaming=True))]
        first = results[0].off_policy
        for result in results:
            assert asdict(result.reading.account) | {"notes": None} == asdict(raw.account) | {"notes": None}
            found = result.off_policy
            assert (found.requests, found.users, found.refused) == (first.requests, first.users, first.refused)
            np.testing.assert_allclose(found.logged, first.logged, rtol=1e-6)
            for answer in result.estimates:
                if not answer.refused:
                    np.testing.assert_allclose(answer.estimate, answer.logged, rtol=1e-4, atol=1e-6)
                    judged += 1
    assert judged > 0
