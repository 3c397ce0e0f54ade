"""Sessions: pages ranked as fusion says, responses that make sense, long-term effects that can be switched off."""

import numpy as np
import pytest
import torch

from recfuse.behaviours import Curve
from recfuse.fusion.item_values import linear_vocabulary
from recfuse.fusion.policies import FixedGaussian
from recfuse.fusion.ranking import fuse, rank
from recfuse.simulation.environment import rewards
from recfuse.simulation.response import marginals, sigmoid
from recfuse.simulation.responses import FEED
from recfuse.simulation.rollout import rollout
from recfuse.simulation.sessions import SessionEngine
from recfuse.simulation.uniform import mix, uniform
from recfuse.state.encoder import StateEncoder
from tests.unit.simulation import worlds


def start(engine: SessionEngine, count: int = 64):
    user = np.arange(count) % engine.world.users
    return engine.first(user, np.arange(count))


def test_uniform_numbers_are_uniform_and_independent_of_their_batch():
    draws = uniform(3, np.arange(200_000), 1)
    assert abs(draws.mean() - .5) < 4 / (12 * 200_000) ** .5
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < .01
    np.testing.assert_array_equal(draws[500:510], uniform(3, np.arange(500, 510), 1))
    assert mix(1, 2) != mix(2, 1)


def test_pages_are_those_of_the_public_fusion_functions():
    """The first page of every session, fused anew from the predictions by recfuse.fusion.ranking."""
    world = worlds.world()
    engine = SessionEngine(world, seed=4)
    sessions = start(engine)
    action = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    shown = engine.rank(sessions, action)
    pool, candidates = world.config.pool, world.config.candidates
    predictions = np.exp(world.terms) - world.vocabulary.offset
    for row in range(64):
        offset = int(uniform(mix(sessions.key[row], 16), 0) * pool)
        window = (offset + np.arange(candidates)) % pool
        of_pool = predictions[sessions.entry[row], :, window].astype(np.float64)
        scores = fuse(torch.from_numpy(of_pool), torch.from_numpy(action[row].astype(np.float64)), "log_sum",
                      world.vocabulary.offset)
        np.testing.assert_array_equal(shown[row], window[rank(scores).numpy()[:world.config.page]])


def test_states_are_the_encoded_contexts_of_sessions_under_way():
    """What does not move is encoded once an entry, and must be what encoding the whole context gives."""
    world = worlds.world()
    engine, encoder = SessionEngine(world, seed=4), StateEncoder(world.vocabulary)
    sessions = start(engine)
    for _ in range(3):
        expected = encoder.encode(engine.context(sessions), rows=64)
        np.testing.assert_array_equal(engine.observe(sessions)[:, :encoder.state_size], expected)
        engine.step(sessions, np.ones((64, world.vocabulary.action_size), np.float32))


@pytest.mark.parametrize("curved", [False, True])
def test_another_vocabulary_ranks_the_same_world_by_its_own_formula(curved):
    """Pages are those of the predictions as the log keeps them, under the formula and the curves of the vocabulary."""
    world = worlds.world()
    curve = Curve(x=(0.0, 0.1, 0.5), y=(0.0, 1.0, 1.5))
    own = linear_vocabulary(world.vocabulary).replace(curves=(curve,) * 6 if curved else None)
    engine = SessionEngine(world.under(own), seed=4)
    sessions = start(engine)
    assert engine.observe(sessions).shape == (64, world.vocabulary.context_size)
    action = np.random.default_rng(0).normal(size=(64, 6)).astype(np.float32)
    shown, offset, _, places = engine._rank(sessions, action)
    for row in range(64):
        columns = torch.from_numpy(engine.predictions(sessions.entry[row], offset[row]).astype(np.float64).T.copy())
        scores = fuse(columns, torch.from_numpy(action[row].astype(np.float64)), curves=own.curves)
        best = scores[places[row]]
        torch.testing.assert_close(best, scores.sort(descending=True).values[:world.config.page], rtol=1e-5, atol=1e-6)
    assert (shown != SessionEngine(world, seed=4).rank(sessions, action)).any()
    assert world.under(world.vocabulary) is world


def test_nothing_is_shown_twice_in_a_session_until_the_pool_is_used_up():
    engine = SessionEngine(worlds.world(), seed=4)
    sessions = start(engine)
    first = engine.step(sessions, np.ones((64, 6), np.float32)).shown
    second = engine.step(sessions, np.ones((64, 6), np.float32)).shown
    assert not any(set(a) & set(b) for a, b in zip(first.tolist(), second.tolist(), strict=True))


def test_feedback_is_consistent():
    engine = SessionEngine(worlds.world(), seed=4)
    sessions = start(engine, 512)
    page = engine.step(sessions, np.ones((512, 6), np.float32))
    value = {name: page.feedback[:, index] for index, name in enumerate(FEED.feedback)}
    looked = page.looked.sum(1)
    assert page.looked[:, 0].all()
    assert (value["click"] <= looked).all()
    assert (value["long_view"] <= value["click"]).all()
    assert (value["watch_time"] >= 0).all()
    assert ((value["hate"] + value["like"]) <= 2 * looked).all()
    np.testing.assert_array_equal(sessions.watch, value["watch_time"])
    assert (sessions.request == 1).all()


