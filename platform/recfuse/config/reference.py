"""A config's reference, from its fields alone: YAML with every default, sentence and bound; and its JSON schema."""

from __future__ import annotations

from typing import Any

import yaml
from pydantic_core import PydanticUndefined

from recfuse.config.base import Config, allowed


def reference(config: type[Config] | Config) -> str:
    """YAML that `--config` reads: every field, or of a class its default, below its sentence and bounds."""
    return "\n".join(_lines(config, 0)) + "\n"


def schema(config: type[Config]) -> dict[str, Any]:
    """The JSON schema of a config, for editors and other programs."""
    return config.model_json_schema()


def _lines(config: type[Config] | Config, depth: int) -> list[str]:
    indent = "  " * depth
    lines: list[str] = []
    for name, info in (config if isinstance(config, type) else type(config)).model_fields.items():
        if isinstance(config, type):
            value = info.get_default(call_default_factory=True) if not info.is_required() else PydanticUndefined
        else:
            value = getattr(config, name)
        bounds = allowed(info)
        sentence = (info.description or "").strip()
        lines += [f"{indent}# {line}" for line in [f"{sentence} ({bounds})" if bounds else sentence] if line.strip()]
        if value is PydanticUndefined:
            lines.append(f"{indent}# {name}: (required)")
        elif isinstance(value, Config):
            lines += [f"{indent}{name}:", *_lines(value, depth + 1)]
        else:
            plain = config.to_dict()[name] if isinstance(config, Config) else _plain(value)
            text = yaml.safe_dump(plain, default_flow_style=True, allow_unicode=True, width=1 << 16)
            lines.append(f"{indent}{name}: {text.removesuffix(chr(10)).removesuffix('...').strip()}")
    return lines


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return value
