"""The response model: rates that stay what they are, and a fit that learns."""

import dataclasses

import numpy as np
import pyarrow as pa
import pytest

from recfuse.config import InvalidFieldError
from recfuse.logs.exposures import RESPONSE_SHARE, row_share
from recfuse.simulation.response import marginals, sigmoid, solve_shift
from recfuse.simulation.response_fit import fit_response
from recfuse.simulation.response_network import ResponseConfig, Rows, watch_levels
from recfuse.simulation.responses import FEED
from tests.unit.simulation import worlds


def test_marginals_by_hand():
    """P(click) = 1/2, P(long view | click) = 1/4; an interaction of 1% without a click, 2% with, 4% with a long view.

    P(interaction) = 1/2 · 1% + 3/8 · 2% + 1/8 · 4% = 1.75%.
    """
    def odds(p):
        return np.log(p / (1 - p))

    count = len(FEED.interactions)
    logits = np.array([odds(.5), odds(.25), *[odds(.01)] * count])
    outcome = np.array([[0.] * count, [odds(.02) - odds(.01)] * count, [odds(.04) - odds(.01)] * count])
    np.testing.assert_allclose(marginals(logits, outcome), [.5, .125, *[.0175] * count], rtol=1e-12)


def test_rare_behaviours_stay_rare():
    """A sigmoid of a probability is at least 1/2, so applying it twice would put a hate into most responses."""
    fit = worlds.response()
    for name in ("comment", "forward", "follow", "hate"):
        predicted, observed = fit.rates[name]
        assert predicted < .01
        assert predicted == pytest.approx(observed, abs=.002)
    assert sigmoid(np.array([-7.0]))[0] == pytest.approx(1 / (1 + np.exp(7.0)), rel=1e-12)


def test_rates_of_click_and_long_view_are_those_of_the_rows():
    fit = worlds.response()
    for name in ("click", "long_view"):
        predicted, observed = fit.rates[name]
        assert predicted == pytest.approx(observed, rel=.01)


def test_the_fit_orders_the_last_day_better_than_chance():
    fit = worlds.response()
    assert fit.auc["click"] > .58
    assert fit.auc["long_view"] > .58


def test_only_its_share_of_the_rows_is_read():
    exposures = worlds.exposures()[0]
    mine = exposures.filter(row_share(exposures) < RESPONSE_SHARE)
    scenes = worlds.response().model.scenes
    alone = fit_response(mine, scenes, ResponseConfig(epochs=1))
    both = fit_response(exposures, scenes, ResponseConfig(epochs=1))
    np.testing.assert_array_equal(alone.model.users, both.model.users)
    assert alone.rows == both.rows


def test_nothing_is_fitted_to_the_last_day():
    """The last day's answers turned around: the model and its calibration stay, the measured AUC changes."""
    exposures, scenes = worlds.exposures()[0], worlds.response().model.scenes
    last = exposures.column("day") == exposures.column("day").max()
    click = np.where(last, 1 - exposures.column("click"), exposures.column("click")).astype(np.int8)
    place = exposures.rows.schema.get_field_index("click")
    turned = dataclasses.replace(exposures, rows=exposures.rows.set_column(place, "click", pa.array(click)))
    first, second = (fit_response(one, scenes, ResponseConfig(epochs=1)) for one in (exposures, turned))
    for field in dataclasses.fields(first.model):
        np.testing.assert_array_equal(getattr(first.model, field.name), getattr(second.model, field.name))
    assert second.auc["click"] < first.auc["click"] - .02
    assert first.test_rows == last.sum(), "all rows of the day are tested on, those of both models' shares"


def test_intervals_and_positives_are_those_of_the_last_day():
    fit = worlds.response()
    low, high = fit.interval["click"]
    assert low < fit.auc["click"] < high
    assert 0 < fit.positives["click"] < fit.test_rows


def test_the_same_seed_gives_the_same_model():
    exposures, scenes = worlds.exposures()[0], worlds.response().model.scenes
    first, again, other = (fit_response(exposures, scenes, ResponseConfig(epochs=1, seed=seed)).model
                           for seed in (1, 1, 2))
    for field in dataclasses.fields(first):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(again, field.name))
    assert not np.array_equal(first.users, other.users)


def test_watch_times_are_real_ones_and_grow_with_the_outcome():
    model = worlds.response().model
    assert (np.diff(model.watch_time, axis=-1) >= 0).all()
    assert model.watch_time.max() <= worlds.exposures()[0].column("watch_time").max()
    means = model.watch_time[model.scenes.index("1")].mean((1, 2))
    assert means[0] < means[1] < means[2]


def test_watch_levels_by_hand():
    """Ranks within a cell, ties in the middle: of 1, 1, 3, 4 s the mid-ranks are 1/4, 1/4, 5/8, 7/8."""
    rows = Rows(user=np.zeros(5, int), item=np.zeros(5, int), scene=np.array([0, 0, 0, 0, 1]),
                outcome=np.full(5, 1), interactions=np.zeros((5, 5), np.float32), watch_time=np.array([3., 1, 4, 1, 9]))
    share = 1 / (1 + np.exp(-watch_levels(rows, np.zeros(5, int))))
    np.testing.assert_allclose(share, [5 / 8, 1 / 4, 7 / 8, 1 / 4, 1 / 2], atol=1e-6)


def test_a_shift_reaches_its_target():
    rng = np.random.default_rng(0)
    logits = rng.normal(-3, 1, (2_000, len(FEED.heads))).astype(np.float32)
    outcome = rng.normal(size=(3, len(FEED.interactions))).astype(np.float32)
    target = np.array([.5, .3, .02, .003, .001, .001, .0008])
    shift = solve_shift(logits, outcome, target, rounds=12)
    np.testing.assert_allclose(marginals(logits + shift, outcome).mean(0), target, rtol=1e-3)


def test_bad_input_is_refused():
    exposures = worlds.exposures()[0]
    with pytest.raises(InvalidFieldError, match="scenes: got 'cart'; allowed: scenes that occur: 0, 1, 2, 4, 6"):
        fit_response(exposures, ("1", "cart"))
    few = exposures.filter(np.arange(exposures.rows.num_rows) < 60)
    with pytest.raises(InvalidFieldError, match=r"at least 100 rows with row_share below 0\.3 before the last day"):
        fit_response(few, ("1",))
    with pytest.raises(InvalidFieldError, match="epochs: got 0; allowed: an integer ≥ 1"):
        ResponseConfig(epochs=0)
