"""The vocabulary: defaults, the file, and an error for every bad field."""

from __future__ import annotations

import json

import pytest

from recfuse.behaviours import Behaviour, StateFeature, Vocabulary
from recfuse.config import InvalidFieldError


def plain(**changes):
    values = {
        "behaviours": [{"name": "watch_time", "kind": "long_term"}, {"name": "like", "kind": "short_term"}],
        "fusion_parameters": ["click", "like"],
        "state_size": 3,
        "state_features": [{"name": "age"}, {"name": "scene", "categories": ["feed"]}],
    }
    return values | changes


def test_discounts_default_by_kind():
    vocabulary = Vocabulary.from_dict(plain())
    assert [behaviour.gamma for behaviour in vocabulary.behaviours] == [0.95, 0.0]
    assert [b.name for b in vocabulary.long_term] == ["watch_time"]
    assert [b.name for b in vocabulary.short_term] == ["like"]
    assert (vocabulary.action_size, vocabulary.state_size) == (2, 3)


def test_file_round_trip(tmp_path):
    vocabulary = Vocabulary.from_dict(plain(formula="log_sum", scenes=["feed", "cart"]))
    vocabulary.save(tmp_path / "vocabulary.yaml")
    assert Vocabulary.load(tmp_path / "vocabulary.yaml") == vocabulary
    assert Vocabulary.from_dict(vocabulary.to_dict()) == vocabulary


def test_the_plain_form_holds_every_field_resolved():
    """It enters the names of bundles and the fingerprints of samples, so it may not change unseen."""
    vocabulary = Vocabulary.from_dict(plain(behaviours=[{"name": "w", "kind": "long_term", "scale": 2}]))
    assert json.dumps(vocabulary.to_dict()) == json.dumps({
        "behaviours": [{"name": "w", "kind": "long_term", "discount": 0.95, "multiplier": 1.0, "weight": 1.0,
                        "transform": "identity", "scale": 2.0}],
        "fusion_parameters": ["click", "like"],
        "state_size": 3,
        "state_features": [
            {"name": "age", "categories": [], "mean": 0.0, "std": 1.0, "log": False, "default": 0.0},
            {"name": "scene", "categories": ["feed"], "mean": 0.0, "std": 1.0, "log": False, "default": 0.0}],
        "formula": "linear",
        "offset": 0.001,
        "scenes": [],
        "stages": ["coarse", "fine", "rerank", "mix"],
    })


LONG = {"name": "w", "kind": "long_term"}
BAD = [
    (dict(behaviours=[]), "behaviours", "at least one behaviour"),
    (dict(behaviours=[{"name": "like", "kind": "short_term"}]), "behaviours", "at least one long_term behaviour"),
    (dict(behaviours=[LONG, LONG]), "behaviours", "distinct names"),
    (dict(behaviours=[LONG | {"discount": 1.0}]), "behaviours.0.discount", "a number in [0, 1)"),
    (dict(behaviours=[LONG | {"discount": float("nan")}]), "behaviours.0.discount", "a number in [0, 1)"),
    (dict(behaviours=[LONG | {"multiplier": 0}]), "behaviours.0.multiplier", "a number > 0"),
    (dict(behaviours=[LONG | {"scale": -1}]), "behaviours.0.scale", "a number > 0"),
    (dict(behaviours=[LONG | {"name": " "}]), "behaviours.0.name", "a text that is not empty"),
    (dict(behaviours=[LONG | {"weight": 0}]), "behaviours", "long_term weights with a sum > 0"),
    (dict(behaviours=[LONG | {"kind": "medium_term"}]), "behaviours.0.kind", "long_term"),
    (dict(behaviours=[LONG | {"gamma": 0.5}]), "behaviours.0.gamma", "one of discount, kind"),
    (dict(fusion_parameters=["a", "a"]), "fusion_parameters", "distinct names"),
    (dict(state_size=4), "state_size", "3, the width of state_features"),
    (dict(state_features=[{"name": "age", "std": 0}]), "state_features.0.std", "a number > 0"),
    (dict(state_features=[{"name": "age", "categories": ["a", "a"]}]), "state_features.0.categories", "distinct"),
    (dict(stages=[]), "stages", "a subset"),
    (dict(formula="product"), "formula", "linear"),
    (dict(offset=0), "offset", "a number > 0"),
    (dict(stages=["polish"]), "stages", "coarse"),
    (dict(colour="red"), "colour", "one of action_range, behaviours, candidate_features, curves, formula"),
    (dict(curves=[{"x": [0, 1], "y": [0, 1]}]), "curves", "curves, one a fusion parameter"),
    (dict(curves=[{"x": [0, 1], "y": [0, 1]}, {"x": [0, 1, 2], "y": [0, 1, 2]}]), "curves",
     "as many knots in every curve"),
    (dict(curves=[{"x": [0, 1], "y": [0, 1]}] * 2, formula="log_sum"), "formula", "linear, where there are curves"),
    (dict(curves=[{"x": [0, 0], "y": [0, 1]}]), "curves.0.x", "finite numbers that increase"),
    (dict(curves=[{"x": [0, 1], "y": [1, 0]}]), "curves.0.y", "finite numbers that do not decrease"),
    (dict(curves=[{"x": [0, 1], "y": [1, 2, 3]}]), "curves.0.y", "2 numbers, one a knot"),
    (dict(curves=[{"x": [0], "y": [1]}]), "curves.0.x", "at least two knots"),
]


