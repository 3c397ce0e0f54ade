"""Values of sessions: by hand, against a tabular closed form, and refused where the log says nothing."""

import tracemalloc

import numpy as np
import pytest

from recfuse.config import InvalidFieldError
from recfuse.evaluation.ope import EstimateOptions
from recfuse.evaluation.sequential import (
    critic_weights,
    fitted_q_estimate,
    per_decision,
    sequential_doubly_robust,
    supported_horizon,
    trajectory_importance_sampling,
)
from recfuse.evaluation.sessions import Sessions
from tests.unit.evaluation import mdp

FEW = EstimateOptions(min_ess=1, min_events=0, draws=10, ratio_tolerance=np.inf)
# Sessions a = requests 0, 2 and b = request 1; ratios 2, 1/2 | 4; rewards 1, 10 | 3; γ = 1/2.
HAND = dict(log_prob=np.log([.4, .8, .2]), behaviour_log_prob=np.log([.2, .2, .4]), feedback=[[1.0], [3.0], [10.0]],
            discount=.5, cap=np.inf, session_id=["a", "b", "a"], user_id=["u", "v", "u"])


def by_hand(**changes):
    return Sessions.of(**{**HAND, **changes})


@pytest.mark.parametrize(("estimator", "normalise", "expected"), [
    # Weights: a 2 then 2·½ = 1; b 4. PDIS: (2·1 + ½·1·10 + 4·3) / 2 = 9.5.
    (per_decision, False, 9.5),
    # Of step 0: (2·1 + 4·3) / 6; of step 1, where b, which has ended, keeps its 4: ½·(1·10) / (1 + 4).
    (per_decision, True, 14 / 6 + 1),
    # Whole sessions: a weighs 1 and is worth 1 + 5 = 6; b weighs 4 and is worth 3.
    (trajectory_importance_sampling, False, (1 * 6 + 4 * 3) / 2),
    (trajectory_importance_sampling, True, (1 * 6 + 4 * 3) / 5),
])
def test_by_hand(estimator, normalise, expected):
    found = estimator(by_hand(), normalise=normalise, options=FEW)
    assert found.estimate[0] == pytest.approx(expected)
    assert found.logged[0] == pytest.approx((1 + 5 + 3) / 2)
    assert found.change[0] == pytest.approx(expected / 4.5 - 1)
    assert (found.requests, found.users, found.per) == (3, 2, "session")


def test_doubly_robust_by_hand():
    """q = (1, 2, 4), v = (3, 5, 6) on requests a0, b0, a1: a: 3 + 2·(1 − 1) + ½ [2·6 + 1·(10 − 4)] = 12;
    b: 5 + 4·(3 − 2) = 9. The mean is 10.5. With a horizon of 1 a's second request is the critic's: 3 + 0 + ½·2·6 = 9.
    """
    q, v = np.array([[1.0], [2.0], [4.0]]), np.array([[3.0], [5.0], [6.0]])
    assert sequential_doubly_robust(by_hand(), q, v, options=FEW).estimate[0] == pytest.approx(10.5)
    cut = sequential_doubly_robust(by_hand(), q, v, horizon=1, options=FEW)
    assert cut.estimate[0] == pytest.approx((9 + 9) / 2)
    assert cut.logged[0] == pytest.approx(4.5), "still of whole sessions"
    # Normalised: (3 + 5)/2 + [2·0 + 4·1]/6 + ½·2·6/6 + ½ [1·6 + 0]/5.
    own = sequential_doubly_robust(by_hand(), q, v, normalise=True, options=FEW)
    assert own.estimate[0] == pytest.approx(4 + 4 / 6 + 1 + .6)


@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("horizon", [1, 2, None])
@pytest.mark.parametrize("discount", [.5, [.5, 1.0]])
def test_the_critics_weights_make_the_estimate(normalise, horizon, discount):
    """The estimate with critics is that with 0 and what the critics' answers bring, each under its weight."""
    rng = np.random.default_rng(0)
    feedback = rng.normal(size=(3, 2)) if isinstance(discount, list) else rng.normal(size=(3, 1))
    sessions = by_hand(discount=discount, feedback=feedback, cap=3.0)
    q, v = rng.normal(size=(2, *feedback.shape))
    how = dict(normalise=normalise, horizon=horizon)
    of_action, of_value = critic_weights(sessions, **how)
    nothing = sequential_doubly_robust(sessions, 0 * q, 0 * v, FEW, **how).estimate
    found = sequential_doubly_robust(sessions, q, v, FEW, **how).estimate
    np.testing.assert_allclose(found, nothing + (of_action * q + of_value * v).sum(0))


def test_the_cap_cuts_products():
    """Cap 2: weights a 2, 1; b 2."""
    found = per_decision(by_hand(cap=2.0), options=FEW)
    assert found.estimate[0] == pytest.approx((2 + 5 + 6) / 2)


