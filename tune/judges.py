"""What a policy is worth on users that it did not learn from: relative change of every behaviour, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from recfuse.behaviours import Vocabulary
from recfuse.config import require
from recfuse.evaluation.case import policy_log_prob
from recfuse.evaluation.held_out import HeldOut, read_held_out
from recfuse.evaluation.ope import EstimateOptions, ncis
from recfuse.fusion.inference import FusionActor
from recfuse.fusion.policies import Policy
from recfuse.simulation.rollout import live
from recfuse.simulation.world import FEEDBACK, World
from recfuse.stats.intervals import paired_difference, relative_change
from tune.split import SplitConfig, groups_of


class Worth(NamedTuple):
    """An estimate with its interval; NaN where there is none."""

    estimate: float
    low: float
    high: float


Worths = dict[str, Worth]


class Judge(Protocol):
    """Behaviour → relative change from the logged policy."""

    def __call__(self, actor: FusionActor) -> Worths:
        """The worth of a policy."""
        ...


@dataclass(frozen=True)
class OffPolicyJudge:
    """NCIS on held-out samples (maths 4.1), over the mean in the log; the log's mean is taken as it is.

    Attributes:
        log: of users that did not train; requests whose action was drawn.
        cap, min_ess, level: see `recfuse.evaluation.ope.ncis`.
    """

    log: HeldOut
    cap: float
    min_ess: float
    level: float

    @classmethod
    def of(cls, samples: Path, vocabulary: Vocabulary, cap: float, min_ess: float, level: float) -> OffPolicyJudge:
        """Reads samples."""
        log = read_held_out(str(samples), vocabulary).log
        return cls(log.take(log.drawn), cap, min_ess, level)

    def __call__(self, actor: FusionActor) -> Worths:
        estimate = ncis(policy_log_prob(actor, self.log), self.log.log_prob, self.log.feedback, self.cap,
                        self.log.user_id, EstimateOptions(min_ess=self.min_ess, level=self.level))
        change = [relative_change(values, estimate.logged)
                  for values in (estimate.estimate, estimate.low, estimate.high)]
        return {name: Worth(*(float(values[index]) for values in change))
                for index, name in enumerate(actor.vocabulary.behaviour_names)}


@dataclass(frozen=True)
class SimulatorJudge:
    """An A/B test in the simulator (maths 4.2) where every person lives once under each policy, with the same luck.

    Attributes:
        world: of the simulation.
        persons: int64[n]; the lives of users that did not train.
        base: float64[n, len(FEEDBACK)], what they did under the base policy.
        seed: of their luck; level: of the intervals.
    """

    world: World
    persons: NDArray[np.int64]
    base: NDArray[np.float64]
    seed: int
    level: float

    @classmethod
    def of(cls, world: World, base: Policy, explore: bool, group: int, split: SplitConfig, persons: int, seed: int,
           level: float) -> SimulatorJudge:
        """Lives the lives of a group's users under the base policy.

        Raises:
            InvalidFieldError: the group has none of the world's users.
        """
        members = np.flatnonzero(groups_of(world.user_ids.astype(str), split) == group)
        require(len(members) > 0, "split", split, "shares that give every group some of the simulated users")
        # A user's first life comes first, then everybody's second one.
        lives = members[None, :] + world.users * np.arange(-(-persons // len(members)))[:, None]
        chosen = lives.reshape(-1)[:persons]
        return cls(world, chosen, _feedback(world, base, chosen, seed, explore), seed, level)

    def __call__(self, actor: FusionActor) -> Worths:
        feedback = _feedback(self.world, actor, self.persons, self.seed, explore=False)
        change = paired_difference(feedback, self.base, level=self.level, seed=self.seed)
        ends = change.estimate, change.low, change.high
        return {name: Worth(*(float(values[FEEDBACK.index(name)]) for values in ends))
                for name in actor.vocabulary.behaviour_names}


def _feedback(world: World, policy: Policy, persons: NDArray[np.int64], seed: int,
              explore: bool) -> NDArray[np.float64]:
    """float64[n, len(FEEDBACK)]: what every person did over the horizon."""
    feedback: NDArray[np.float64] = live(world, policy, persons, seed=seed, explore=explore,
                                         rng=np.random.default_rng([seed, 0x11FE])).feedback
    return feedback


def flat(worths: Mapping[str, Worth], prefix: str = "") -> dict[str, float]:
    """Worths as columns: NAME, NAME_low, NAME_high."""
    return {f"{prefix}{name}{suffix}": value for name, worth in worths.items()
            for suffix, value in zip(("", "_low", "_high"), worth, strict=True)}
