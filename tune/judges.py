"""What a policy is worth on users that it did not learn from: relative change of every behaviour, with intervals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from recfuse.behaviours import Vocabulary
from recfuse.config import require
from recfuse.evaluation.answers import EstimateOptions
from recfuse.evaluation.case import Case
from recfuse.evaluation.estimator import estimate_all
from recfuse.evaluation.estimators import RATIO_OF_RATES
from recfuse.evaluation.held_out import HeldOut, read_held_out
from recfuse.fusion.inference import FusionActor
from recfuse.simulation.arms import Arm
from recfuse.simulation.rollout import live
from recfuse.simulation.world import World
from recfuse.stats.intervals import paired_difference
from recfuse.tune.settings import SplitConfig
from recfuse.tune.split import groups_of


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
    """What a session brings when the policy is followed, by the ratio of rates on held-out samples (maths 4.5),
    relative to the log by draws of both; its lower end is what floors and the frontier ask of a policy.

    Attributes:
        log: of users that did not train.
        vocabulary: of the samples; a policy of another formula has no density of their actions, and no estimate.
        cap: of the weights, None for the largest that is supported; options: of the intervals.
        explore: the policy explores; its mean has no ratio, so that nothing is known of it.
    """

    log: HeldOut
    vocabulary: Vocabulary
    cap: float | None
    options: EstimateOptions
    explore: bool = True

    @classmethod
    def of(cls, samples: Path, vocabulary: Vocabulary, cap: float | None, options: EstimateOptions,
           explore: bool = True) -> OffPolicyJudge:
        """Reads samples."""
        # Trials are ordered by the lower ends also of behaviours that are too sparse for an interval that holds.
        return cls(read_held_out(str(samples), vocabulary).log, vocabulary, cap, options.replace(min_events=0.0),
                   explore)

    def __call__(self, actor: FusionActor) -> Worths:
        own, logged = actor.vocabulary, self.vocabulary
        if (own.formula, own.curves) != (logged.formula, logged.curves):
            return dict.fromkeys(own.behaviour_names, Worth(math.nan, math.nan, math.nan))
        case = Case(actor=actor, log=self.log, samples=None, cap=self.cap, session_discount=1.0, options=self.options,
                    explore=self.explore)
        answer, = estimate_all(case, [RATIO_OF_RATES])
        ends = answer.change, answer.change_low, answer.change_high
        return {name: Worth(*(float(values[index]) for values in ends))
                for index, name in enumerate(actor.vocabulary.behaviour_names)}


@dataclass(frozen=True)
class SimulatorJudge:
    """An A/B test in the simulator (maths 4.2) where every person lives once under each policy, with the same luck.

    Attributes:
        world: of the simulation.
        persons: int64[n]; the lives of users that did not train.
        base: float64[n, F], what they did under the base policy.
        seed: of their luck; level: of the intervals; explore: the policy samples its actions.
    """

    world: World
    persons: NDArray[np.int64]
    base: NDArray[np.float64]
    seed: int
    level: float
    explore: bool = True

    @classmethod
    def of(cls, world: World, base: Arm, group: int, split: SplitConfig, persons: int, seed: int, level: float,
           explore: bool = True) -> SimulatorJudge:
        """Lives the lives of a group's users under the base, which itself says whether it explores.

        Raises:
            InvalidFieldError: the group has none of the world's users.
        """
        members = np.flatnonzero(groups_of(world.user_ids.astype(str), split) == group)
        require(len(members) > 0, "split", split, "shares that give every group some of the simulated users")
        # A user's first life comes first, then everybody's second one.
        lives = members[None, :] + world.users * np.arange(-(-persons // len(members)))[:, None]
        chosen = lives.reshape(-1)[:persons]
        return cls(world, chosen, _feedback(world, base, chosen, seed), seed, level, explore)

    def __call__(self, actor: FusionActor) -> Worths:
        arm = Arm("judged", actor, self.explore, vocabulary=actor.vocabulary)
        feedback = _feedback(self.world, arm, self.persons, self.seed)
        change = paired_difference(feedback, self.base, level=self.level, seed=self.seed)
        ends = change.estimate, change.low, change.high
        return {name: Worth(*(float(values[self.world.feedback.index(name)]) for values in ends))
                for name in actor.vocabulary.behaviour_names}


def _feedback(world: World, arm: Arm, persons: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """float64[n, F]: what every person did over the horizon."""
    feedback: NDArray[np.float64] = live(arm.in_world(world), arm.policy, persons, seed=seed, explore=arm.explore,
                                         rng=np.random.default_rng([seed, 0x11FE])).feedback
    return feedback


def flat(worths: Mapping[str, Worth], prefix: str = "") -> dict[str, float]:
    """Worths as columns: NAME, NAME_low, NAME_high."""
    return {f"{prefix}{name}{suffix}": value for name, worth in worths.items()
            for suffix, value in zip(("", "_low", "_high"), worth, strict=True)}
