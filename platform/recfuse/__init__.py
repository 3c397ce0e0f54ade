"""Recfuse: learns, per request, the weights that fuse several predictions into one ranking.

In: session logs. Out: bundles that Ray Serve loads (`fusion`, `scenes`), and the evidence for and against them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recfuse.behaviours import Vocabulary
    from recfuse.interface import Log, evaluate, load_policy, train

__version__ = "0.1.0"
__all__ = ["Log", "Vocabulary", "evaluate", "load_policy", "train"]


def __getattr__(name: str) -> Any:
    """What is asked for is imported then: the package itself costs nothing (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("recfuse.interface"), name)
