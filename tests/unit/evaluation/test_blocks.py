"""Answers by question: changes by draws of both, what disagrees, one row for one number, and advice where none is."""

import dataclasses
import json

import numpy as np
import pytest

from recfuse.evaluation.advice import advice, least_scale, mean_square
from recfuse.evaluation.answers import EstimateOptions
from recfuse.evaluation.blocks import blocks_of, relative
from recfuse.evaluation.estimator import QUESTIONS, USER_OVER_TIME, estimate_all
from recfuse.evaluation.estimators import ESTIMATORS
from recfuse.evaluation.ope import importance_sampling, ncis
from recfuse.fusion.policies import FixedGaussian
from recfuse.stats.intervals import relative_change
from tests.unit.evaluation import depletion

DAY = 86_400_000_000


def tiny_log(rng, users=150, each=3):
    """Users of very different size; what an action adds is small beside it. The change under N(.3, 1) is .3 / 8."""
    action = rng.standard_normal((users, each))
    feedback = 4 * rng.gamma(1.0, size=(users, 1)) + 4 + action + rng.normal(0, .3, (users, each))
    return (-.5 * (action - .3)**2).ravel(), (-.5 * action**2).ravel(), feedback.reshape(-1, 1), np.repeat(
        np.arange(users), each)


def test_paired_changes_are_narrower_and_hold_the_truth():
    """In 200 logs of 150 users: the paired interval holds the change in 90 to 98%, at less than .6 of the width."""
    rng, held, widths = np.random.default_rng(0), 0, []
    for seed in range(200):
        log = tiny_log(rng)
        found = ncis(*log[:3], np.inf, log[3], EstimateOptions(draws=150, seed=seed))
        held += found.change_low[0] < .3 / 8 < found.change_high[0]
        apart = relative_change(found.high, found.logged) - relative_change(found.low, found.logged)
        widths.append((found.change_high[0] - found.change_low[0]) / apart[0])
        assert found.change[0] == pytest.approx(found.estimate[0] / found.logged[0] - 1)
    assert .90 <= held / 200 <= .98
    assert np.mean(widths) < .6


def test_what_is_not_normalised_is_refused_where_the_mean_ratio_leaves_one():
    """Ratios of .94 everywhere: the plain estimate is 6% too low; the normalised one loses the factor."""
    log = np.full(500, np.log(.94)), np.zeros(500), np.ones((500, 1)), np.inf, np.arange(500)
    refused = importance_sampling(*log)
    assert refused.refused == ("the mean ratio is 0.940, where 1 ± 0.02 is asked of an estimate that is not "
                               "normalised: it is wrong by the difference and more")
    assert np.isnan(refused.change).all()
    found = ncis(*log)
    assert found.estimate[0] == pytest.approx(1.0)
    np.testing.assert_allclose(found.bias_bound, .06)


def test_what_a_cap_hides_widens_the_interval_or_is_refused():
    """Large ratios have large feedback, E (5 + a) = 5.5 under N(.5, 1): a cap of 2.5 pulls the estimate down to where
    chance alone does not reach the truth any more; one of 2 by more than the interval."""
    rng = np.random.default_rng(0)
    action = rng.standard_normal(20_000)
    log = -.5 * (action - 1)**2, -.5 * action**2, 5 + action[:, None], 2.0, np.arange(20_000)
    assert "is missing would move the estimate by" in ncis(*log).refused or "1 is expected" in ncis(*log).refused
    mild = -.5 * (action - .5)**2, *log[1:3]
    assert "is missing would move the estimate by" in ncis(*mild, 2.0, log[4]).refused
    found, free = ncis(*mild, 2.5, log[4]), ncis(*mild, np.inf, log[4])
    assert found.high[0] - found.allowance[0] < 5.5 + .01 < free.high[0]
    assert found.low[0] < 5.5 < found.high[0]
    logged = action.mean() + 5
    assert found.change_high[0] - found.change[0] > found.allowance[0] / logged
    assert free.allowance[0] == 0


def test_whether_there_is_an_interval_does_not_depend_on_which_events_have_large_weights():
    """60 of 400 users have an event; a fifth of the users has nearly all weight, so that 60 · .2 events are left. Logs
    whose weighted events happen to be many are not picked: their estimates are too large."""
    log_ratio = np.where(np.arange(400) % 5 == 0, np.log(4.96), np.log(.01))
    for heavy in (60, 0):
        feedback = np.zeros((400, 1))
        first = np.flatnonzero(log_ratio > 0) if heavy else np.flatnonzero(log_ratio < 0)
        feedback[first[:60]] = 1
        found = ncis(log_ratio, np.zeros(400), feedback, np.inf, np.arange(400), EstimateOptions(min_ess=10))
        assert np.isfinite(found.change[0])
        assert np.isnan(found.change_low[0])


