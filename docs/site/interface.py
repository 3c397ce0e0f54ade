"""What Python code may say: the five names, and the functions for other programs (design 3.6)."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from docs.site.text import code, docstring
from recfuse import interface

NAMES = ("Log", "load_policy", "RankingPolicy", "Ranked", "train", "evaluate", "Vocabulary")
FUNCTIONS = {
    "recfuse.fusion.losses": ("critic_loss", "advantage", "auxiliary_policy_loss", "constrained_policy_loss"),
    "recfuse.fusion.ranking": ("fuse", "rank"),
    "recfuse.scenes.weights": ("task_weights",),
    "recfuse.scenes.loss": ("multi_scene_loss", "calibrated"),
    "recfuse.evaluation.ope": ("ncis", "importance_sampling", "doubly_robust", "direct_method"),
}


def page() -> str:
    """Signatures and docstrings."""
    parts = ["# Python API", "[From Python](../python.md) has examples.", "## Names of the package"]
    for name in NAMES:
        parts += _described(getattr(interface, name), f"### {name}")
    parts.append("## Functions for other programs")
    for module, names in FUNCTIONS.items():
        parts.append(f"### {module}")
        for name in names:
            parts += _described(getattr(importlib.import_module(module), name), f"#### {name}")
    return "\n\n".join(parts)


def _described(thing: Any, heading: str) -> list[str]:
    name = thing.__name__
    parts = [heading, code(f"{name}{inspect.signature(thing)}", "python"), docstring(thing)]
    if inspect.isclass(thing):
        for method, function in inspect.getmembers(thing, inspect.isfunction):
            if not method.startswith("_") and method in vars(thing):
                parts += [f"{heading.split()[0]}# {name}.{method}",
                          code(f"{method}{inspect.signature(function)}", "python"), docstring(function)]
    return parts
