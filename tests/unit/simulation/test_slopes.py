"""How much predictions mean for users of a world: mean 1, visible in features, and nothing where the spread is 0."""

import numpy as np
import pytest

from recfuse.behaviours import StateFeature
from recfuse.config import InvalidFieldError
from recfuse.simulation.responses import FEED
from recfuse.simulation.slopes import GROUPS, draw_slopes, group_of_output
from recfuse.simulation.world import WorldConfig
from tests.unit.simulation import worlds

USERS = 6_000


def users():
    rng = np.random.default_rng(0)
    columns = {"past_exposures": rng.integers(0, 400, USERS).astype(float), "age": rng.normal(size=USERS),
               "city": rng.choice(["a", "b", "c"], USERS)}
    features = (StateFeature(name="past_exposures", log=True, mean=5.0, std=1.0), StateFeature(name="age"),
                StateFeature(name="city", categories=("a", "b", "c")))
    return columns, features


def test_slopes_have_mean_one_and_the_spread_asked_for():
    slopes = draw_slopes(.5, *users(), np.random.default_rng(1))
    assert (slopes.slope > 0).all()
    np.testing.assert_allclose(slopes.slope.mean(0), 1, atol=.05)
    np.testing.assert_allclose(slopes.slope.std(0), .5, atol=.1)


def test_slopes_are_visible():
    """The features explain most of a slope's logarithm; the past estimate the more, the more exposures there are."""
    columns, features = users()
    slopes = draw_slopes(.5, columns, features, np.random.default_rng(1))
    design = np.column_stack([np.log1p(columns["past_exposures"]), columns["age"], columns["city"] == "a",
                              columns["city"] == "b", np.ones(USERS)])
    many = columns["past_exposures"] > 200
    for index, group in enumerate(GROUPS):
        target = np.log(slopes.slope[:, index])
        left = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
        assert .6 < 1 - left.var() / target.var() < .9
        estimate = slopes.columns[f"past_meaning_{group}"]
        of_many, of_few = (np.corrcoef(estimate[rows], slopes.slope[rows, index])[0, 1] for rows in (many, ~many))
        assert of_many > .5
        assert of_many > of_few > .1
    assert [feature.name for feature in slopes.features] == [f"past_meaning_{group}" for group in GROUPS]


def test_no_spread_is_a_slope_of_one_and_no_feature():
    slopes = draw_slopes(0.0, *users(), np.random.default_rng(1))
    assert (slopes.slope == 1).all()
    assert slopes.columns == {}
    assert slopes.features == ()


def test_a_world_with_a_spread_has_it_in_its_answers():
    """Per user, log-odds of a click over the scorer's, within the pool: the slopes differ with a spread, and less
    without; and the state shows the estimates."""
    worlds_of = {spread: worlds.stacked_world(spread) for spread in (0.0, 1.0)}
    spreads = {}
    for spread, world in worlds_of.items():
        click = world.terms[:, 0, :world.config.pool].astype(np.float64)
        x, y = click - click.mean(1, keepdims=True), world.logits[..., 0] - world.logits[..., 0].mean(1, keepdims=True)
        slope = (x * y).sum(1) / (x**2).sum(1)
        inside = world.entry_scene == world.scenes.index("1")
        spreads[spread] = slope[inside].std() / slope[inside].mean()
    assert spreads[1.0] > spreads[0.0] + .3
    names = {spread: {feature.name for feature in world.vocabulary.state_features}
             for spread, world in worlds_of.items()}
    assert names[1.0] - names[0.0] == {f"past_meaning_{group}" for group in GROUPS}
    assert set(worlds_of[1.0].features) >= names[1.0] - names[0.0]


def test_equal_seeds_give_equal_slopes():
    first, again, other = (draw_slopes(.5, *users(), np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.slope, again.slope)
    np.testing.assert_array_equal(first.columns["past_meaning_watch"], again.columns["past_meaning_watch"])
    assert not np.array_equal(first.slope, other.slope)


def test_every_output_has_a_group():
    assert [GROUPS[index] for index in group_of_output(FEED)] == ["views"] * 2 + ["interactions"] * 5 + ["watch"] * 3


def test_bad_spreads_are_refused():
    with pytest.raises(InvalidFieldError, match=r"meaning_spread: got -0.1; allowed: a number in \[0, 3\]"):
        WorldConfig(meaning_spread=-.1)
