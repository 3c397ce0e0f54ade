"""Search spaces: which fields of a config vary and over what, declared in the same file as the config."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import optuna
from pydantic import TypeAdapter

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError, from_mapping, require

T = TypeVar("T")
# One trial's choices: dotted path of a field → value.
Assignment = dict[str, Any]
DISCOUNTS, MULTIPLIERS, TOTAL = "discounts", "multipliers", "multipliers.total"
_KINDS = ("long_term", "short_term")
_SYMBOLS = {DISCOUNTS: "γ", MULTIPLIERS: "λ"}


@dataclass(frozen=True, kw_only=True)
class Range:
    """Numbers from `low` to `high`.

    Attributes:
        log: drawn evenly on a logarithmic scale.
        steps: how many of them a grid takes, both ends among them.
    """

    low: float
    high: float
    log: bool = False
    steps: int = 3

    def __post_init__(self) -> None:
        require(math.isfinite(self.low) and self.low < self.high < math.inf, "low", (self.low, self.high),
                "two finite numbers, the lower one first")
        require(not self.log or self.low > 0, "low", self.low, "a number > 0 where log is set")
        require(self.steps >= 2, "steps", self.steps, "an integer ≥ 2")

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
    found: dict[str, Assignment] = {canonical({}): {}}
    for block in space:
        values = [value.grid() if isinstance(value, Range) else list(value) for value in block.values()]
        for combination in itertools.product(*values):
            assignment = dict(zip(block, combination, strict=True))
            found.setdefault(canonical(assignment), assignment)
    return list(found.values())


def random(space: Sequence[Block], samples: int, seed: int) -> list[Assignment]:
    """Independent draws from the blocks in turn, each kept once; the first n of a longer list are the list of n.

    There are fewer than `samples` where the space holds no more.
    """
    rng = np.random.default_rng([seed, 0x5EA])
    endless = any(isinstance(values, Range) for block in space for values in block.values())
    # The grid has the config as it stands besides.
    count = samples if endless else min(samples, len(grid(space)) - 1)
    found: dict[str, Assignment] = {}
    for block in itertools.cycle(space):
        drawn = {name: values.draw(rng) if isinstance(values, Range) else values[int(rng.integers(len(values)))]
                 for name, values in block.items()}
        found.setdefault(canonical(drawn), drawn)
        if len(found) >= count:
            return list(found.values())
    return []


def distributions(block: Block) -> dict[str, optuna.distributions.BaseDistribution]:
    """The block as Optuna's distributions; a value that is no scalar travels as JSON."""
    return {name: optuna.distributions.FloatDistribution(values.low, values.high, log=values.log)
            if isinstance(values, Range) else
            optuna.distributions.CategoricalDistribution([encode(value) for value in values])
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


def read_field(config: Any, path: str) -> Any:
    """The value at a dotted path of a config dataclass, as JSON has it."""
    value = config
    for name in path.split("."):
        value = getattr(value, name)
    return list(value) if isinstance(value, tuple) else value


def replace_fields(config: T, changes: Mapping[str, Any]) -> T:
    """A copy of a config dataclass with other values, checked as if they stood in its file.

    Args:
        changes: dotted path of a field → value.

    Raises:
        InvalidFieldError: no such field, or a bad value.
    """
    mapping = TypeAdapter(type(config)).dump_python(config, mode="json")
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
        next(one for one in mapping["behaviours"] if one["name"] == name)["discount"] = value
    return Vocabulary.from_dict(mapping, "space")


def multipliers(vocabulary: Vocabulary, base: Mapping[str, float], given: Mapping[str, float]) -> dict[str, float]:
    """λ of every short-term behaviour.

    Args:
        base: λ that the config gives, over those of the vocabulary.
        given: by behaviour, or `total`: Λ, shared out in the proportions of the others.

    Raises:
        InvalidFieldError: no such short-term behaviour.
    """
    found = {one.name: base.get(one.name, one.multiplier) for one in vocabulary.short_term}
    for name, value in _each(vocabulary, MULTIPLIERS, {k: v for k, v in given.items() if k != "total"}):
        require(name in found, f"{MULTIPLIERS}.{name}", value, f"short-term behaviours ({', '.join(found)})")
        found[name] = float(value)
    if "total" in given:
        scale = given["total"] / sum(found.values())
        found = {name: value * scale for name, value in found.items()}
    return found


def _each(vocabulary: Vocabulary, field: str, given: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Behaviour and value; kinds first, so that a behaviour's own value wins."""
    for name, value in sorted(given.items(), key=lambda item: item[0] not in _KINDS):
        members = [one.name for one in vocabulary.behaviours if name in (one.name, one.kind)]
        if not members:
            allowed = ", ".join((*_KINDS, *vocabulary.behaviour_names))
            raise InvalidFieldError(f"{field}.{name}", value, f"one of {allowed}")
        for member in members:
            yield member, value
