"""Search spaces: which fields of a config vary and over what, declared in the same file as the config."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self, TypeVar

import numpy as np
from pydantic import Field, TypeAdapter, model_validator

from recfuse.behaviours import Vocabulary
from recfuse.config import Config, InvalidFieldError, from_mapping, require

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

T = TypeVar("T")
# One trial's choices: dotted path of a field → value.
Assignment = dict[str, Any]
DISCOUNTS, MULTIPLIERS, TOTAL = "discounts", "multipliers", "multipliers.total"
_KINDS = ("long_term", "short_term")
_SYMBOLS = {DISCOUNTS: "γ", MULTIPLIERS: "λ"}


class Range(Config):
    """Numbers between two ends."""

    low: float = Field(description="The range begins at this value.")
    high: float = Field(description="The range ends at this value.")
    log: bool = Field(False, description="Values are drawn evenly on a logarithmic scale.")
    steps: int = Field(3, description="A grid takes so many values, both ends among them.", ge=2)

    @model_validator(mode="after")
    def _ends_fit(self) -> Self:
        require(self.low < self.high, "low", (self.low, self.high), "two finite numbers, the lower one first")
        require(not self.log or self.low > 0, "low", self.low, "a number > 0 where log is set")
        return self

    def grid(self) -> list[float]:
        """The values of a grid."""
        if self.log:
            return [float(f"{value:.6g}") for value in np.geomspace(self.low, self.high, self.steps)]
        return [float(f"{value:.6g}") for value in np.linspace(self.low, self.high, self.steps)]

    def draw(self, rng: np.random.Generator) -> float:
        """A random value."""
        if self.log:
            return float(np.exp(rng.uniform(math.log(self.low), math.log(self.high))))
        return float(rng.uniform(self.low, self.high))


# One block: field → range, or the list of its values.
Block = Mapping[str, Range | Sequence[Any]]


def check(space: Sequence[Block]) -> None:
    """Raises InvalidFieldError for a space in which nothing varies."""
    require(bool(space) and all(space), "space", list(space), "at least one block of field: values")
    for number, block in enumerate(space):
        for name, values in block.items():
            require(isinstance(values, Range) or len(values) > 0, f"space[{number}].{name}", values,
                    "a list of values, or {low, high, log, steps}")


def grid(space: Sequence[Block]) -> list[Assignment]:
    """The config as it stands, then every combination of each block; one that was there before is left out."""
    assignments: dict[str, Assignment] = {canonical({}): {}}
    for block in space:
        values = [value.grid() if isinstance(value, Range) else list(value) for value in block.values()]
        for combination in itertools.product(*values):
            assignment = dict(zip(block, combination, strict=True))
            assignments.setdefault(canonical(assignment), assignment)
    return list(assignments.values())


def random(space: Sequence[Block], samples: int, seed: int) -> list[Assignment]:
    """Independent draws from the blocks in turn, each kept once; the first n of a longer list are the list of n.

    There are fewer than `samples` where the space holds no more.
    """
    rng = np.random.default_rng([seed, 0x5EA])
    endless = any(isinstance(values, Range) for block in space for values in block.values())
    # The grid has the config as it stands besides.
    count = samples if endless else min(samples, len(grid(space)) - 1)
    assignments: dict[str, Assignment] = {}
    for block in itertools.cycle(space):
        drawn = {name: values.draw(rng) if isinstance(values, Range) else values[int(rng.integers(len(values)))]
                 for name, values in block.items()}
        assignments.setdefault(canonical(drawn), drawn)
        if len(assignments) >= count:
            return list(assignments.values())
    return []


def distributions(block: Block) -> dict[str, BaseDistribution]:
    """The block as Optuna's distributions; a value that is no scalar travels as JSON."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    return {name: FloatDistribution(values.low, values.high, log=values.log) if isinstance(values, Range) else
            CategoricalDistribution([encode(value) for value in values])
            for name, values in block.items()}


def encode(value: Any) -> Any:
    """A value as a scalar."""
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def decode(value: Any) -> Any:
    """The inverse of `encode`."""
    return json.loads(value) if isinstance(value, str) and value[:1] in "[{" else value


def canonical(assignment: Assignment) -> str:
    """Equal for equal assignments."""
    return json.dumps({name: encode(value) for name, value in assignment.items()}, sort_keys=True)


