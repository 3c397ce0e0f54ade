"""The base of every config: bounds, the words of a refusal, copies, reference and schema."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import pytest
import yaml
from pydantic import Field, model_validator

from recfuse.config import Config, InvalidFieldError, from_mapping, load, reference, renamed, require, schema
from recfuse.runtime.console import start


class Inner(Config):
    """A part."""

    rate: float = Field(0.5, description="Share of the rows.", ge=0, le=1)
    sizes: tuple[Annotated[int, Field(gt=0)], ...] = Field((64, 64), description="Widths.")


class More(Inner):
    """A part with one more field."""

    depth: int = Field(3, description="Layers.", ge=1)


class Whole(Config):
    """A job's config."""

    name: str = Field("x", description="What it is called.", min_length=1)
    kind: Literal["linear", "power"] = Field("linear", description="Formula.")
    cap: float | None = Field(None, description="Largest weight.", gt=0)
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field({}, description="Weight of a behaviour.")
    low: float = Field(0.0, description="Lower end.")
    high: float = Field(1.0, description="Upper end.")
    inner: Inner = Field(Inner(), description="The part.")

    @model_validator(mode="after")
    def _ordered(self) -> Whole:
        require(self.low < self.high, "high", self.high, f"a number > low ({self.low:g})")
        return self


BAD = [
    ({"name": ""}, "name: got ''; allowed: a text that is not empty"),
    ({"kind": "cubic"}, "kind: got 'cubic'; allowed: linear, power"),
    ({"cap": 0}, "cap: got 0; allowed: a number > 0, or nothing"),
    ({"cap": float("inf")}, "cap: got inf; allowed: a number > 0, or nothing"),
    ({"cap": "much"}, "cap: got 'much'; allowed: a number > 0, or nothing"),
    ({"low": float("nan")}, "low: got nan; allowed: a number"),
    ({"high": -1}, "high: got -1.0; allowed: a number > low (0)"),
    ({"inner": {"rate": 2}}, "inner.rate: got 2; allowed: a number in [0, 1]"),
    ({"inner": {"sizes": [0]}}, "inner.sizes.0: got 0; allowed: an integer > 0"),
    ({"weights": {"like": -1}}, "weights.like: got -1; allowed: a number ≥ 0"),
    ({"inner": {"speed": 2}}, "inner.speed: got 2; allowed: one of rate, sizes"),
    ({"speed": 2}, "speed: got 2; allowed: one of cap, high, inner, kind, low, name, weights"),
]


@pytest.mark.parametrize(("values", "message"), BAD)
def test_a_refusal_names_field_value_and_what_is_allowed(values, message):
    with pytest.raises(InvalidFieldError) as caught:
        Whole(**values)
    assert str(caught.value) == message
    with pytest.raises(InvalidFieldError) as caught:
        from_mapping(Whole, values, "job.yaml")
    assert str(caught.value) == message + " (in job.yaml)"


def test_a_copy_is_checked_and_keeps_what_a_subclass_adds():
    whole = Whole(inner=More(depth=7))
    assert whole.replace(low=-2).high == 1.0
    assert whole.replace(low=-2).inner == More(depth=7)
    with pytest.raises(InvalidFieldError, match="high"):
        whole.replace(low=2)
    assert whole.to_dict()["inner"] == {"rate": 0.5, "sizes": [64, 64], "depth": 7}


def test_the_reference_is_yaml_that_gives_the_defaults_back(tmp_path):
    text = reference(Whole)
    assert "# Share of the rows. (a number in [0, 1])\n  rate: 0.5" in text
    file = tmp_path / "job.yaml"
    file.write_text(text)
    assert load(Whole, file) == Whole()
    changed = Whole(name="y", inner=Inner(sizes=(8,)), weights={"like": 2.0})
    assert from_mapping(Whole, yaml.safe_load(reference(changed))) == changed


def test_the_schema_has_sentences_and_bounds():
    cap = schema(Whole)["properties"]["cap"]
    assert cap["description"] == "Largest weight."
    assert {"exclusiveMinimum": 0, "type": "number"} in cap["anyOf"]


def test_the_command_line_shows_the_sentences_and_overrides_the_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    file = tmp_path / "job.yaml"
    file.write_text("inner: {rate: 0.25}\nname: there\n")
    config = start(Whole, ["--config", str(file), "--inner.sizes", "8", "4", "--cap", "2"])
    assert (config.name, config.inner.rate, config.inner.sizes, config.cap) == ("there", 0.25, (8, 4), 2.0)
    with pytest.raises(SystemExit) as exit_:
        start(Whole, ["--inner.rate", "3"])
    assert exit_.value.code == 2
    assert "rate: got 3.0; allowed: a number in [0, 1]" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        start(Whole, ["--help"])
    assert "Share of the rows." in capsys.readouterr().out


class Cached(Config):
    """A config that keeps what it has computed."""

    sides: tuple[Inner, ...] = Field((Inner(),), description="Parts.")

    @cached_property
    def count(self) -> int:
        """How many parts there are."""
        return len(self.sides)


def test_a_copy_takes_fields_alone_and_computes_anew():
    config = Cached()
    assert config.count == 1
    assert config.replace(sides=(Inner(), Inner())).count == 2


def test_a_bad_value_in_a_list_of_parts_is_named():
    with pytest.raises(InvalidFieldError, match=r"sides\.1\.rate: got 2; allowed: a number in \[0, 1\]"):
        Cached(sides=({}, {"rate": 2}))
    with pytest.raises(InvalidFieldError, match=r"sides\.0\.speed: got 2; allowed: one of rate, sizes"):
        Cached(sides=({"speed": 2},))


class Moved(Config):
    former: ClassVar[Mapping[str, str]] = {"logs": "exposures"}

    exposures: str = "embedded"


class Around(Config):
    former: ClassVar[Mapping[str, str]] = {"size": "width"}

    width: int = 1
    inner: Moved = Moved()


def test_a_former_name_is_understood_everywhere() -> None:
    assert Around(size=3) == Around(width=3) == from_mapping(Around, {"size": 3})
    assert from_mapping(Around, {"inner": {"logs": "here"}}).inner.exposures == "here"
    assert renamed(Around, ["--size", "3", "--inner.logs=a=b", "--logs", "size"]) == [
        "--width", "3", "--inner.exposures=a=b", "--logs", "size"]
    assert "size" not in Around(size=3).to_dict()
    with pytest.raises(InvalidFieldError, match="size: got 3; allowed: nothing beside width"):
        Around(size=3, width=4)
