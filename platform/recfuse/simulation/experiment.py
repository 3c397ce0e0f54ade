"""A/B tests in a world (maths 4.2): buckets of simulated persons live under policies, and are compared."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from recfuse.config import require
from recfuse.runtime.console import Progress
from recfuse.simulation.arms import Arm
from recfuse.simulation.persons import assign, persons_of
from recfuse.simulation.rollout import live
from recfuse.simulation.sessions import SessionEngine
from recfuse.simulation.world import World
from recfuse.stats.experiment import AaResult, AbResult, compare, false_findings
from recfuse.stats.intervals import DRAWS, LEVEL
from recfuse.stats.significance import Correction

logger = logging.getLogger("recfuse")
_ASKED = 256  # persons whose first request says how far an arm explores


def ab_test(
    world: World,
    arms: Sequence[Arm],
    *,
    persons: int,
    seed: int = 0,
    shares: Sequence[float] | None = None,
    users: NDArray[np.bool_] | None = None,
    paired: bool = False,
    looks: int = 0,
    primary: str = "",
    correction: Correction = "holm",
    draws: int = DRAWS,
    level: float = LEVEL,
) -> AbResult:
    """Compares policies; the first is the base.

    Args:
        persons: simulated users in all. Person p has the tastes of the world's user p mod U, and a life of its own.
        shares: of the persons, one per arm; equal where None.
        users: bool[U], whose tastes occur; all where None.
        paired: every person lives once under every arm, with the same luck (common random numbers), which no real
            test can do; intervals are then much narrower. Otherwise each person is in one bucket.
        looks, primary, correction, draws, level: see `recfuse.stats.experiment.compare`.

    Raises:
        InvalidFieldError: fewer than two arms, names that repeat, or a bucket with fewer than two persons.
    """
    names = [arm.name for arm in arms]
    require(len(arms) >= 2, "arms", names, "at least two")
    require(len(set(names)) == len(names), "arms", names, "distinct names")
    measures, primary = world.responses.measures, primary or world.responses.primary
    require(primary in measures, "primary", primary, ", ".join(measures))
    require(looks >= 0, "looks", looks, "an integer ≥ 0")
    everyone = _everyone(users, persons)
    bucket = assign(everyone, len(arms), seed, shares)
    counts = {arm.name: _count(world, arm, everyone if paired else everyone[bucket == index], seed)
              for index, arm in enumerate(arms)}
    return compare(counts, measures, primary=primary, looks=looks, paired=paired, correction=correction, draws=draws,
                   level=level, seed=seed)


def _count(world: World, arm: Arm, members: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """float64[n, measures] of the persons in an arm's bucket."""
    require(len(members) >= 2, f"arms[{arm.name}]", len(members), "a bucket of at least 2 persons")
    counts = lives(world, arm, members, seed)
    logger.info("A/B test: %s, %s persons, %.1f requests each", arm.name, f"{len(members):,}",
                counts[:, world.responses.measures.index("requests")].mean())
    return counts


def aa_test(world: World, arm: Arm, *, runs: int, persons: int, seed: int = 0, users: NDArray[np.bool_] | None = None,
            correction: Correction = "holm", draws: int = DRAWS, level: float = LEVEL) -> AaResult:
    """Tests a policy against itself, every time with fresh persons, luck and buckets.

    Args:
        runs: tests; persons: in each, half in either bucket.
    """
    require(runs >= 1, "runs", runs, "an integer ≥ 1")
    measures = world.responses.measures
    false, family = np.zeros(len(measures)), 0
    progress, everyone = Progress("A/A tests", runs, "runs"), _everyone(users, persons)
    for run in range(runs):
        salt = seed + 7_919 * (run + 1)
        counts, bucket = lives(world, arm, everyone, salt), assign(everyone, 2, salt)
        excluded, remains = false_findings(counts[bucket == 1], counts[bucket == 0], correction=correction,
                                           draws=draws, level=level, seed=salt)
        false += excluded
        family += remains
        progress.advance(1)
    progress.finish()
    return AaResult(measures, runs, false / runs, family / runs)


def lives(world: World, arm: Arm, persons: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """float64[n, measures]: what every person did over the horizon."""
    rng = np.random.default_rng([seed, int.from_bytes(hashlib.sha256(arm.name.encode()).digest()[:4])])
    total = live(arm.in_world(world), arm.policy, persons, seed=seed, explore=arm.explore, rng=rng)
    return np.column_stack([total.feedback, total.requests, total.sessions])


def reach(world: World, arm: Arm) -> float:
    """How far exploration turns an arm's rankings: the mean of `|σ| / |μ|` over first requests, 0 of an arm that takes
    its mean."""
    if not arm.explore:
        return 0.0
    some, engine = np.arange(_ASKED), SessionEngine(world, 0)
    decision = arm.policy.act(engine.observe(engine.first(some % world.users, some)), False, np.random.default_rng(0))
    lengths = np.linalg.norm(decision.mu, axis=1)
    return float((np.linalg.norm(decision.sigma, axis=1) / np.maximum(lengths, 1e-9)).mean())


def _everyone(users: NDArray[np.bool_] | None, persons: int) -> NDArray[np.int64]:
    return np.arange(persons) if users is None else persons_of(users, persons)
