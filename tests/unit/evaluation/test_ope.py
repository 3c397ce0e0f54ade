"""NCIS (maths 4.1): by hand, by a known truth, and refused where the log says nothing."""

import numpy as np
import pytest
import torch

from recfuse.config import InvalidFieldError
from recfuse.evaluation.ope import EstimateOptions, direct_method, doubly_robust, importance_sampling, ncis

FEW = EstimateOptions(min_ess=1, min_events=0, draws=20, ratio_tolerance=np.inf)


def test_by_hand():
    """Ratios 1/2, 2, 8 with cap 4: ρ = (1/2, 2, 4), Σρ = 6.5.

    Behaviour 1, r = (10, 1, 0): (5 + 2 + 0) / 6.5 = 14/13. Behaviour 2, r = (0, 0, 1): 4 / 6.5 = 8/13.
    ESS = 6.5² / (1/4 + 4 + 16) = 42.25 / 20.25. One of three weights is capped.
    """
    found = ncis(np.log([.1, .4, .8]), np.log([.2, .2, .1]), [[10, 0], [1, 0], [0, 1]], 4.0, ["a", "b", "c"], FEW)
    np.testing.assert_allclose(found.estimate, [14 / 13, 8 / 13], rtol=1e-12)
    np.testing.assert_allclose(found.ess, 42.25 / 20.25, rtol=1e-12)
    np.testing.assert_allclose(found.logged, [11 / 3, 1 / 3], rtol=1e-12)
    assert found.capped_share == pytest.approx(1 / 3)
    assert (found.requests, found.users, found.refused) == (3, 3, "")
    low, high = found.interval
    assert (low <= found.estimate).all()
    assert (found.estimate <= high).all()


def test_the_logging_policy_itself_gives_the_mean_of_the_log():
    rng = np.random.default_rng(0)
    log_prob, feedback = rng.normal(size=500), rng.random((500, 2))
    found = ncis(log_prob, log_prob, feedback, 10.0, rng.integers(0, 50, 500))
    np.testing.assert_allclose(found.estimate, feedback.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.ess, 500)


def test_tensors_and_arrays_agree():
    rng = np.random.default_rng(0)
    values = rng.normal(size=200), rng.normal(size=200), rng.random((200, 3)), np.arange(200) % 20
    arrays = ncis(*values[:3], 5.0, values[3])
    tensors = ncis(*(torch.from_numpy(value) for value in values[:3]), 5.0, values[3])
    np.testing.assert_array_equal(arrays.estimate, tensors.estimate)
    np.testing.assert_array_equal(arrays.low, tensors.low)


