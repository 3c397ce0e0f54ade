"""Fitted Q evaluation against a tabular closed form, which linear critics of two states and actions hold exactly."""

import dataclasses

import numpy as np
import pytest

from recfuse.config import InvalidFieldError
from recfuse.evaluation.fitted_q import Transitions, fit_critics
from recfuse.evaluation.ope import EstimateOptions
from recfuse.evaluation.sequential import Sessions, critic_weights, fitted_q_estimate, sequential_doubly_robust
from tests.unit.evaluation import mdp

FEW = EstimateOptions(min_ess=1, min_events=0, draws=2, ratio_tolerance=np.inf)
SOME = EstimateOptions(draws=300, ratio_tolerance=.1)

STATES = np.eye(2, dtype=np.float32)[:, 1:]


def transitions(log):
    action, reward = (column[:, None].astype(np.float32) for column in (log.action, log.reward))
    return Transitions(STATES[log.state], action, reward, STATES[log.next_state], log.done.astype(np.float32))


def target(state):
    """Mean and variance of the target policy's 0/1 action."""
    chance = mdp.TARGET[state[:, 0].astype(int), 1][:, None]
    return chance, chance * (1 - chance)


@pytest.fixture(scope="module")
def critics():
    return fit_critics(transitions(mdp.simulate(40_000, seed=3, noise=.5)), target, [0.0, .8, 1.0], ridge=1e-7)


@pytest.mark.parametrize(("index", "discount"), [(0, 0.0), (1, .8), (2, 1.0)])
def test_the_closed_form_is_found(critics, index, discount):
    v, q = mdp.values(mdp.TARGET, discount)
    critic = critics[index]
    assert critic.converged
    np.testing.assert_allclose(critic.expect(STATES, target)[:, 0], v, rtol=.03)
    for action in (0, 1):
        found = critic.predict(STATES, np.full((2, 1), action, np.float32))[:, 0]
        np.testing.assert_allclose(found, q[:, action], rtol=.04)


def test_the_expectation_is_that_over_draws():
    """Of a Gaussian policy over two parameters: E q from mean and variance against 200,000 draws."""
    rng = np.random.default_rng(0)
    state, action = rng.normal(size=(500, 3)), rng.normal(1, 2, size=(500, 2))
    feedback = (action[:, :1] * action[:, 1:] + action[:, :1]**2 + state[:, :1] * action[:, 1:])
    samples = Transitions(*(one.astype(np.float32) for one in (state, action, feedback, state)),
                          done=np.ones(500, np.float32))
    critic, = fit_critics(samples, lambda s: (np.zeros((len(s), 2)), np.ones((len(s), 2))), [0.0], ridge=1e-9)
    mean, std = np.array([.5, -1.0]), np.array([.3, 2.0])
    found = critic.expect(state[:1], lambda s: (mean[None], std[None]**2))[0, 0]
    draws = mean + std * rng.standard_normal((200_000, 2))
    assert found == pytest.approx(critic.predict(np.repeat(state[:1], 200_000, 0), draws).mean(), rel=.02)
    # And by hand: E a₁a₂ = μ₁μ₂, E a₁² = μ₁² + σ₁², E s a₂ = s μ₂.
    assert found == pytest.approx(-.5 + .25 + .09 - state[0, 0], abs=.02)


@pytest.mark.parametrize(("discount", "index"), [(0.0, 0), (1.0, 1)])
def test_the_fit_error_is_what_leaving_a_user_out_changes(discount, index):
    """θ(all) − θ(without u) is user u's share, to first order in 1/U."""
    log = mdp.simulate(400, seed=5)
    user = log.session // 4
    samples = dataclasses.replace(transitions(log), user=user)
    critic = fit_critics(samples, target, [0.0, 1.0], ridge=1e-9)[index]
    found = critic.fit_error(samples, target, STATES)
    assert found.shape == (100, 1)
    np.testing.assert_allclose(found.sum(0), 0, atol=1e-9)
    theta = critic.expect(STATES, target).mean()
    for one in range(5):
        kept = user != one
        rest = Transitions(**{name: column[kept] for name, column in samples.__dict__.items()})
        without = fit_critics(rest, target, [discount], ridge=1e-9)[0].expect(STATES, target).mean()
        place = list(dict.fromkeys(user)).index(one)  # users stand in the order of their first rows
        assert theta - without == pytest.approx(found[place, 0], rel=.2, abs=2e-3)


def robust_error(critic, samples, log, sessions, **how):
    """The fit error of the doubly robust estimate of these sessions."""
    of_action, of_value = critic_weights(sessions, **how)
    return critic.fit_error(samples, target, STATES[log.state], of_value=of_value,
                            action=log.action[:, None].astype(np.float32), of_action=of_action)


def critic_values(critic, log):
    """q and v of a log's requests."""
    states = STATES[log.state]
    return critic.predict(states, log.action[:, None].astype(np.float32)), critic.expect(states, target)


def sessions_of(log, discount=1.0):
    return Sessions.of(*log.log_probs, log.reward[:, None], discount, 3.0, log.session, log.session)


