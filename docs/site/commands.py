"""A page for every job of `recfuse`: what it does, its options, and its YAML; and the settings of every algorithm."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

import yaml
from pydantic_core import PydanticUndefined, to_jsonable_python

from docs.site.text import code, docstring, table
from recfuse import cli
from recfuse.config import Config, InvalidFieldError, reference
from recfuse.config.base import allowed
from recfuse.learning import registry


class _AskedError(Exception):
    """Carries the config class that a job asks the command line for."""


def config_of(module: Any) -> type[Config]:
    """The class of a job's config: what its `command` hands to `start`."""
    def asked(config: type[Config], *_: Any, **__: Any) -> Any:
        raise _AskedError(config)

    with patch.object(module, "start", asked):
        try:
            module.command()
        except _AskedError as error:
            return error.args[0]
    raise LookupError(f"{module.__name__} asks for no config")


def listing() -> str:
    """All jobs, in the order in which a user needs them."""
    parts = ["# Commands", f"{cli.__doc__}", code(cli.usage(), "text")]
    for title, group in cli.GROUPS.items():
        parts += [f"## {title}", table(["command", "what it does"], [
            (f"[`recfuse {each.name}`](commands/{each.name}.md)", each.words) for each in group])]
    return "\n\n".join(parts)


def pages() -> dict[str, str]:
    """Name of a command → its page."""
    return {command.name: _page(command) for command in cli.COMMANDS.values()}


def _page(command: cli.Command) -> str:
    module = importlib.import_module(f"recfuse.{command.module}")
    config = _defaults(config_of(module))
    parts = [f"# recfuse {command.name}", inspect.getdoc(module) or "",
             "Options may come from a file, `--config FILE`; those of the command line go before it.",
             "## Options", table(["option", "default", "what it says", "allowed"], options(config))]
    if config.former:
        parts.append("Former names that are still understood: " + ", ".join(
            f"`{old}` for `{new}`" for old, new in config.former.items()) + ".")
    return "\n\n".join([*parts, "## As a file", f"`recfuse config {command.name}` prints this.",
                        code(reference(config), "yaml")])


def _defaults(config: type[Config]) -> type[Config] | Config:
    """The config with every default; its class where it asks for something."""
    try:
        return config()
    except InvalidFieldError:
        return config


def options(config: type[Config] | Config, prefix: str = "--") -> Iterator[tuple[str, str, str, str]]:
    """Option, default, sentence and bounds of every field, through the configs within configs."""
    for name, info in (config if isinstance(config, type) else type(config)).model_fields.items():
        value = getattr(config, name) if isinstance(config, Config) else (
            PydanticUndefined if info.is_required() else info.get_default(call_default_factory=True))
        option = prefix + name.replace("_", "-")
        if isinstance(value, Config):
            yield from options(value, f"{option}.")
        else:
            yield f"`{option}`", _shown(value), info.description or "", allowed(info)


def _shown(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    text = yaml.safe_dump(to_jsonable_python(value), default_flow_style=True, width=1 << 16, allow_unicode=True)
    return f"`{text.removesuffix(chr(10)).removesuffix('...').strip()}`"


def algorithms() -> str:
    """The settings of every algorithm, below `learning` of `recfuse train`."""
    parts = ["# Settings of algorithms", "What `recfuse train --algorithm NAME` takes as `--learning.…`. "
             "[Algorithms](../algorithms.md) says when to take which."]
    for name in registry.names():
        settings = registry.find(name)
        parts += [f"## {name}", docstring(settings), code(reference(settings), "yaml")]
    return "\n\n".join(parts)
