"""A log means the same to ingest and to evaluation: rows, sessions, account; and a policy that judges its own log finds
the log's mean."""

from __future__ import annotations

import re
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pytest
import random_logs
from hypothesis import given, settings
from hypothesis import strategies as st

from recfuse.behaviours import Curve
from recfuse.config import InvalidFieldError
from recfuse.evaluation.answers import EstimateOptions
from recfuse.evaluation.case import Case
from recfuse.evaluation.estimator import estimate_all
from recfuse.evaluation.estimators import ESTIMATORS
from recfuse.evaluation.held_out import Reading, check_vocabulary, read_held_out
from recfuse.fusion.inference import FusionActor
from recfuse.logs.config import IngestConfig
from recfuse.logs.reading import ReadingConfig, read_log
from recfuse.logs.sessions import Sessions


def sessions_of(sessions: Sessions) -> set[tuple]:
    """Each as its user, whether the end of the log cuts it, and its requests in their order."""
    rows, found = sessions.rows, {}
    for number, cut, user, request in zip(sessions.number.tolist(), sessions.truncated.tolist(),
                                          rows["user_id"].to_pylist(), rows["request_id"].to_pylist(), strict=True):
        found.setdefault(number, (user, [], []))
        found[number][1].append(request)
        found[number][2].append(cut)
    return {(user, tuple(requests), any(cuts)) for user, requests, cuts in found.values()}


def rows_of(reading: Reading) -> dict[str, list]:
    """Request → what an estimator is told of it; densities, which samples keep in float32, to four decimals."""
    log = reading.log
    columns = (log.user_id, log.state, log.action, log.feedback, log.drawn, log.whole)
    return {request: [*(np.asarray(column[row]).tolist() for column in columns),
                      pytest.approx(log.log_prob[row], abs=1e-4, nan_ok=True)]
            for row, request in enumerate(log.request_id)}


def actor() -> FusionActor:
    return FusionActor("logged", random_logs.VOCABULARY, {"type": "fixed"},
                       {"mu": random_logs.MU, "sigma": random_logs.SIGMA})


@settings(max_examples=60, deadline=None)
@given(requests=st.lists(random_logs.REQUEST, min_size=1, max_size=40), options=random_logs.OPTIONS)
def test_ingest_and_evaluation_read_the_same(requests, options):
    with tempfile.TemporaryDirectory() as directory:
        logs = random_logs.write_log(Path(directory) / "logs", requests, options)
        rules = ReadingConfig(cut=options["cut"])
        raw = read_log(str(logs), rules)
        ingested = random_logs.ingest_here(
            IngestConfig(**rules.to_dict(), logs=str(logs), output=f"{directory}/samples"), seed=options["order"])
        assert asdict(raw.account) == {**asdict(ingested.account), "notes": tuple(ingested.account.notes)}
        if not ingested.account.kept:
            assert raw.sessions.rows.num_rows == 0
            return
        samples = read_log(ingested.samples)
        assert sessions_of(samples.sessions) == sessions_of(raw.sessions)
        assert len(sessions_of(raw.sessions)) == ingested.sessions
        assert rows_of(read_held_out(ingested.samples, random_logs.VOCABULARY)) == \
            rows_of(read_held_out(str(logs), random_logs.VOCABULARY, rules))


@settings(max_examples=40, deadline=None)
@given(requests=st.lists(random_logs.REQUEST, min_size=4, max_size=40), options=random_logs.OPTIONS)
def test_the_logged_policy_is_worth_the_logs_mean(requests, options):
    with tempfile.TemporaryDirectory() as directory:
        logs = str(random_logs.write_log(Path(directory) / "logs", requests, options))
        raw = read_log(logs)
        # Some of the densities are wrong, which nothing but mu and sigma can tell.
        if not raw.account.kept or "mu, sigma" in options["absent"]:
            return
        reading = read_held_out(logs, random_logs.VOCABULARY)
        case = Case(actor=actor(), log=reading.log, samples=None, cap=10.0, session_discount=.9,
                    options=EstimateOptions(min_ess=0, draws=10))
        answers = estimate_all(case, ESTIMATORS)
        assert [answer.estimator for answer in answers] == [
            "NCIS", "IS", "windowed NCIS", "ratio of rates", "PDIS", "SN-PDIS"]
        for answer in answers:
            if not answer.refused:
                np.testing.assert_allclose(answer.estimate, answer.logged, rtol=1e-4, atol=1e-6)
        drawn = raw.sessions.rows.filter(pc.fill_null(raw.sessions.rows["explored"], True))
        if drawn.num_rows:
            means = [pc.mean(pc.struct_field(drawn["feedback"], name)).as_py() for name in ("watch_time", "like")]
            np.testing.assert_allclose(answers[0].logged, means, rtol=1e-6)
        else:
            assert "was drawn from the policy" in answers[0].refused


@pytest.mark.parametrize(("change", "message"), [
    ({"formula": "log_sum"}, "holdout formula: got 'log_sum'; allowed: linear, as in the policy's vocabulary: a"),
    ({"curves": (Curve(x=(0.0, 1.0), y=(0.0, 1.0)),)}, "holdout curves: got 'curves of its own'; allowed: none, as in"),
])
def test_a_policy_of_another_formula_has_no_density_of_the_log(change, message):
    """Its vectors weigh something else, however alike they look."""
    policy = random_logs.VOCABULARY.replace(fusion_parameters=("click",), formula="linear")
    check_vocabulary(policy, policy, "holdout")
    with pytest.raises(InvalidFieldError, match=re.escape(message)):
        check_vocabulary(policy.replace(**change), policy, "holdout")