@pytest.mark.parametrize("horizon", [1, 2, None])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("discount", [.8, 1.0])
def test_the_robust_fit_error_is_what_refits_with_another_weight_of_a_user_change(discount, normalise, horizon):
    """Every user's rows 20 times, one user's 21 times: that user's weight is 1.05."""
    log, evaluated, copies = mdp.simulate(400, seed=5), mdp.simulate(300, seed=6), 20
    user = log.session // 4
    samples, sessions = dataclasses.replace(transitions(log), user=user), sessions_of(evaluated, discount)
    how = dict(normalise=normalise, horizon=horizon)

    def estimate(rows):
        weighted = Transitions(**{name: column[rows] for name, column in samples.__dict__.items()})
        fit, = fit_critics(weighted, target, [discount], ridge=1e-9)
        return sequential_doubly_robust(sessions, *critic_values(fit, evaluated), FEW,
                                        **how).estimate[0]

    critic, = fit_critics(samples, target, [discount], ridge=1e-9)
    found = robust_error(critic, samples, evaluated, sessions, **how)
    assert found.shape == (100, 1)
    every = np.tile(np.arange(len(user)), copies)
    base, scale = estimate(every), np.abs(found).max()
    for place, one in enumerate(list(dict.fromkeys(user))[:8]):
        moved = copies * (estimate(np.concatenate([every, np.flatnonzero(user == one)])) - base)
        assert moved == pytest.approx(found[place, 0], rel=.1, abs=.02 * scale)


@pytest.mark.parametrize("normalise", [False, True])
def test_the_robust_interval_with_the_fit_error_holds_the_truth(normalise):
    """100 pairs of small logs: critics from 100 sessions, whose word counts from the second of 2,000 others' requests
    on."""
    truth, held, without = mdp.START @ mdp.values(mdp.TARGET, 1.0)[0], 0, 0
    how = dict(normalise=normalise, horizon=1)
    for seed in range(100):
        fitted, evaluated = mdp.simulate(100, seed=2 * seed), mdp.simulate(2_000, seed=2 * seed + 1)
        samples, sessions = dataclasses.replace(transitions(fitted), user=fitted.session), sessions_of(evaluated)
        critic, = fit_critics(samples, target, [1.0], ridge=1e-7)
        error = robust_error(critic, samples, evaluated, sessions, **how)
        with_error, alone = (sequential_doubly_robust(
            sessions, *critic_values(critic, evaluated), SOME, fit_error=given, **how)
            for given in (error, None))
        assert with_error.estimate[0] == pytest.approx(alone.estimate[0]), "the error moves the interval only"
        held += with_error.low[0] <= truth <= with_error.high[0]
        without += alone.low[0] <= truth <= alone.high[0]
    assert held >= 89
    assert without < 60


def test_the_interval_with_the_fit_error_holds_the_truth():
    """100 pairs of small logs: critics from 150 sessions, first states from 1,000 others."""
    truth, held, without = mdp.START @ mdp.values(mdp.TARGET, 1.0)[0], 0, 0
    for seed in range(100):
        fitted, evaluated = mdp.simulate(150, seed=2 * seed), mdp.simulate(1_000, seed=2 * seed + 1)
        samples = dataclasses.replace(transitions(fitted), user=fitted.session)
        critic, = fit_critics(samples, target, [1.0], ridge=1e-7)
        states = STATES[evaluated.state]
        error = critic.fit_error(samples, target, states[evaluated.step == 0])
        sessions = Sessions.of(*evaluated.log_probs, evaluated.reward[:, None], 1.0, np.inf, evaluated.session,
                               evaluated.session)
        for given in (error, None):
            found = fitted_q_estimate(sessions, critic.expect(states, target), EstimateOptions(draws=300),
                                      fit_error=given)
            inside = found.low[0] <= truth <= found.high[0]
            held, without = (held + inside, without) if given is not None else (held, without + inside)
    assert held >= 89
    assert without < 60, "and the users' first states alone say little of it"


def test_a_fit_that_diverges_says_so():
    """One state that leads to itself for ever under γ = 1: no finite value, and no standing still."""
    ones = np.ones((200, 1), np.float32)
    action = np.tile(np.array([[0.0], [1.0]], np.float32), (100, 1))
    samples = Transitions(ones, action, ones, ones, np.zeros(200, np.float32))
    critic, = fit_critics(samples, lambda s: (np.full((len(s), 1), .5), np.full((len(s), 1), .25)), [1.0], ridge=1e-6,
                          iterations=50)
    assert not critic.converged
    assert critic.refused.startswith("the fit of the critics did not stand still after ")
    sessions = Sessions.of(np.zeros(200), np.zeros(200), ones, 1.0, np.inf, np.arange(200), np.arange(200))
    found = fitted_q_estimate(sessions, ones, refused=critic.refused)
    assert found.refused == critic.refused
    assert np.isnan(found.estimate).all()


def test_bad_input_is_refused():
    good = transitions(mdp.simulate(50, seed=1))
    with pytest.raises(InvalidFieldError, match=r"discounts: got \[2\]; allowed: numbers in \[0, 1\]"):
        fit_critics(good, target, [2])
    with pytest.raises(InvalidFieldError, match="feedback: got 'not finite'; allowed: finite numbers"):
        Transitions(good.state, good.action, np.full_like(good.feedback, np.nan), good.next_state, good.done)
    with pytest.raises(InvalidFieldError, match="samples: got 0; allowed: at least one row"):
        Transitions(*(getattr(good, name)[:0] for name in ("state", "action", "feedback", "next_state", "done")))
    critic, = fit_critics(good, target, [0.0])
    with pytest.raises(InvalidFieldError, match="user: got None; allowed: ids of the samples' users"):
        critic.fit_error(good, target, STATES)
    whose = dataclasses.replace(good, user=np.arange(len(good.state)))
    with pytest.raises(InvalidFieldError, match=r"of_value: got \(3, 1\); allowed: \(2, 1\), a row a state"):
        critic.fit_error(whose, target, STATES, of_value=np.ones((3, 1)))
    with pytest.raises(InvalidFieldError, match="action: got None; allowed: the actions that of_action speaks of"):
        critic.fit_error(whose, target, STATES, of_action=np.ones((2, 1)))