def test_a_behaviour_of_few_events_has_no_interval():
    """Of 400 users 16 have an event, of equal weights: 16 effective events; the dense column keeps its interval."""
    users = np.arange(400)
    feedback = np.column_stack([1 + users % 3, users < 16]).astype(float)
    found = ncis(np.zeros(400), np.zeros(400), feedback, np.inf, users)
    assert np.isfinite(found.change_low[0])
    assert np.isnan([found.low[1], found.high[1], found.change_low[1], found.change_high[1]]).all()
    assert found.estimate[1] == pytest.approx(.04)
    assert relative(found, 1) == "+0.0% (too few events)"
    enough = ncis(np.zeros(400), np.zeros(400), feedback, np.inf, users, EstimateOptions(min_events=16))
    assert np.isfinite(enough.change_low).all()
    # Signed feedback may have a small sum of many events.
    signed = np.column_stack([np.where(users % 2, 1.0, -1.0)])
    assert np.isfinite(ncis(np.zeros(400), np.zeros(400), signed, np.inf, users).low).all()


@pytest.fixture(scope="module")
def case():
    return depletion.case(1_500)


@pytest.fixture(scope="module")
def blocks(case):
    return blocks_of(case, ESTIMATORS, estimate_all(case, ESTIMATORS), ("watch_time",))


def test_four_questions_each_with_its_own_mean(case, blocks):
    assert [block.question for block in blocks] == list(QUESTIONS)
    sessions = case.whole_sessions.count
    for block, per in zip(blocks, (len(case.log.state), len(case.log.state), sessions, sessions), strict=True):
        assert block.logged[0] == pytest.approx(case.log.feedback.sum() / per)
        assert all(answer.per == block.question.unit for answer in block.answers)
    assert [bool(block.nobody) for block in blocks] == [False, False, False, True]
    assert blocks[-1].nobody == USER_OVER_TIME.nobody
    assert "A/B test" in blocks[-1].nobody
    assert [answer.estimator for answer in blocks[1].answers] == ["windowed NCIS"]
    assert blocks[1].trend
    assert not blocks[0].trend


def test_plain_values_are_json_with_nulls_for_what_nobody_knows(blocks):
    plain = json.loads(json.dumps([block.to_dict() for block in blocks], allow_nan=False))
    answers = {answer["estimator"]: answer for block in plain for answer in block["answers"]}
    assert answers["NCIS"]["cap"] is None
    assert answers["NCIS"]["window"] is None
    assert answers["NCIS"]["feedback_share"] is None
    assert answers["windowed NCIS"]["window"] >= 2
    assert answers["FQE"]["ranks_only"] is True
    assert answers["FQE"]["change_low"] == [None]
    assert answers["DM"]["bias_bound"] is None
    assert set(plain[1]["trend"][0]) == {"window", "change", "change_low", "change_high"}


def test_one_row_where_two_estimators_are_the_same_number():
    """Of the logged policy itself NCIS and IS are the log's mean, draw by draw."""
    same = depletion.case(500, policy=depletion.LOGGED)
    block = blocks_of(same, ESTIMATORS, estimate_all(same, ESTIMATORS), ("watch_time",))[0]
    assert block.answers[0].estimator == "NCIS = IS"
    assert [row[0] for row in block.rows()].count("IS") == 0


def test_estimators_of_one_question_that_cannot_both_be_right_are_named(case):
    """DM of critics that a constant was added to; SN-DR takes it out again."""
    shifted = dataclasses.replace(case)
    q, v = case.request_values
    shifted.__dict__.update(request_values=(q, v + .5))
    found = blocks_of(shifted, ESTIMATORS, estimate_all(shifted, ESTIMATORS), ("watch_time",))[0].disagreements
    pairs = {(each.first, each.second): each for each in found}
    assert ("NCIS", "DM") in pairs
    one = pairs["NCIS", "DM"]
    assert one.low < one.difference < one.high < 0
    assert one.difference == pytest.approx(-.5 / case.log.feedback.mean(), rel=.2)
    assert str(one).startswith("NCIS and DM disagree on watch_time: -")
    honest = blocks_of(case, ESTIMATORS, estimate_all(case, ESTIMATORS), ("watch_time",))[0].disagreements
    assert honest == ()


