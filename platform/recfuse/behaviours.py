"""The vocabulary: behaviours, fusion parameters, state features, scenes and stages.

One file of it travels with every session log and inside every bundle, so that a number in a list has a name wherever
it is met. Everything here is a frozen, validated dataclass; `Vocabulary.load` reads one from YAML.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import TypeAdapter

from recfuse.config import InvalidFieldError, from_mapping, require

Kind = Literal["long_term", "short_term"]
Transform = Literal["identity", "log1p"]
Formula = Literal["linear", "log_sum", "power"]
STAGES = ("coarse", "fine", "rerank", "mix")
_DEFAULT_DISCOUNT: dict[Kind, float] = {"long_term": 0.95, "short_term": 0.0}

@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """One kind of feedback, with its own critic (maths 1.2).

    Attributes:
        name: its field in the log's `feedback` struct.
        kind: `long_term` (dense: watch time) or `short_term` (sparse: like, comment, forward, follow).
        discount: γ in [0, 1); None takes 0.95 for long-term, 0 for short-term behaviours.
        multiplier: λ > 0 of the constraint that holds the long-term policy close to this behaviour's policy
            (maths 1.5); short-term behaviours only.
        weight: α ≥ 0 of this behaviour's advantage among the long-term ones, normalised to sum 1; long-term only.
        transform: applied to the logged feedback before it becomes a reward (`log1p` tames heavy tails).
        scale: the transformed feedback is divided by it, so that rewards are of order one.
    """

    name: str
    kind: Kind
    discount: float | None = None
    multiplier: float = 1.0
    weight: float = 1.0
    transform: Transform = "identity"
    scale: float = 1.0

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), "name", self.name, "a non-empty string")
        require(self.kind in _DEFAULT_DISCOUNT, "kind", self.kind, "long_term, short_term")
        if self.discount is None:
            object.__setattr__(self, "discount", _DEFAULT_DISCOUNT[self.kind])
        require(0.0 <= self.gamma < 1.0, "discount", self.discount, "a number in [0, 1)")
        require(math.isfinite(self.multiplier) and self.multiplier > 0, "multiplier", self.multiplier, "a number > 0")
        require(math.isfinite(self.weight) and self.weight >= 0, "weight", self.weight, "a number ≥ 0")
        require(self.transform in ("identity", "log1p"), "transform", self.transform, "identity, log1p")
        require(math.isfinite(self.scale) and self.scale > 0, "scale", self.scale, "a number > 0")

    @property
    def gamma(self) -> float:
        """The discount, resolved."""
        assert self.discount is not None
        return self.discount


@dataclass(frozen=True, kw_only=True)
class StateFeature:
    """One input of the state encoder.

    Attributes:
        name: its key in the request's context.
        categories: where given, the feature is one-hot over them plus one column for anything else.
        mean, std: a numeric feature (no categories) is encoded as (x − mean) / std.
        log: a numeric feature passes through log(1 + x) before it is normalised; x ≥ 0.
        default: taken where a context lacks a numeric feature.
    """

    name: str
    categories: tuple[str, ...] = ()
    mean: float = 0.0
    std: float = 1.0
    log: bool = False
    default: float = 0.0

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), "name", self.name, "a non-empty string")
        require(len(set(self.categories)) == len(self.categories), "categories", self.categories, "distinct strings")
        require(math.isfinite(self.mean), "mean", self.mean, "a finite number")
        require(math.isfinite(self.std) and self.std > 0, "std", self.std, "a number > 0")

    @property
    def width(self) -> int:
        """Columns this feature takes in the state."""
        return len(self.categories) + 1 if self.categories else 1


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What the numbers of a session log mean (design 3.1).

    Attributes:
        behaviours: order of the feedback columns everywhere.
        fusion_parameters: names of the M predictions that the M fusion parameters weigh, in order.
        state_size: S, the width of `state`.
        state_features: how a context becomes a state; empty where the log's owner encodes states elsewhere.
        formula, offset: how parameters and predictions become a score (maths 2); `offset` is b of log-sum and power.
        scenes, stages: the values that a log may carry; an empty `scenes` allows any.
    """

    behaviours: tuple[Behaviour, ...]
    fusion_parameters: tuple[str, ...]
    state_size: int
    state_features: tuple[StateFeature, ...] = ()
    formula: Formula = "linear"
    offset: float = 1e-3
    scenes: tuple[str, ...] = ()
    stages: tuple[str, ...] = STAGES

    def __post_init__(self) -> None:
        names = self.behaviour_names
        require(len(names) > 0, "behaviours", names, "at least one behaviour")
        require(len(set(names)) == len(names), "behaviours", names, "distinct names")
        require(len(self.long_term) > 0, "behaviours", names, "at least one long_term behaviour")
        require(sum(b.weight for b in self.long_term) > 0, "behaviours", names, "long_term weights with a sum > 0")
        params = self.fusion_parameters
        require(len(params) > 0 and len(set(params)) == len(params), "fusion_parameters", params, "distinct names")
        require(self.state_size > 0, "state_size", self.state_size, "an integer > 0")
        width = sum(feature.width for feature in self.state_features)
        require(not self.state_features or width == self.state_size, "state_size", self.state_size,
                f"{width}, the width of state_features")
        require(self.formula in ("linear", "log_sum", "power"), "formula", self.formula, "linear, log_sum, power")
        require(self.offset > 0, "offset", self.offset, "a number > 0")
        unknown = set(self.stages) - set(STAGES)
        require(bool(self.stages) and not unknown, "stages", self.stages, f"a subset of {STAGES}")

    @property
    def behaviour_names(self) -> tuple[str, ...]:
        return tuple(behaviour.name for behaviour in self.behaviours)

    @property
    def long_term(self) -> tuple[Behaviour, ...]:
        return tuple(behaviour for behaviour in self.behaviours if behaviour.kind == "long_term")

    @property
    def short_term(self) -> tuple[Behaviour, ...]:
        return tuple(behaviour for behaviour in self.behaviours if behaviour.kind == "short_term")

    @property
    def action_size(self) -> int:
        """M, the number of fusion parameters."""
        return len(self.fusion_parameters)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML, JSON and the manifest of a bundle."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, mapping: Any, source: str = "vocabulary") -> Vocabulary:
        """Raises InvalidFieldError with the path of the first bad field."""
        return from_mapping(cls, mapping, source)

    @classmethod
    def load(cls, path: str | Path) -> Vocabulary:
        """Reads a YAML file."""
        path = Path(path)
        require(path.is_file(), "vocabulary", str(path), "a YAML file that exists")
        try:
            mapping = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise InvalidFieldError("vocabulary", str(path), f"a YAML file ({error})") from None
        return cls.from_dict(mapping, source=path.name)

    def save(self, path: str | Path) -> None:
        """Writes the YAML file that `load` reads."""
        plain = TypeAdapter(Vocabulary).dump_python(self, mode="json")
        Path(path).write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