def label(assignment: Assignment) -> str:
    """Short text for tables and figures, with the symbols of maths 1."""
    def text(value: Any) -> str:
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    return ", ".join(f"{symbol(name)}={text(value)}" for name, value in assignment.items()) or \
        "the config as it stands"


def symbol(name: str) -> str:
    """A field as maths 1 writes it, where it does."""
    head, _, rest = name.partition(".")
    return "Λ" if name == TOTAL else f"{_SYMBOLS[head]} {rest}" if head in _SYMBOLS else name


def plain(config: Any) -> dict[str, Any]:
    """A config as JSON has it."""
    values: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return values


def read_field(config: Any, path: str) -> Any:
    """The value at a dotted path of a config, as JSON has it."""
    value = config
    for name in path.split("."):
        value = getattr(value, name)
    return list(value) if isinstance(value, tuple) else value


def replace_fields(config: T, changes: Mapping[str, Any]) -> T:
    """A copy of a config with other values, checked as if they stood in its file.

    Args:
        changes: dotted path of a field → value.

    Raises:
        InvalidFieldError: no such field, or a bad value.
    """
    mapping = plain(config)
    for path, value in changes.items():
        *parents, last = path.split(".")
        place = mapping
        for parent in parents:
            require(isinstance(place.get(parent), dict), path, parent, f"a path of fields ({', '.join(place)})")
            place = place[parent]
        place[last] = decode(value)
    return from_mapping(type(config), mapping, "space")


def split_fusion(assignment: Assignment) -> tuple[dict[str, float], dict[str, float], dict[str, Any]]:
    """(discounts, multipliers, other fields) of an assignment for the fusion learner."""
    parts: tuple[dict[str, Any], dict[str, Any], dict[str, Any]] = {}, {}, {}
    for path, value in assignment.items():
        head, _, name = path.partition(".")
        place = (DISCOUNTS, MULTIPLIERS).index(head) if head in (DISCOUNTS, MULTIPLIERS) else 2
        parts[place][path if place == 2 else name] = decode(value)
    return parts


def with_discounts(vocabulary: Vocabulary, discounts: Mapping[str, float]) -> Vocabulary:
    """The vocabulary with other discounts, by behaviour or for a whole kind (`short_term`, `long_term`).

    Raises:
        InvalidFieldError: no such behaviour, or a bad discount.
    """
    mapping = vocabulary.to_dict()
    for name, value in _each(vocabulary, DISCOUNTS, discounts):
        next(behaviour for behaviour in mapping["behaviours"] if behaviour["name"] == name)["discount"] = value
    return Vocabulary.from_dict(mapping, "space")


def multipliers(vocabulary: Vocabulary, base: Mapping[str, float], given: Mapping[str, float]) -> dict[str, float]:
    """Multiplier λ of every short-term behaviour.

    Args:
        base: λ that the config gives, over those of the vocabulary.
        given: by behaviour, or `total`: the temperature Λ, shared out in the proportions of the others.

    Raises:
        InvalidFieldError: no such short-term behaviour.
    """
    chosen = {behaviour.name: base.get(behaviour.name, behaviour.multiplier) for behaviour in vocabulary.short_term}
    for name, value in _each(vocabulary, MULTIPLIERS, {k: v for k, v in given.items() if k != "total"}):
        require(name in chosen, f"{MULTIPLIERS}.{name}", value, f"short-term behaviours ({', '.join(chosen)})")
        chosen[name] = float(value)
    if "total" in given:
        scale = given["total"] / sum(chosen.values())
        chosen = {name: value * scale for name, value in chosen.items()}
    return chosen


def _each(vocabulary: Vocabulary, field: str, given: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Behaviour and value; kinds first, so that a behaviour's own value wins."""
    for name, value in sorted(given.items(), key=lambda item: item[0] not in _KINDS):
        members = [behaviour.name for behaviour in vocabulary.behaviours if name in (behaviour.name, behaviour.kind)]
        if not members:
            allowed = ", ".join((*_KINDS, *vocabulary.behaviour_names))
            raise InvalidFieldError(f"{field}.{name}", value, f"one of {allowed}")
        for member in members:
            yield member, value
