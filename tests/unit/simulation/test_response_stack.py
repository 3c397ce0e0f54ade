"""What a scorer's predictions are worth: coefficients that generated the answers are found, noise is worth nothing."""

import dataclasses

import numpy as np
import pytest

from recfuse.simulation.response import sigmoid
from recfuse.simulation.response_stack import Held, empty_stack, fit_stack, group_means
from recfuse.simulation.responses import FEED
from tests.unit.simulation import worlds

OUTPUTS = len(FEED.heads) + FEED.outcomes


def held(rows=40_000, seed=0):
    """Rows whose clicks follow the model's output by .5, the first prediction's difference to its user's mean by 1, the
    mean by 2 and the second prediction by nothing; whose watch level follows the second one by .7."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(rows // 5), 5)
    predictions = sigmoid(rng.normal(size=(rows, 2)) + rng.normal(size=(rows // 5, 2))[user]).astype(np.float32)
    duration = np.exp(rng.normal(3, 1, rows))
    empty = empty_stack(predictions, duration, 2)
    columns = empty.inputs(predictions, duration)
    around = group_means(columns, user)
    own = rng.normal(size=(rows, OUTPUTS)).astype(np.float32)
    odds = .5 * own[:, 0] + (columns - around)[:, 0] + 2 * around[:, 0]
    click = rng.random(rows) < sigmoid(odds)
    outcome = np.where(click, 1 + (rng.random(rows) < .5), 0)
    labels = np.zeros((rows, len(FEED.heads)))
    labels[:, 0], labels[:, 1], labels[:, 2] = click, outcome == 2, rng.random(rows) < .05
    level = .7 * (columns - around)[:, 1] + rng.logistic(size=rows)
    return Held(own, columns, around, rng.integers(0, 2, rows), outcome, labels, level,
                np.zeros((3, len(FEED.interactions)), np.float32)), empty


def test_the_coefficients_are_found():
    stack = fit_stack(*held())
    assert stack.own[0] == pytest.approx(.5, abs=.05)
    np.testing.assert_allclose(stack.within[:, 0], [1, 0, 0], atol=.08)
    np.testing.assert_allclose(stack.between[:, 0], [2, 0, 0], atol=.1)
    for index in range(FEED.outcomes):
        np.testing.assert_allclose(stack.within[:, len(FEED.heads) + index], [0, .7, 0], atol=.06)
    np.testing.assert_allclose(stack.within[:, 1], 0, atol=.08)


def test_what_the_level_leaves_to_chance():
    rows, empty = held()
    assert (fit_stack(rows, empty).spread < 1).all()
    noise = dataclasses.replace(rows, level=np.random.default_rng(1).logistic(size=len(rows.level)))
    np.testing.assert_allclose(fit_stack(noise, empty).spread, 1, atol=.01)


def test_few_positives_stay_near_nothing():
    """Ten positives that a prediction seems to explain: the prior holds its coefficient, infinite without it."""
    rows, empty = held(2_000)
    labels = rows.labels.copy()
    labels[:, 4] = 0
    labels[np.argsort(-(rows.columns - rows.around)[:, 0])[:10], 4] = 1
    assert 0 < fit_stack(dataclasses.replace(rows, labels=labels), empty).within[0, 4] < 3


def test_a_slope_multiplies_the_difference_alone():
    rows, empty = held(500)
    stack = fit_stack(rows, empty)
    plain = stack.scorer_term(rows.columns, rows.around)
    mean = stack.scorer_term(rows.around, rows.around)
    twice = stack.scorer_term(rows.columns, rows.around, np.full((500, OUTPUTS), 2, np.float32))
    np.testing.assert_allclose(twice - mean, 2 * (plain - mean), atol=1e-4)


def test_no_predictions_change_nothing():
    model = worlds.response()
    assert model.stack.within.shape == (1, OUTPUTS)
    assert (model.stack.within == 0).all()
    assert (model.stack.own == 1).all()


def test_a_fit_with_predictions_is_better_and_repeats():
    """The scorer was fitted to twice as many rows, others than the response model's."""
    with_scorer, alone = worlds.stacked(), worlds.fit_alone()
    assert with_scorer.auc["click"] > alone.auc["click"]
    for name in ("click", "long_view"):
        predicted, observed = with_scorer.rates[name]
        assert predicted == pytest.approx(observed, rel=.01)
    again = worlds.stacked.__wrapped__()
    for field in dataclasses.fields(again.stack):
        np.testing.assert_array_equal(getattr(again.stack, field.name), getattr(with_scorer.stack, field.name))
