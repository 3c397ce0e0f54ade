"""The base of every config: frozen pydantic fields, each with a sentence and its bounds; and reading one from YAML."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, NoReturn, Self, TypeVar

import annotated_types
import yaml
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from recfuse.config.errors import InvalidFieldError, require

T = TypeVar("T")
# Pattern of a text with something to read in it.
NOT_BLANK = r"\S"
_NUMBERS = (int, float)


class Config(BaseModel):
    """A frozen, checked set of named values.

    A subclass declares `name: type = Field(default, description="One sentence.", ge=0)`. Bounds of one field stand in
    its declaration; what ties fields together stands in a `model_validator(mode="after")` that calls `require`. Numbers
    are finite unless a field says otherwise.

    Raises:
        InvalidFieldError: a value is out of bounds, of a wrong type, or no field has its name.
    """

    former: ClassVar[Mapping[str, str]] = {}  # Names that fields had before, which files and commands may still use.

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=True,
                              use_attribute_docstrings=False, protected_namespaces=())

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            _refuse(type(self), error)

    @model_validator(mode="before")
    @classmethod
    def _renamed(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not cls.former.keys() & values.keys():
            return values
        for before, name in cls.former.items():
            require(not {before, name} <= values.keys(), before, values.get(before), f"nothing beside {name}")
        return {cls.former.get(name, name): value for name, value in values.items()}

    def replace(self, **changes: Any) -> Self:
        """A copy with other values, checked like the first."""
        # `dict(self)` would hold what `cached_property` has kept, too.
        return type(self)(**{**{name: getattr(self, name) for name in type(self).model_fields}, **changes})

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON and YAML can hold; nested configs with all of their own fields."""
        return self.model_dump(mode="json", serialize_as_any=True)


def from_mapping(cls: type[T], mapping: Any, source: str = "") -> T:
    """A config from plain YAML or JSON values; unknown keys, wrong types and bad values are refused.

    Raises:
        InvalidFieldError: with the path of the first bad field.
    """
    try:
        if isinstance(cls, type) and issubclass(cls, Config):
            return cls.model_validate(mapping)
        return TypeAdapter(cls).validate_python(mapping, extra="forbid")
    except ValidationError as error:
        _refuse(cls, error, source)


def load(cls: type[T], path: str | Path) -> T:
    """A config from a YAML file.

    Raises:
        InvalidFieldError: the file is missing or no YAML, or a field is unknown or bad.
    """
    return from_mapping(cls, read(path), source=Path(path).name)


def read(path: str | Path) -> Any:
    """Plain values of a YAML file; none are an empty mapping.

    Raises:
        InvalidFieldError: the file is missing or no YAML.
    """
    path = Path(path)
    if not path.is_file():
        raise InvalidFieldError("--config", str(path), "a YAML file that exists")
    try:
        return yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise InvalidFieldError("--config", str(path), f"a YAML file ({error})") from None


def renamed(cls: Any, arguments: Iterable[str]) -> list[str]:
    """The arguments of a command line, with options by a former name of a field under today's."""
    options = dict(_former_options(cls))
    split = (argument.partition("=") for argument in arguments)
    return [options.get(option, option) + equals + value for option, equals, value in split]


def _former_options(cls: Any, prefix: str = "--") -> Iterator[tuple[str, str]]:
    if not (isinstance(cls, type) and issubclass(cls, Config)):
        return
    yield from ((prefix + before, prefix + name) for before, name in cls.former.items())
    for name, info in cls.model_fields.items():
        yield from _former_options(info.annotation, f"{prefix}{name}.")


def allowed(info: FieldInfo) -> str:
    """What a field accepts, in words: "a number in [0, 1]", "an integer ≥ 1", "linear, power", or "" for a free one."""
    return _in_words(info.annotation, info.metadata)