@pytest.mark.parametrize(("value", "hate"), [(1.0, -3.0), (0.0, 0.0), (5.0, -2.0)])
def test_satisfaction_is_what_the_config_says_a_response_is_worth(value, hate):
    """Clicks, long views, four interactions at `value` and hates at `hate`, over the places looked at."""
    world = worlds.world()
    config = world.config.replace(interaction_value=value, hate_value=hate)
    engine = SessionEngine(world.replace(config=config), seed=4)
    sessions, action = start(engine, 5_000), np.ones((5_000, 6), np.float32)
    expected = engine.expected_satisfaction(sessions, action)
    page = engine.step(sessions, action)
    worth = np.array([1, 1, value, value, value, value, hate])
    by_hand = page.feedback[:, 1:] @ worth / page.looked.sum(1)
    np.testing.assert_allclose(page.satisfaction, by_hand, rtol=1e-5)
    error = page.satisfaction.std() / 5_000**.5
    assert page.satisfaction.mean() == pytest.approx(expected.mean(), abs=5 * error)


def test_better_pages_lengthen_sessions_unless_the_effect_is_off():
    """Clicks and long views ranked first, or last; with the effect off the same luck ends the same sessions."""
    def lengths(responsive, action):
        world = worlds.world()
        config = world.config.replace(responsive=responsive)
        requests = rollout(world.replace(config=config), FixedGaussian(action, .5), seed=4, explore=False,
                           persons=np.arange(3_000))
        return np.bincount(requests.person[requests.number == 0], minlength=3_000)

    good, bad = [2, 2, 0, 0, 0, 0], [-2, -2, 0, 0, 0, 0]
    assert lengths(True, good).mean() > 1.02 * lengths(True, bad).mean()
    np.testing.assert_array_equal(lengths(False, good), lengths(False, bad))


def returns(responsive, action, discount):
    """Mean discounted reward of first sessions whose first page is ranked by `action`, all later ones alike, with the
    same luck. What was shown may be shown again, since a good page also uses up the pool's best."""
    world = worlds.world()
    world = world.replace(config=world.config.replace(responsive=responsive))
    engine = SessionEngine(world, seed=4)
    sessions, total, factor = start(engine, 4_000), 0.0, 1.0
    while len(sessions.user):
        rows = len(sessions.user)
        page = engine.step(sessions, np.tile(np.float32(action if factor == 1.0 else [1] * 6), (rows, 1)))
        total += factor * rewards(world, page.feedback).sum() / 4_000
        sessions.seen[:] = False
        sessions, factor = sessions.take(np.flatnonzero(~(page.left | page.cut))), factor * discount
        if factor == 0.0:
            break
    return total


def test_discounts_matter_only_while_what_is_shown_has_consequences():
    """What a better first page gains is the same for γ = 0 and γ = 0.95 with the effect off, and more with it on."""
    good, bad = [2, 2, 0, 0, 0, 0], [-2, -2, 0, 0, 0, 0]

    def gain(responsive, discount):
        return returns(responsive, good, discount) - returns(responsive, bad, discount)

    at_once = gain(True, 0.0)
    assert at_once == gain(False, 0.0) > 0
    assert gain(False, .95) == pytest.approx(at_once, rel=1e-9)
    assert gain(True, .95) > 1.2 * at_once


def drawn_over_declared(world):
    """Per behaviour: how often it was drawn over what the response model says, and the standard error of that."""
    engine = SessionEngine(world, seed=9)
    sessions = start(engine, 60_000)
    page = engine.step(sessions, np.ones((60_000, 6), np.float32))
    chance = marginals(world.logits[sessions.entry[:, None], page.shown].astype(np.float64), world.outcome)
    expected = chance[page.looked].sum(0)
    return page.feedback[:, 1:].astype(np.float64).sum(0) / expected, 1 / np.sqrt(expected)


def test_every_behaviour_is_drawn_at_its_rate_and_a_double_sigmoid_is_caught(monkeypatch):
    """A sigmoid of a sigmoid makes hate of 0.1% into one of more than half of the responses."""
    ratio, error = drawn_over_declared(worlds.world())
    assert (np.abs(ratio - 1) < 5 * error).all()
    monkeypatch.setattr("recfuse.simulation.sessions.sigmoid", lambda logits: sigmoid(sigmoid(logits)))
    twice, error = drawn_over_declared(worlds.world())
    assert not (np.abs(twice - 1) < 5 * error).all()
    assert twice[FEED.feedback.index("hate") - 1] > 100


def test_a_good_mood_shortens_the_return():
    engine = SessionEngine(worlds.world(), seed=4)
    sessions = start(engine, 200)
    neutral = engine.next(sessions).clock
    sessions.mood += 1.0
    happy = engine.next(sessions).clock
    factor = (happy - sessions.clock) / (neutral - sessions.clock)
    np.testing.assert_allclose(factor, np.exp(-worlds.world().config.return_effect), rtol=1e-9)
