"""The vocabulary: behaviours, fusion parameters, state features, scenes and stages.

One file of it travels with every session log and inside every bundle, so that a number in a list has a name wherever
it is met. Everything here is a frozen, checked config; `Vocabulary.load` reads one from YAML.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, model_validator

from recfuse.config import NOT_BLANK, Config, InvalidFieldError, from_mapping, require

Kind = Literal["long_term", "short_term"]
Transform = Literal["identity", "log1p"]
Formula = Literal["linear", "log_sum", "power"]
Stage = Literal["coarse", "fine", "rerank", "mix"]
STAGES: tuple[Stage, ...] = get_args(Stage)
_DEFAULT_DISCOUNT: dict[Kind, float] = {"long_term": 0.95, "short_term": 0.0}


class Behaviour(Config):
    """One kind of feedback, with its own critic (maths 1.2)."""

    name: str = Field(description="Field of the log's `feedback` struct that holds this behaviour.", pattern=NOT_BLANK)
    kind: Kind = Field(description="Long-term behaviours are dense (watch time), short-term ones sparse (like, share).")
    discount: float | None = Field(
        None, description="Discount γ of this behaviour's critic; absent, .95 for long-term and 0 for short-term ones.",
        ge=0, lt=1)
    multiplier: float = Field(
        1.0, description="Multiplier λ of the constraint that holds the long-term policy close to this behaviour's "
                         "policy (maths 1.5); only short-term behaviours use it.", gt=0)
    weight: float = Field(
        1.0, description="Weight α of this behaviour's advantage among the long-term ones, which are normalised to "
                         "sum 1; only long-term behaviours use it.", ge=0)
    transform: Transform = Field(
        "identity", description="Logged feedback passes through it before it is a reward; `log1p` tames heavy tails.")
    scale: float = Field(
        1.0, description="The transformed feedback is divided by this number, so that rewards are of order one.", gt=0)

    @model_validator(mode="before")
    @classmethod
    def _resolve_discount(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("discount") is None and values.get("kind") in get_args(Kind):
            return {**values, "discount": _DEFAULT_DISCOUNT[values["kind"]]}
        return values

    @property
    def gamma(self) -> float:
        """The discount, resolved."""
        assert self.discount is not None
        return self.discount


class StateFeature(Config):
    """One input of the state encoder."""

    name: str = Field(description="Key of the feature in a request's context.", pattern=NOT_BLANK)
    categories: tuple[str, ...] = Field(
        (), description="Where given, the feature is one-hot over these plus one column for anything else.")
    mean: float = Field(0.0, description="A numeric feature (no categories) is encoded as (x − mean) / std.")
    std: float = Field(1.0, description="A numeric feature (no categories) is encoded as (x − mean) / std.", gt=0)
    log: bool = Field(
        False, description="A numeric feature passes through log(1 + x) before it is normalised; x ≥ 0 is then needed.")
    default: float = Field(0.0, description="This number is taken where a context lacks a numeric feature.")

    @model_validator(mode="after")
    def _check_categories(self) -> StateFeature:
        require(len(set(self.categories)) == len(self.categories), "categories", self.categories, "distinct strings")
        return self

    @property
    def width(self) -> int:
        """Columns this feature takes in the state."""
        return len(self.categories) + 1 if self.categories else 1


class CandidateFeatures(Config):
    """The part of a state that says what there is to rank, after the part of the context (maths 5.8).

    Per fused prediction the mean, the spread, the mean of the best page and the best value, of the terms that the
    formula weighs; the correlation of every two predictions; how many candidates there are; and which share of the best
    of them the session has shown already.
    """

    page: int = Field(description="The best page has so many places.", ge=1)
    mean: tuple[float, ...] = Field((), description="A feature is encoded as (x − mean) / std; without them, as it is.")
    std: tuple[float, ...] = Field((), description="A feature is encoded as (x − mean) / std; without them, as it is.")

    @model_validator(mode="after")
    def _check(self) -> CandidateFeatures:
        require(len(self.mean) == len(self.std), "std", self.std, f"{len(self.mean)} numbers, as many as mean has")
        require(all(value > 0 for value in self.std), "std", self.std, "numbers > 0")
        return self

    @staticmethod
    def width_of(parameters: int) -> int:
        """Columns of the state for so many fused predictions."""
        return 4 * parameters + parameters * (parameters - 1) // 2 + 2


class Curve(Config):
    """An increasing function of a prediction: straight lines between knots, whose outer ones go on (maths 2.5)."""

    x: tuple[float, ...] = Field(description="The knots, increasing, in units of the prediction.")
    y: tuple[float, ...] = Field(description="The values at the knots, not decreasing.")

    @model_validator(mode="after")
    def _check(self) -> Curve:
        require(len(self.x) >= 2, "x", self.x, "at least two knots")
        require(len(self.y) == len(self.x), "y", self.y, f"{len(self.x)} numbers, one a knot")
        require(bool(np.isfinite(self.x).all()) and bool((np.diff(self.x) > 0).all()), "x", self.x,
                "finite numbers that increase")
        require(bool(np.isfinite(self.y).all()) and bool((np.diff(self.y) >= 0).all()), "y", self.y,
                "finite numbers that do not decrease")
        return self

    def of(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """The curve at values of any shape."""
        x, y = np.array(self.x, np.float64), np.array(self.y, np.float64)
        left = (np.searchsorted(x, values, side="right") - 1).clip(0, len(x) - 2)
        slope = np.diff(y) / np.diff(x)
        result: NDArray[np.float64] = y[left] + slope[left] * (values.astype(np.float64) - x[left])
        return result


def curved(predictions: NDArray[np.floating], curves: Sequence[Curve] | None) -> NDArray[np.float64]:
    """Predictions [..., M, N] after M curves, float64; themselves where there are none."""
    if curves is None:
        return predictions.astype(np.float64, copy=False)
    return np.stack([curve.of(predictions[..., k, :]) for k, curve in enumerate(curves)], -2)


class Vocabulary(Config):
    """What the numbers of a session log mean (design 3.1)."""

    behaviours: tuple[Behaviour, ...] = Field(description="Behaviours in the order of feedback columns everywhere.")
    fusion_parameters: tuple[str, ...] = Field(
        description="Names of the M predictions that the M fusion parameters weigh, in order.")
    state_size: int = Field(description="Width S of the state.", gt=0)
    state_features: tuple[StateFeature, ...] = Field(
        (), description="How a context becomes a state; empty where the log's owner encodes states elsewhere.")
    candidate_features: CandidateFeatures | None = Field(
        None, description="What a state says of the candidates, in its last columns; nothing where it does not.")
    formula: Formula = Field("linear", description="How parameters and predictions become a score (maths 2).")
    offset: float = Field(1e-3, description="Offset b of the formulas log_sum and power.", gt=0)
    curves: tuple[Curve, ...] | None = Field(
        None, description="Predictions pass through these, one a fusion parameter, before the formula `linear`; "
                          "nothing leaves them as they are.")
    action_range: tuple[float, float] | None = Field(
        None, description="Range (low, high) that actions are squashed into; mu and sigma are of what was squashed.")
    time_zone: str | None = Field(
        None, description="Zone of the clock features `hour` and `weekday`, such as Europe/Berlin; nothing leaves it "
                          "to the server, whose own is UTC.")
    scenes: tuple[str, ...] = Field((), description="Scenes that a log may name; empty allows any.")
    stages: tuple[Stage, ...] = Field(STAGES, description="Stages that a log may name.")

    @model_validator(mode="after")
    def _check(self) -> Vocabulary:
        names, parameters = self.behaviour_names, self.fusion_parameters
        require(len(names) > 0, "behaviours", names, "at least one behaviour")
        require(len(set(names)) == len(names), "behaviours", names, "distinct names")
        require(len(self.long_term) > 0, "behaviours", names, "at least one long_term behaviour")
        require(sum(b.weight for b in self.long_term) > 0, "behaviours", names, "long_term weights with a sum > 0")
        require(len(parameters) > 0 and len(set(parameters)) == len(parameters), "fusion_parameters", parameters,
                "distinct names")
        width = sum(feature.width for feature in self.state_features) + self.candidate_size
        require(not self.state_features or width == self.state_size, "state_size", self.state_size,
                f"{width}, the width of state_features and candidate_features")
        require(self.context_size >= 0, "state_size", self.state_size,
                f"at least {self.candidate_size}, the width of candidate_features")
        given = self.candidate_features
        require(given is None or len(given.mean) in (0, self.candidate_size), "candidate_features.mean",
                f"{len(given.mean) if given else 0} numbers", f"{self.candidate_size} numbers, or none")
        require(bool(self.stages), "stages", self.stages, f"a subset of {STAGES}")
        if self.curves is not None:
            require(self.formula == "linear", "formula", self.formula, "linear, where there are curves")
            require(len(self.curves) == len(parameters), "curves", f"{len(self.curves)} curves",
                    f"{len(parameters)} curves, one a fusion parameter")
            knots = [len(curve.x) for curve in self.curves]
            require(len(set(knots)) == 1, "curves", f"{knots} knots", "as many knots in every curve")
        if self.action_range is not None:
            low, high = self.action_range
            require(low < high, "action_range", self.action_range, "numbers (low, high) with low < high, or nothing")
        return self

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

    @property
    def candidate_size(self) -> int:
        """Columns of the state, its last ones, that say what there is to rank."""
        return CandidateFeatures.width_of(self.action_size) if self.candidate_features is not None else 0

    @property
    def context_size(self) -> int:
        """Columns of the state, its first ones, that say who asks and when: what a client that encodes its own states
        sends."""
        return self.state_size - self.candidate_size

    def curved(self, predictions: NDArray[np.floating]) -> NDArray[np.float64]:
        """Predictions [..., M, N] after the curves, float64; themselves where there are none."""
        return curved(predictions, self.curves)

    @cached_property
    def meaning(self) -> str:
        """Names what the numbers of a logged row mean: equal for vocabularies whose rows may stand in one table.

        Which behaviours are told, the order of the fusion parameters, how a state was encoded, and formula, curves and
        range of actions are part of it; what a learner makes of the rows (discounts, multipliers, scales) is not.
        """
        parts = [sorted(self.behaviour_names), self.fusion_parameters, self.state_size,
                 [feature.to_dict() for feature in self.state_features], self.formula,
                 None if self.formula == "linear" else self.offset, self.action_range]
        if self.candidate_features is not None:
            parts.append(self.candidate_features.to_dict())
        if self.curves is not None:
            parts.append([curve.to_dict() for curve in self.curves])
        if self.time_zone is not None:
            parts.append(self.time_zone)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]

    def differences(self, other: Vocabulary) -> tuple[str, ...]:
        """Fields that give a logged row another meaning under the other vocabulary."""
        names = ("fusion_parameters", "state_size", "state_features", "candidate_features", "formula", "curves",
                 "action_range", "time_zone")
        fields = ["behaviours"] if set(self.behaviour_names) != set(other.behaviour_names) else []
        fields += [name for name in names if getattr(self, name) != getattr(other, name)]
        if self.formula == other.formula != "linear" and self.offset != other.offset:
            fields.append("offset")
        return tuple(fields)

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a range, curves, candidate features or a zone are left out where there are none, as in older
        files."""
        plain = super().to_dict()
        for name in ("action_range", "curves", "candidate_features", "time_zone"):
            if plain[name] is None:
                del plain[name]
        return plain

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
        Path(path).write_text(yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True))