def _refuse(cls: Any, error: ValidationError, source: str = "") -> NoReturn:
    """Raises the first of pydantic's complaints as ours."""
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    where = f" (in {source})" if source else ""
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InvalidFieldError):
        raise InvalidFieldError(".".join([*path, cause.field]), cause.value, cause.allowed + where) from None
    if first["type"] == "extra_forbidden":
        words = f"one of {', '.join(_names(cls, first['loc'][:-1])) or 'no further field'}"
    else:
        words = _in_words(*_declared(cls, first["loc"])) or first["msg"]
    raise InvalidFieldError(".".join(path) or source or "config", first["input"], words + where)


def _declared(cls: Any, location: tuple[int | str, ...]) -> tuple[Any, list[Any]]:
    """Type and bounds of what a path leads to, through configs, lists and mappings; (None, []) for a dead end."""
    annotation: Any = cls
    metadata: list[Any] = []
    for part in location:
        container = next((each for each in (annotation, *typing.get_args(annotation))
                          if typing.get_origin(each) in (tuple, list, dict, Mapping)), None)
        model = _model(annotation)
        if container is not None:
            # The last argument is the element of a list and the value of a mapping; a tuple may end in an ellipsis.
            annotation, metadata = [each for each in typing.get_args(container) if each is not Ellipsis][-1], []
        elif model is not None and part in model.model_fields:
            info = model.model_fields[str(part)]
            annotation, metadata = info.annotation, list(info.metadata)
        else:
            return None, []
    return annotation, metadata


def _names(cls: Any, location: tuple[int | str, ...]) -> list[str]:
    model = _model(_declared(cls, location)[0])
    return sorted(model.model_fields) if model is not None else []


def _model(annotation: Any) -> type[BaseModel] | None:
    for choice in (annotation, *typing.get_args(annotation)):
        if isinstance(choice, type) and issubclass(choice, BaseModel):
            return choice
    return None


def _in_words(annotation: Any, metadata: list[Any]) -> str:
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        inner, *more = typing.get_args(annotation)
        return _in_words(inner, [*more, *metadata])
    if origin is Literal:
        return ", ".join(str(value) for value in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        choices = typing.get_args(annotation)
        words = [_in_words(choice, metadata) for choice in choices if choice is not type(None)]
        if not all(words):
            return ""
        return " or ".join(words) + (", or nothing" if type(None) in choices else "")
    if annotation in _NUMBERS:
        noun = "an integer" if annotation is int else "a number"
        return noun + _bounds(list(_flat(metadata)))
    if origin in (tuple, list) and typing.get_args(annotation):
        inner = _in_words(typing.get_args(annotation)[0], [])
        return f"a list, each {inner}" if inner else ""
    if origin in (dict, Mapping) and typing.get_args(annotation):
        inner = _in_words(typing.get_args(annotation)[1], [])
        return f"a mapping of names, each to {inner}" if inner else ""
    if annotation is str and any(isinstance(each, annotated_types.MinLen) or getattr(each, "pattern", None) == NOT_BLANK
                                 for each in _flat(metadata)):
        return "a text that is not empty"
    return {bool: "true, false", str: "a text"}.get(annotation, "")


def _flat(metadata: list[Any]) -> Iterator[Any]:
    for each in metadata:
        if isinstance(each, FieldInfo):
            yield from each.metadata
        elif isinstance(each, annotated_types.GroupedMetadata):
            yield from each
        else:
            yield each


def _bounds(metadata: list[Any]) -> str:
    low = next((f"[{m.ge:g}" if isinstance(m, annotated_types.Ge) else f"({m.gt:g}"
                for m in metadata if isinstance(m, annotated_types.Ge | annotated_types.Gt)), None)
    high = next((f"{m.le:g}]" if isinstance(m, annotated_types.Le) else f"{m.lt:g})"
                 for m in metadata if isinstance(m, annotated_types.Le | annotated_types.Lt)), None)
    if low and high:
        return f" in {low}, {high}"
    if low:
        return f" {'≥' if low[0] == '[' else '>'} {low[1:]}"
    if high:
        return f" {'≤' if high[-1] == ']' else '<'} {high[:-1]}"
    return ""