def test_the_mean_action_has_no_density_and_is_the_critics_alone(case):
    still = dataclasses.replace(case, explore=False)
    answers = {answer.estimator: answer for answer in estimate_all(still, ESTIMATORS)}
    for name in ("NCIS", "IS", "DR", "SN-DR", "windowed NCIS", "ratio of rates"):
        assert answers[name].refused == ("without exploration the policy takes its mean action, which has no density, "
                                         "so that no ratio is known")
    critic = still.folds[0].request
    expected = critic.predict(case.log.state, np.tile(depletion.POLICY.mu, (len(case.log.state), 1))).mean(0)
    np.testing.assert_allclose(answers["DM"].estimate, expected)
    assert not answers["FQE"].refused
    assert advice(still, blocks_of(still, ESTIMATORS, list(answers.values()), ("watch_time",))) == []


def test_critics_speak_of_no_user_that_they_have_seen(case):
    """Samples with half of the log's users: two sets of critics, each of the other half of the users."""
    known = case.samples.user.copy()
    known[::2] = np.resize(np.unique(case.log.user_id)[:700], len(known[::2]))
    shared = dataclasses.replace(case, samples=dataclasses.replace(case.samples, user=known))
    assert len(case.folds) == 1
    assert len(shared.folds) == 2
    for fold in shared.folds:
        assert not set(fold.samples.user) & set(case.log.user_id[fold.rows])
    assert sum(fold.rows.sum() for fold in shared.folds) == len(case.log.state)
    assert not np.isnan(shared.request_values[1]).any()


def test_mean_squares_of_gaussian_ratios():
    """Equal σ: e^(d²/σ²). Otherwise σ_b² / (σ √(2σ_b² − σ²)) e^(d² / (2σ_b² − σ²)); infinite from √2 σ_b on."""
    one = np.ones((1, 1))
    assert mean_square(2 * one, one, 0 * one, one) == pytest.approx(np.exp(4))
    assert mean_square(one, .5 * one, 0 * one, one) == pytest.approx(np.exp(1 / 1.75) / (.5 * 1.75**.5))
    assert mean_square(0 * one, 1.5 * one, 0 * one, one) == np.inf
    pair = np.array([[1.0, 0.0]])
    assert mean_square(pair, np.ones((1, 2)), 0 * pair, np.ones((1, 2))) == pytest.approx(np.e)


def test_the_least_exploration_that_gives_an_answer():
    """1,000 requests, d = 2, σ = 1: E ρ² is e⁴ = 54.6, 18 effective ones. At 1.18 σ it is 1.0425 · e^2.241 = 9.80."""
    mu, one = np.full((1_000, 1), 2.0), np.ones((1_000, 1))
    scale = least_scale(mu, one, 0 * one, one, 100.0)
    assert scale == pytest.approx(1.18, abs=.012)
    assert 1_000 / mean_square(mu, one, 0 * one, scale * one) >= 100
    assert least_scale(mu, one, 0 * one, one, 18.0) == 1
    assert least_scale(100 * mu, one, 0 * one, one, 100.0) is None


def test_advice_counts_days_and_exploration():
    """1,600 requests in 8 days, d² / σ² = 3.24: E ρ² = 25.5, 62.7 effective ones. 400 need 5.38 times as many more:
    43.1 days."""
    rng, count = np.random.default_rng(0), 1_600
    action = rng.normal(0, 1, (count, 1)).astype(np.float32)
    small = depletion.case(10)
    users = np.arange(count)
    log = dataclasses.replace(
        small.log, user_id=users, session=users, state=np.zeros((count, 1), np.float32), action=action,
        feedback=np.ones((count, 1)), log_prob=(-.5 * action[:, 0]**2 - .5 * np.log(2 * np.pi)).astype(np.float64),
        mu=np.zeros((count, 1), np.float32), sigma=np.ones((count, 1), np.float32),
        ts=np.linspace(0, 8 * DAY, count).astype(np.int64))
    case = dataclasses.replace(depletion.case(10, policy=FixedGaussian([1.8], 1.0)), log=log, samples=None,
                               options=EstimateOptions(min_ess=400, draws=20))
    answers = estimate_all(case, ESTIMATORS)
    assert all(answer.refused for answer in answers)
    first, size, days, more = advice(case, blocks_of(case, ESTIMATORS, answers, ("watch_time",)))
    assert first.startswith("no ratio answers “one changed request” and “a request when the policy is followed” and")
    assert size == "1,600 requests of this log are worth 62.7 of the policy's own, and 400 are needed"
    assert days == "44 more days logged alike would give an answer, beside the 8.0 days of this log"
    assert "times the σ, would give an answer" in more