@pytest.mark.parametrize(("change", "field", "allowed"), BAD, ids=[f"{field}: {a}" for _, field, a in BAD])
def test_a_bad_field_is_named(change, field, allowed):
    with pytest.raises(InvalidFieldError) as error:
        Vocabulary.from_dict(plain(**change))
    assert field in error.value.field
    assert allowed in str(error.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InvalidFieldError, match=r"vocabulary.*nowhere.yaml.*a YAML file that exists"):
        Vocabulary.load(tmp_path / "nowhere.yaml")


def test_widths():
    assert StateFeature(name="age").width == 1
    assert StateFeature(name="scene", categories=("a", "b")).width == 3
    assert Behaviour(name="w", kind="long_term", discount=0.5).gamma == 0.5


@pytest.mark.parametrize(("change", "field"), [
    (dict(fusion_parameters=["like", "click"]), "fusion_parameters"),
    (dict(formula="power"), "formula"),
    (dict(offset=0.5), "offset"),
    (dict(action_range=[0.0, 1.0]), "action_range"),
    (dict(state_features=[{"name": "age", "mean": 1.0}]), "state_features"),
    (dict(behaviours=[{"name": "watch_time", "kind": "long_term"}, {"name": "share", "kind": "short_term"}]),
     "behaviours"),
])
def test_what_gives_a_row_another_meaning(change, field):
    plain = {"behaviours": [{"name": "watch_time", "kind": "long_term"}], "fusion_parameters": ["click", "like"],
             "state_size": 1, "formula": "log_sum", "state_features": [{"name": "age"}]}
    first, other = Vocabulary.from_dict(plain), Vocabulary.from_dict(plain | change)
    assert first.meaning != other.meaning
    assert first.differences(other) == (field,)


def test_curves_are_part_of_the_meaning_and_absent_where_there_are_none():
    line = {"x": [0.0, 1.0], "y": [0.0, 1.0]}
    plain = {"behaviours": [{"name": "watch_time", "kind": "long_term"}], "fusion_parameters": ["click", "like"],
             "state_size": 1, "formula": "linear"}
    without, curved = Vocabulary.from_dict(plain), Vocabulary.from_dict(plain | {"curves": [line, line]})
    other = Vocabulary.from_dict(plain | {"curves": [line, line | {"y": [0.0, 2.0]}]})
    assert len({without.meaning, curved.meaning, other.meaning}) == 3
    assert without.differences(curved) == curved.differences(other) == ("curves",)
    assert "curves" not in without.to_dict()
    assert Vocabulary.from_dict(curved.to_dict()) == curved


def test_what_only_learners_read_leaves_rows_their_meaning():
    plain = {"behaviours": [{"name": "watch_time", "kind": "long_term"}, {"name": "like", "kind": "short_term"}],
             "fusion_parameters": ["click", "like"], "state_size": 1, "formula": "linear"}
    behaviours = [{"name": "like", "kind": "short_term", "multiplier": 0.1},
                  {"name": "watch_time", "kind": "long_term", "discount": 0.5, "scale": 9.0, "transform": "log1p"}]
    other = Vocabulary.from_dict(plain | {"behaviours": behaviours, "scenes": ["feed"]})
    assert (Vocabulary.from_dict(plain).meaning, Vocabulary.from_dict(plain).differences(other)) == (other.meaning, ())
