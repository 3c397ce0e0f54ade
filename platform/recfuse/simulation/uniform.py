"""Random numbers as a function of what they are for: the seed, the user, the session, the request and the draw.

Batches, their order and their number change nothing, and two policies meet the same luck (common random numbers).
"""

from __future__ import annotations

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)


def mix(*parts: np.ndarray | int) -> np.ndarray:
    """uint64 hash of integers or integer arrays, broadcast together (the finaliser of splitmix64 after each part)."""
    with np.errstate(over="ignore"):
        key = np.asarray(0, np.uint64)
        for part in parts:
            key = (key + np.asarray(part).astype(np.uint64)) * _STEP + _STEP
            key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            key = key ^ (key >> np.uint64(31))
    return key


def uniform(*parts: np.ndarray | int) -> np.ndarray:
    """float64 in [0, 1) from `mix`."""
    result: np.ndarray = (mix(*parts) >> np.uint64(11)).astype(np.float64) * (1.0 / (1 << 53))
    return result