def test_it_finds_the_value_of_another_gaussian_policy():
    """r = a + noise: the value of N(0.3, 1) is 0.3, estimated from a log of N(0, 1)."""
    rng = np.random.default_rng(4)
    action = rng.normal(size=20_000)
    feedback = action + rng.normal(size=20_000)
    found = ncis(-.5 * (action - .3) ** 2, -.5 * action**2, feedback[:, None], 50.0, np.arange(20_000) // 4)
    assert found.low[0] < .3 < found.high[0]
    assert found.high[0] - found.low[0] < .1


def test_the_interval_is_over_users_not_requests():
    """Each user's ten requests are alike, so that ten times the requests narrow nothing."""
    rng = np.random.default_rng(5)
    value = rng.normal(size=(200, 1))
    once = ncis(np.zeros(200), np.zeros(200), value, 1.0, np.arange(200))
    often = ncis(np.zeros(2_000), np.zeros(2_000), np.repeat(value, 10, 0), 1.0, np.repeat(np.arange(200), 10))
    assert often.high[0] - often.low[0] == pytest.approx(once.high[0] - once.low[0], rel=.05)


def test_extreme_ratios_do_not_overflow():
    """Log-ratios of ±2000: the two huge ones share all the weight equally under a cap."""
    log_prob = np.array([2_000., 2_000., -2_000., -np.inf])
    found = ncis(log_prob, np.zeros(4), [[1.], [3.], [100.], [100.]], 10.0, list("abcd"), options=FEW)
    assert found.estimate[0] == pytest.approx(2.0)
    assert found.ess[0] == pytest.approx(2.0)
    uncapped = ncis(log_prob, np.zeros(4), [[1.], [3.], [100.], [100.]], np.inf, list("abcd"), options=FEW)
    assert uncapped.estimate[0] == pytest.approx(2.0)
    assert uncapped.capped_share == 0


def test_too_little_support_is_refused_with_the_reason():
    log_prob = np.full(1_000, -50.0)
    log_prob[0] = 0.0
    found = ncis(log_prob, np.zeros(1_000), np.ones((1_000, 2)), 10.0, np.arange(1_000))
    assert found.refused.startswith("effective sample size 1.0 of 1,000 requests is below 100")
    assert np.isnan(found.estimate).all()
    assert np.isnan(found.low).all()
    np.testing.assert_array_equal(found.logged, 1)


def test_one_user_has_no_interval():
    found = ncis(np.zeros(500), np.zeros(500), np.ones((500, 1)), 10.0, np.zeros(500))
    assert found.refused == "1 user: an interval over users needs at least 2"


def test_a_policy_that_takes_none_of_the_actions_is_refused():
    found = ncis(np.full(5, -np.inf), np.zeros(5), np.ones((5, 1)), np.inf, np.arange(5), EstimateOptions(min_ess=0))
    assert "effective sample size 0.0" in found.refused


GOOD = {"log_prob": np.zeros(3), "behaviour_log_prob": np.zeros(3), "feedback": np.ones((3, 2)), "cap": 2.0,
        "user_id": np.arange(3)}


@pytest.mark.parametrize(("changes", "message"), [
    ({"log_prob": np.zeros((3, 1))}, r"log_prob: got \(3, 1\); allowed: an array \[n\]"),
    ({"log_prob": np.array([0, np.nan, 0])}, "log_prob: got nan; allowed: numbers < inf"),
    ({"behaviour_log_prob": np.zeros(2)}, "behaviour_log_prob: got 2; allowed: 3 values, as in log_prob"),
    ({"behaviour_log_prob": np.array([0, -np.inf, 0])}, "behaviour_log_prob: got -inf; allowed: finite numbers"),
    ({"feedback": np.ones(3)}, r"feedback: got \(3,\); allowed: an array \[n, m\]"),
    ({"feedback": np.ones((2, 2))}, "feedback: got 2; allowed: 3 rows, as in log_prob"),
    ({"feedback": np.full((3, 2), np.nan)}, "feedback: got nan; allowed: finite numbers"),
    ({"cap": 0.0}, "cap: got 0.0; allowed: a number > 0"),
    ({"cap": float("nan")}, "cap: got nan; allowed: a number > 0"),
    ({"user_id": np.arange(2)}, "user_id: got 2; allowed: 3 ids, one a row"),
    ({"log_prob": np.zeros(0), "behaviour_log_prob": np.zeros(0), "feedback": np.ones((0, 2)), "user_id": []},
     "log_prob: got 0; allowed: at least one request"),
])
def test_bad_input_is_refused(changes, message):
    with pytest.raises(InvalidFieldError, match=message):
        ncis(**{**GOOD, **changes})


@pytest.mark.parametrize(("changes", "message"), [
    ({"min_ess": -1.0}, "min_ess: got -1.0; allowed: a number ≥ 0"),
    ({"draws": 0}, "draws: got 0; allowed: an integer ≥ 1"),
    ({"level": 1.0}, r"level: got 1.0; allowed: a number in \(0, 1\)"),
])
def test_bad_options_are_refused(changes, message):
    with pytest.raises(InvalidFieldError, match=message):
        EstimateOptions(**changes)


# Ratios 1/2, 2, 8 and r = 10, 1, 0 as above; q = 8, 2, 1; v = 6, 3, 0.
HAND = (np.log([.1, .4, .8]), np.log([.2, .2, .1]), [[10.], [1.], [0.]], np.inf, ["a", "b", "c"])
CRITIC = ([[8.], [2.], [1.]], [[6.], [3.], [0.]])


def test_plain_importance_sampling_by_hand():
    """(½·10 + 2·1 + 8·0) / 3 = 7/3; with cap 1 (½·10 + 1·1) / 3 = 2. The mean ratio is 10.5 / 3."""
    found = importance_sampling(*HAND, options=FEW)
    assert found.estimate[0] == pytest.approx(7 / 3)
    assert found.mean_ratio == pytest.approx(3.5)
    assert found.estimator == "IS"
    capped = importance_sampling(*HAND[:3], 1.0, HAND[4], options=FEW)
    assert capped.estimate[0] == pytest.approx(2.0)


@pytest.mark.parametrize("cap", [.5, 1.0, 2.0, 4.0])
def test_what_a_cap_hides_is_bounded_by_the_mean_ratio(cap):
    """Every action once under a uniform log, so that the log is its own expectation: ratios 4π, value Σ π r = 7.275."""
    policy, reward = np.array([.1, .2, .05, .65]), np.array([9.0, 0.0, 4.0, 9.5])[:, None]
    log = (np.log(policy), np.log(np.full(4, .25)), reward)
    value = (policy @ reward)[0]
    assert importance_sampling(*log, np.inf, np.arange(4), FEW).estimate[0] == pytest.approx(value)
    found = importance_sampling(*log, cap, np.arange(4), FEW)
    hidden = value - found.estimate[0]
    assert hidden == pytest.approx((np.maximum(4 * policy - cap, 0) @ reward)[0] / 4)
    assert 0 <= hidden <= reward.max() * (1 - found.mean_ratio) + 1e-12


def test_doubly_robust_by_hand():
    """mean v = 3; (½·(10 − 8) + 2·(1 − 2) + 8·(0 − 1)) / 3 = −3; normalised −9 / 10.5."""
    assert doubly_robust(*HAND, *CRITIC, options=FEW).estimate[0] == pytest.approx(0.0)
    normalised = doubly_robust(*HAND, *CRITIC, normalise=True, options=FEW)
    assert normalised.estimate[0] == pytest.approx(3 - 9 / 10.5)
    alone = direct_method(CRITIC[1], HAND[2], HAND[4], FEW)
    assert alone.estimate[0] == pytest.approx(3.0)
    assert alone.change[0] == pytest.approx(3 / (11 / 3) - 1)
    # By the same critic the logged policy is worth (8 + 2 + 1) / 3.
    assert direct_method(CRITIC[1], HAND[2], HAND[4], FEW, predicted=CRITIC[0]).change[0] == pytest.approx(
        (3 - 11 / 3) / (11 / 3))


def test_doubly_robust_needs_only_one_to_be_right():
    """r = a + noise, π = N(0.3, 1) on a log of N(0, 1), whose value is 0.3: wrong critics with right ratios, and the
    right critic with wrong ratios."""
    rng = np.random.default_rng(4)
    action = rng.normal(size=20_000)
    feedback, users = (action + rng.normal(size=20_000))[:, None], np.arange(20_000)
    right, behaviour = -.5 * (action - .3)**2, -.5 * action**2
    wrong = doubly_robust(right, behaviour, feedback, 50.0, users, np.full_like(feedback, 7.0),
                          np.full_like(feedback, 7.0))
    exact = doubly_robust(behaviour, behaviour, feedback, 50.0, users, action[:, None], np.full_like(feedback, .3))
    for found in (wrong, exact):
        assert abs(found.estimate[0] - .3) < 4 * (found.high[0] - found.low[0]) / 3.92
    assert exact.high[0] - exact.low[0] < .04


def test_missing_support_that_the_sample_size_hides_is_refused():
    """The log never takes what the policy does nine times in ten: ratios of .1 everywhere, a full effective sample."""
    found = ncis(np.full(1_000, np.log(.1)), np.zeros(1_000), np.ones((1_000, 1)), 10.0, np.arange(1_000))
    assert found.ess[0] == pytest.approx(1_000)
    assert found.refused == ("the mean ratio is 0.10, where 1 is expected: 90% of what this policy does has no "
                             "counterpart in the log, or is capped")


@pytest.mark.parametrize("shape", [(3, 2), (2, 1)])
def test_critics_of_another_shape_are_refused(shape):
    with pytest.raises(InvalidFieldError, match=rf"predicted: got \({shape[0]}, {shape[1]}\); allowed: \(3, 1\)"):
        doubly_robust(*HAND, np.ones(shape), np.ones((3, 1)))


def test_zr_obp_computes_the_same():
    """IPW, SNIPW, DM, DR and SNDR of zr-obp on random bandit feedback."""
    obp = pytest.importorskip("obp.ope", reason="zr-obp is not installed")
    rng = np.random.default_rng(0)
    rounds, actions = 2_000, 5
    policy, logged = (rng.dirichlet(np.ones(actions), rounds) for _ in range(2))
    action = np.array([rng.choice(actions, p=p) for p in logged])
    reward, model = rng.random(rounds), rng.random((rounds, actions))
    rows = np.arange(rounds)
    chosen, pscore = policy[rows, action], logged[rows, action]
    ours = dict(log_prob=np.log(chosen), behaviour_log_prob=np.log(pscore), feedback=reward[:, None], cap=np.inf,
                user_id=rows, options=EstimateOptions(min_ess=1, draws=2, ratio_tolerance=np.inf))
    critic = dict(predicted=model[rows, action][:, None], expected=(policy * model).sum(1)[:, None])
    theirs = dict(reward=reward, action=action, pscore=pscore, action_dist=policy[..., None],
                  estimated_rewards_by_reg_model=model[..., None], position=np.zeros(rounds, int))
    pairs = [
        (importance_sampling(**ours), obp.InverseProbabilityWeighting()),
        (ncis(**ours), obp.SelfNormalizedInverseProbabilityWeighting()),
        (doubly_robust(**ours, **critic), obp.DoublyRobust()),
        (doubly_robust(**ours, **critic, normalise=True), obp.SelfNormalizedDoublyRobust()),
        (direct_method(critic["expected"], ours["feedback"], rows, FEW), obp.DirectMethod()),
    ]
    for found, estimator in pairs:
        assert found.estimate[0] == pytest.approx(estimator.estimate_policy_value(**theirs), abs=1e-9), found.estimator
