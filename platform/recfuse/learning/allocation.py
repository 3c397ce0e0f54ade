"""How the process that learns gets its memory."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# mallopt(3). Larger blocks (windows of samples) still come from the system and go back to it.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_OWN_BLOCK, _KEPT = 64 << 20, 256 << 20


def keep_freed_memory() -> None:
    """Lets glibc keep what a step frees for the next one; nothing with another allocator.

    A layer's activations are megabytes. By default glibc takes blocks above 32 MiB from the system each time, and gives
    smaller ones back to it: every step then touches fresh pages, 11,000 of them with 5 critics of 256-128 and 4,096
    samples and 50,000 with 10, where the blocks are larger, which is why cost grew faster than their number.
    """
    mallopt = _of_glibc("mallopt")
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _OWN_BLOCK)
        mallopt(_M_TRIM_THRESHOLD, _KEPT)


def return_freed_memory() -> None:
    """Gives what has been kept back to the system, also from between blocks in use. A stream of windows would otherwise
    leave ever more such holes: 440 MiB of them after 4M samples, where 250 MiB were in use."""
    trim = _of_glibc("malloc_trim")
    if trim is not None:
        trim(0)


def _of_glibc(name: str) -> Any:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
