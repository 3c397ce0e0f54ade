"""Search spaces: combinations, draws, and how choices are written into configs."""

from __future__ import annotations

import pytest
import samples as toy

from recfuse.config import InvalidFieldError
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.tune import space
from recfuse.tune.space import Range


def test_a_grid_is_the_config_and_every_combination_of_each_block_once():
    blocks = [{"a": [1, 2], "b": Range(low=0.01, high=1.0, log=True, steps=3)}, {"a": [1], "b": [0.1]},
              {"c": [[3], [4]]}]
    found = space.grid(blocks)
    assert found[0] == {}
    assert found[1:] == [{"a": a, "b": b} for a in (1, 2) for b in (0.01, 0.1, 1.0)] + [{"c": [3]}, {"c": [4]}]


def test_draws_are_reproducible_and_a_longer_list_begins_with_the_shorter():
    blocks = [{"a": Range(low=1e-4, high=1e-2, log=True), "b": ["x", "y"]}]
    few, many = space.random(blocks, 3, seed=4), space.random(blocks, 8, seed=4)
    assert many[:3] == few
    assert all(1e-4 <= one["a"] <= 1e-2 and one["b"] in "xy" for one in many)
    assert space.random(blocks, 3, seed=5) != few


def test_no_draw_comes_twice_and_a_small_space_ends():
    blocks = [{"a": [1, 2], "b": ["x", "y"]}, {"a": [1, 3], "b": ["x"]}]
    found = space.random(blocks, 100, seed=0)
    assert sorted((one["a"], one["b"]) for one in found) == [(1, "x"), (1, "y"), (2, "x"), (2, "y"), (3, "x")]
    assert found[:3] == space.random(blocks, 3, seed=0)


@pytest.mark.parametrize(("block", "field"), [({"a": []}, r"space\[0\].a"), ({}, "space")])
def test_a_space_in_which_nothing_varies_is_refused(block, field):
    with pytest.raises(InvalidFieldError, match=field):
        space.check([block])


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (0.0, float("inf"))])
def test_a_range_needs_two_ends(ends):
    with pytest.raises(InvalidFieldError, match="high: got inf" if ends[1] == float("inf") else "low"):
        Range(low=ends[0], high=ends[1])


def test_choices_replace_fields_at_any_depth():
    settings = space.replace_fields(TwoStageConfig(), {"network.hidden": "[8, 8]", "policy_learning_rate": 0.5})
    assert settings.network.hidden == (8, 8)
    assert settings.policy_learning_rate == 0.5
    assert settings.critics == TwoStageConfig().critics


@pytest.mark.parametrize(("changes", "field"), [
    ({"no_such": 1}, "no_such"), ({"network.no_such": 1}, "no_such"), ({"nothing.at_all": 1}, "nothing.at_all"),
    ({"policy_learning_rate": -1}, "policy_learning_rate"),
])
def test_a_choice_that_the_config_refuses_names_its_field(changes, field):
    with pytest.raises(InvalidFieldError, match=field):
        space.replace_fields(TwoStageConfig(), changes)


def test_discounts_by_behaviour_win_over_those_by_kind():
    found = space.with_discounts(toy.vocabulary(), {"like": 0.5, "short_term": 0.95, "long_term": 0.0})
    assert [one.discount for one in found.behaviours] == [0.0, 0.5]
    with pytest.raises(InvalidFieldError, match=r"discounts.hate.*one of long_term, short_term, watch_time, like"):
        space.with_discounts(toy.vocabulary(), {"hate": 0.5})


def test_a_total_keeps_the_proportions_of_the_multipliers():
    vocabulary = toy.vocabulary(multiplier=2.0)
    assert space.multipliers(vocabulary, {}, {"total": 0.5}) == {"like": 0.5}
    assert space.multipliers(vocabulary, {"like": 7.0}, {}) == {"like": 7.0}
    assert space.multipliers(vocabulary, {}, {"short_term": 3.0}) == {"like": 3.0}
    with pytest.raises(InvalidFieldError, match=r"multipliers.watch_time"):
        space.multipliers(vocabulary, {}, {"watch_time": 1.0})


def test_values_that_are_no_scalars_travel_as_json():
    assert space.decode(space.encode([64, 64])) == [64, 64]
    assert space.decode("two_stage") == "two_stage"
    block = {"network.hidden": [[8], [64, 64]], "rho_max": Range(low=1.0, high=4.0)}
    found = space.distributions(block)
    assert list(found["network.hidden"].choices) == ["[8]", "[64, 64]"]
    assert (found["rho_max"].low, found["rho_max"].high) == (1.0, 4.0)
