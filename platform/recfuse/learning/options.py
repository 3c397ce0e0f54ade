"""Which options a command line has: those of the algorithm that it, or its file, names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from recfuse.config import InvalidFieldError, from_mapping
from recfuse.learning.settings import LearningSettings

T = TypeVar("T")
_LEARNING = "--learning."
_ALGORITHM = ("--algorithm", f"{_LEARNING}algorithm")


def choose_algorithm(config_class: type[T], file: Mapping[str, Any], arguments: Sequence[str], source: str) -> T:
    """The config whose fields the command line may override; `recfuse.runtime.console.start` takes it as `choose`.

    Args:
        config_class: has a field `learning`.
        file: plain values of the config file; empty where there is none. The command line's algorithm goes before the
            file's.
        arguments: of the command line, without the config file.
        source: name of the file.

    Raises:
        InvalidFieldError: no such algorithm, a bad value, or an option that the algorithm does not have.
    """
    name = _last_value(arguments, _ALGORITHM)
    if name is not None:
        file = {**file, "learning": {**(file.get("learning") or {}), "algorithm": name}}
    config = from_mapping(config_class, file, source)
    _refuse_foreign(config.learning, arguments)  # type: ignore[attr-defined]
    return config


def _refuse_foreign(settings: LearningSettings, arguments: Sequence[str]) -> None:
    names = type(settings).model_fields
    for option, value in _pairs(arguments):
        field = option.removeprefix(_LEARNING).partition(".")[0].replace("-", "_")
        if option.startswith(_LEARNING) and field not in names:
            raise InvalidFieldError(f"learning.{field}", value,
                                    f"for the algorithm {settings.algorithm}, one of {', '.join(sorted(names))}")


def _last_value(arguments: Sequence[str], options: Sequence[str]) -> str | None:
    values = [value for option, value in _pairs(arguments) if option in options]
    return values[-1] if values else None


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    """Options with what follows them, whether after a space or after an equals sign."""
    pairs = []
    for position, argument in enumerate(arguments):
        if argument.startswith("--"):
            option, equals, value = argument.partition("=")
            following = arguments[position + 1] if position + 1 < len(arguments) else ""
            pairs.append((option, value if equals else following))
    return pairs