def plainly(ratio_log, feedback, discount, cap, session, step, normalise):
    """PDIS with an array of all sessions by all steps, in which what has ended keeps its last weight."""
    steps, count = step.max() + 1, session.max() + 1
    running, weights = np.zeros(count), np.ones((steps + 1, count))
    total = np.zeros(feedback.shape[1])
    for at in range(steps):
        rows = step == at
        running[session[rows]] += ratio_log[rows]
        weights[at + 1] = np.minimum(np.exp(running), cap)
        top = (weights[at + 1, session[rows], None] * feedback[rows]).sum(0) * np.power(discount, at)
        total += top / (weights[at + 1].sum() if normalise else count)
    return total, weights[1:]


@pytest.mark.parametrize("normalise", [False, True])
def test_sessions_of_any_length_give_what_all_steps_of_all_sessions_give(normalise):
    rng = np.random.default_rng(0)
    lengths = np.append(rng.geometric(.3, 200), 150)
    session = np.repeat(np.arange(201), lengths)
    step = np.concatenate([np.arange(length) for length in lengths])
    mixed = np.argsort(step + rng.random(len(step)) / 2, kind="stable")  # rows of sessions lie between each other
    ratio, feedback = rng.normal(-.02, .2, len(session)), rng.normal(2, 1, (len(session), 2))
    sessions = Sessions.of(ratio[mixed], np.zeros(len(mixed)), feedback[mixed], [.9, 1.0], 3.0, session[mixed],
                           session[mixed] // 3)
    expected, weights = plainly(ratio, feedback, np.array([.9, 1.0]), 3.0, session, step, normalise)
    found = per_decision(sessions, FEW, normalise=normalise)
    assert not found.refused
    np.testing.assert_allclose(found.estimate, expected, rtol=1e-10)
    np.testing.assert_allclose(sessions.products.total, weights.sum(1), rtol=1e-10)
    np.testing.assert_allclose(sessions.products.squares, (weights**2).sum(1), rtol=1e-10)
    np.testing.assert_array_equal(sessions.products.capped, (weights >= 3.0).sum(1))
    names = np.unique(session[mixed], return_index=True)[1]
    np.testing.assert_allclose(sessions.products.final[np.argsort(np.argsort(names))], weights[-1])
    assert found.estimator == ("SN-PDIS" if normalise else "PDIS")


def test_one_very_long_session_costs_what_it_holds():
    """2,000 sessions of 3 requests and one of 3,000: sessions times the longest would be 48 MB for each of the arrays
    that were once held, and 96 MB for the sums of users."""
    lengths = np.append(np.full(2_000, 3), 3_000)
    session, rng = np.repeat(np.arange(2_001), lengths), np.random.default_rng(0)
    ratio = rng.normal(0, .05, len(session))
    feedback = rng.normal(2, 1, (len(session), 2))
    tracemalloc.start()
    sessions = Sessions.of(ratio, np.zeros(len(session)), feedback, 1.0, 10.0, session, session)
    horizon = supported_horizon(sessions)
    for normalise in (False, True):
        sequential_doubly_robust(sessions, feedback, feedback, EstimateOptions(draws=50), normalise=normalise,
                                 horizon=horizon)
        critic_weights(sessions, normalise=normalise, horizon=horizon)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert horizon > 3
    assert peak < 40e6


@pytest.fixture(scope="module")
def log():
    return mdp.simulate(20_000, seed=1)


def sessions_of(log, discount, cap=np.inf):
    target, behaviour = log.log_probs
    return Sessions.of(target, behaviour, log.reward[:, None], discount, cap, log.session, log.session // 2)


@pytest.mark.parametrize("discount", [0.0, .8, 1.0])
@pytest.mark.parametrize("name", ["trajectory", "pdis", "sn-pdis", "dr", "sn-dr", "dr, wrong critic"])
def test_the_closed_form_is_found(log, name, discount):
    """The value of a session under the target policy is Σ_s P(s) v(s), by linear algebra."""
    v, q = mdp.values(mdp.TARGET, discount)
    truth = mdp.START @ v
    sessions = sessions_of(log, discount)
    critic = (q[log.state, log.action][:, None], v[log.state][:, None])
    some = dict(options=EstimateOptions(draws=300, min_ess=50))
    found = {
        "trajectory": lambda: trajectory_importance_sampling(sessions, normalise=True, **some),
        "pdis": lambda: per_decision(sessions, **some),
        "sn-pdis": lambda: per_decision(sessions, normalise=True, **some),
        "dr": lambda: sequential_doubly_robust(sessions, *critic, **some),
        "sn-dr": lambda: sequential_doubly_robust(sessions, *critic, normalise=True, **some),
        # E q over the target policy must be v, whatever q is; here q = 5 everywhere.
        "dr, wrong critic": lambda: sequential_doubly_robust(
            sessions, np.full((len(log.state), 1), 5.0), np.full((len(log.state), 1), 5.0), **some),
    }[name]()
    error = (found.high[0] - found.low[0]) / 3.92
    assert error < .15
    assert abs(found.estimate[0] - truth) < 4 * error


def test_the_right_critic_narrows_the_interval(log):
    v, q = mdp.values(mdp.TARGET, 1.0)
    sessions = sessions_of(log, 1.0)
    critic = (q[log.state, log.action][:, None], v[log.state][:, None])
    plain = per_decision(sessions, EstimateOptions(draws=300))
    robust = sequential_doubly_robust(sessions, *critic, EstimateOptions(draws=300))
    assert robust.high[0] - robust.low[0] < .95 * (plain.high[0] - plain.low[0])


def test_the_truth_of_the_first_requests():
    """With a horizon of 1 PDIS is importance sampling of the first request: Σ_s P(s) Σ_a π(a|s) r(s, a)."""
    log = mdp.simulate(20_000, seed=2)
    found = per_decision(sessions_of(log, 1.0), horizon=1, options=EstimateOptions(draws=300))
    assert found.low[0] < mdp.START @ (mdp.TARGET * mdp.REWARD).sum(1) < found.high[0]


def test_fitted_q_is_the_mean_value_of_the_first_states(log):
    v, _ = mdp.values(mdp.TARGET, 1.0)
    found = fitted_q_estimate(sessions_of(log, 1.0), v[log.state][:, None], options=EstimateOptions(draws=100))
    assert found.estimate[0] == pytest.approx(v[log.state[log.step == 0]].mean())


def test_a_fit_error_of_other_behaviours_is_refused(log):
    with pytest.raises(InvalidFieldError, match=r"fit_error: got \(5, 2\); allowed: an array \[users, 1\]"):
        fitted_q_estimate(sessions_of(log, 1.0), np.ones((len(log.state), 1)), fit_error=np.zeros((5, 2)))


def test_support_is_lost_with_the_number_of_requests():
    """Every request halves or doubles the weight: E ρ² = 1.5, so that the effective number falls by that."""
    rng = np.random.default_rng(0)
    steps, count = 40, 2_000
    ratio = np.where(rng.random(steps * count) < 2 / 3, .5, 2.0)
    sessions = Sessions.of(np.log(ratio), np.zeros(steps * count), np.ones((steps * count, 1)), 1.0, np.inf,
                           np.repeat(np.arange(count), steps), np.repeat(np.arange(count), steps))
    refused = per_decision(sessions)
    assert "requests, effective sample size" in refused.refused
    assert "the log holds too few actions" in refused.refused
    assert np.isnan(refused.estimate).all()
    horizon = supported_horizon(sessions)
    assert horizon == 3  # A fifth of the sessions is effective as long as 1.5^t ≤ 5.
    assert per_decision(sessions, horizon=horizon).refused == ""
    assert per_decision(sessions, horizon=4 * horizon).refused != ""


def test_a_cap_that_hides_what_is_missing_is_refused(log):
    """With a cap of 1 every request of the preferred action loses weight: the products' mean falls far below 1."""
    found = per_decision(sessions_of(log, 1.0, cap=1.0), normalise=True)
    assert "the mean ratio is 0." in found.refused
    assert "has no counterpart in the log, or is capped" in found.refused
    plain = per_decision(sessions_of(log, 1.0, cap=1.0))
    assert "where 1 ± 0.02 is asked of an estimate that is not normalised" in plain.refused


def test_rows_of_sessions_may_be_mixed(log):
    order = np.lexsort([log.session, log.step])
    mixed = mdp.Log(*(column[order] for column in log.__dict__.values()))
    one, two = (per_decision(sessions_of(which, .9), FEW).estimate[0] for which in (log, mixed))
    assert one == pytest.approx(two)


@pytest.mark.parametrize(("changes", "message"), [
    ({"discount": 1.5}, r"discount: got \[1.5\]; allowed: numbers in \[0, 1\]"),
    ({"session_id": ["a", "b"]}, "session_id: got 2; allowed: 3 ids, one a row"),
    ({"user_id": [None, "u", "u"]}, "user_id: got None; allowed: ids other than null"),
    ({"feedback": np.ones((2, 1))}, "feedback: got 2; allowed: 3 rows"),
    ({"cap": 0.0}, "cap: got 0.0; allowed: a number > 0"),
])
def test_bad_input_is_refused(changes, message):
    with pytest.raises(InvalidFieldError, match=message):
        by_hand(**changes)


def test_bad_critics_are_refused():
    with pytest.raises(InvalidFieldError, match=r"predicted: got \(2, 1\); allowed: \(3, 1\), as feedback"):
        sequential_doubly_robust(by_hand(), np.ones((2, 1)), np.ones((3, 1)))
    with pytest.raises(InvalidFieldError, match="horizon: got 0; allowed: an integer ≥ 1"):
        per_decision(by_hand(), horizon=0)
