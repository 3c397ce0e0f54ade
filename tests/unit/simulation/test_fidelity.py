"""What ranking changes: sets of the log and of the world, and a table that tells a faithful world from another."""

import dataclasses

import numpy as np
import pytest

from recfuse.simulation.fidelity import (
    LEAST,
    SIZE,
    TOP,
    Effect,
    Sets,
    expected_feedback,
    fidelity,
    measures_of,
    real_sets,
    unseen,
    verdict,
)
from recfuse.simulation.response import marginals
from recfuse.simulation.responses import FEED
from tests.unit.simulation import worlds

MEASURES = measures_of(FEED)


def terms():
    return np.log(worlds.predictions() + np.float32(1e-3))


def test_sets_of_the_log_are_users_unseen_exposures():
    exposures = worlds.exposures()[0]
    sets = real_sets(exposures, terms(), "1", MEASURES)
    assert sets.inside.shape[1] == SIZE
    size = sets.inside.sum(1)
    assert (size >= LEAST).all()
    inside = unseen(exposures) & (exposures.column("scene") == "1")
    users, counts = np.unique(exposures.column("user_id")[inside], return_counts=True)
    np.testing.assert_array_equal(np.unique(sets.user), users[counts >= LEAST])
    kept = counts // SIZE * SIZE + np.where(counts % SIZE >= LEAST, counts % SIZE, 0)
    assert size.sum() == kept.sum(), "no exposure twice, none left out but those of short sets"
    of_users = {user: exposures.column("click")[inside & (exposures.column("user_id") == user)].sum()
                for user in users[counts == SIZE][:20]}
    for user, clicks in of_users.items():
        assert sets.feedback[sets.user == user][..., MEASURES.index("click")].sum() == clicks


def test_the_best_of_a_set_by_hand():
    feedback = np.zeros((1, SIZE, len(MEASURES)))
    feedback[0, :, 0] = [9, 1, 2, 3, 4, 5, 100]
    column = np.array([[5, 0, 0, 0, 0, 4, 9]], np.float32)
    sets = Sets(np.stack([column, -column], 2), np.array([[True] * 6 + [False]]), feedback, np.zeros(1, np.int64))
    best = sets.of_best(np.eye(2))
    assert TOP == 2
    assert best[0, 0, 0] == (9 + 5) / 2, "what is beyond the set's end never counts"
    assert best[1, 0, 0] == (1 + 2) / 2, "ties keep the set's order"
    assert sets.of_all[0, 0] == 24 / 6


def test_expected_feedback_is_the_mean_of_many_answers():
    world = worlds.stacked_world()
    rng, draws = np.random.default_rng(0), 60_000
    entry, place = np.full(draws, 3), np.full(draws, 5)
    expected = expected_feedback(world, entry[:1], place[:1])[0]
    chance = marginals(world.logits[3, 5].astype(np.float64), world.outcome)
    np.testing.assert_allclose(expected[1:], chance[[0, 1, 2]])
    luck = rng.random(draws)
    outcome = (luck < chance[0]).astype(int) + (luck < chance[1])
    quantile = world.quantile(entry, place, outcome, rng.random(draws))
    watch = world.watch_time[world.entry_scene[3], outcome, world.duration_bin[3, 5], quantile]
    assert expected[0] == pytest.approx(float(watch.mean()), abs=float(4 * watch.std() / draws**.5))


def test_the_table_tells_a_world_that_does_not_answer_rankings(monkeypatch):
    """A log whose clicks are drawn from the world's own predictions is matched by a world that answers by them; the
    same world with answers that no ranking changes is off."""
    monkeypatch.setattr("recfuse.simulation.fidelity._FEW", 20)
    exposures, world = worlds.exposures()[0], worlds.stacked_world()
    effects = fidelity(world, exposures, terms(), np.ones(6))
    names = list(dict.fromkeys(effect.ranking for effect in effects))
    assert names[0] == "hand-tuned"
    assert names[-1] == "CEM"
    assert set(names[1:-1]) <= set(worlds.TASKS)
    click = next(effect for effect in effects if effect.ranking == effect.measure == "click")
    assert click.simulated > 0
    assert click.real > 0
    flat = world.replace(logits=np.broadcast_to(world.logits.mean((0, 1)), world.logits.shape).copy())
    none = next(effect for effect in fidelity(flat, exposures, terms(), np.ones(6))
                if effect.ranking == effect.measure == "click")
    assert none.simulated == pytest.approx(0, abs=1e-6)
    assert none.real == click.real
    assert none.off
    assert abs(click.simulated - click.real) < abs(none.simulated - none.real)


@pytest.mark.parametrize(("simulated", "real", "off"), [
    (.10, .13, False), (.10, .14, True), (.015, -.004, False), (.015, -.006, True), (-.05, .05, True),
    (.02, .001, False), (float("nan"), .1, False)])
def test_what_is_off(simulated, real, off):
    effect = Effect("1", "click", "like", simulated, real, real - .5, real + .5)
    assert effect.off is off
    narrow = dataclasses.replace(effect, low=real, high=real)
    text = verdict([effect, narrow])
    assert ("off, but inside the log's interval: 1 click like" in text) is off
    assert ("; off: 1 click like" in text) is off


def test_a_log_with_few_sets_has_no_table():
    exposures = worlds.exposures()[0]
    few = dataclasses.replace(exposures, rows=exposures.rows.slice(0, 300))
    assert fidelity(worlds.stacked_world(), few, terms()[:300], np.ones(6)) == ()
    assert "cannot be compared" in verdict(())
