"""Who takes part: simulated persons, whose tastes they have, and the groups that they fall into by a hash."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recfuse.config import require
from recfuse.simulation.uniform import mix, uniform
from recfuse.simulation.world import World


def persons_of(users: np.ndarray, count: int) -> np.ndarray:
    """The first `count` persons with the tastes of the users in the mask bool[U], int64[count]; see `rollout`."""
    chosen = np.flatnonzero(users)
    require(len(chosen) > 0, "users", 0, "a mask with at least one user")
    number = np.arange(count)
    persons: np.ndarray = chosen[number % len(chosen)] + len(users) * (number // len(chosen))
    return persons


def held_out(world: World, share: float) -> np.ndarray:
    """bool[U]: the users who are held out of the logs, by a hash of their ids: the same in every run and world."""
    return uniform(mix(0x4E1D0, world.user_ids)) < share


def assign(persons: NDArray[np.int64], arms: int, salt: int,
           shares: Sequence[float] | None = None) -> NDArray[np.int64]:
    """The bucket of every person, int64[n]: a hash of the person and the test's salt, in proportion to the shares."""
    shares = [1 / arms] * arms if shares is None else shares
    require(len(shares) == arms and min(shares) > 0, "shares", shares, f"{arms} numbers > 0")
    edges = np.cumsum(np.asarray(shares, np.float64) / sum(shares))[:-1]
    return np.searchsorted(edges, uniform(mix(salt, 0xAB7E57), persons), side="right").astype(np.int64)
