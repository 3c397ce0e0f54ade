"""Algorithms by name: those of `recfuse.learning.algorithms`, and any that registers itself.

    @register
    class MyConfig(LearningSettings):
        algorithm: AlgorithmName = named("mine")
        ...

An algorithm of a file of one's own is also found by its import path, `package.module:MyConfig`.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any, TypeVar

from recfuse.config import Config, InvalidFieldError, require

S = TypeVar("S", bound=Config)
DEFAULT = "two_stage"
_BUILT_IN = "recfuse.learning.algorithms"
_registered: dict[str, type[Any]] = {}


def register(settings: type[S]) -> type[S]:
    """Makes an algorithm known under the default of its field `algorithm`; a decorator of its config class.

    Raises:
        InvalidFieldError: another class has the name.
    """
    name = str(settings.model_fields["algorithm"].default)
    other = _registered.get(name, settings)
    # A module that is imported anew brings the same class anew.
    require((other.__module__, other.__qualname__) == (settings.__module__, settings.__qualname__), "algorithm", name,
            f"a name that {other.__module__}:{other.__qualname__} does not have")
    _registered[name] = settings
    return settings


def names() -> tuple[str, ...]:
    """All that are registered, in alphabetical order."""
    importlib.import_module(_BUILT_IN)
    return tuple(sorted(_registered))


def find(name: Any) -> type[Any]:
    """The config class of an algorithm.

    Args:
        name: as it was registered, or `package.module:Name`.

    Raises:
        InvalidFieldError: there is none.
    """
    known = names()
    if name in known:
        return _registered[name]
    return _imported(name, f"{', '.join(known)}, or package.module:Name of a subclass of LearningSettings")


def settings(algorithm: str = DEFAULT, **values: Any) -> Any:
    """The config of an algorithm with these values.

    Raises:
        InvalidFieldError: no such algorithm, or a value that it refuses.
    """
    return find(algorithm)(algorithm=algorithm, **values)


def adapted(source: Config, name: str) -> Any:
    """The config of another algorithm: what both have, and the given one has not at its default, is taken over.

    Raises:
        InvalidFieldError: no such algorithm, or it refuses a value.
    """
    target = find(name)
    changed = {field: value for field, value in source if field in target.model_fields and field != "algorithm"
               and value != type(source).model_fields[field].get_default(call_default_factory=True)}
    return target(algorithm=name, **changed)


def of_mapping(mapping: Mapping[str, Any]) -> type[Any]:
    """The config class that plain values are of.

    Raises:
        InvalidFieldError: no such algorithm.
    """
    return find(mapping.get("algorithm", DEFAULT))


def _imported(name: Any, allowed: str) -> type[Any]:
    module, separator, attribute = str(name).partition(":")
    require(bool(separator and module), "algorithm", name, allowed)
    # A script's own folder takes the place of the current one, in which its user's files are.
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        settings = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise InvalidFieldError("algorithm", name, f"{allowed} ({error})") from None
    # The base class of all gives no phases, and is no algorithm.
    is_config = isinstance(settings, type) and issubclass(settings, Config) and "algorithm" in settings.model_fields
    require(is_config and bool(settings.model_fields["algorithm"].default), "algorithm", name, allowed)
    chosen: type[Any] = settings
    return chosen
