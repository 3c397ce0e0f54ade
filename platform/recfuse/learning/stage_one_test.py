"""Stage one before an A/B test: what stage two will be held to is judged, and judged again under other multipliers λ
where a behaviour falls below its floor.

Stage one itself does not depend on λ (maths 1.4). What is judged is the geometric mean of its policies, weighted by
λ_j / Λ: where stage two ends if the long term says nothing (maths 1.5). Rounds that were judged are kept beside the
checkpoint, so that none is judged twice.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recfuse.behaviours import Vocabulary
from recfuse.config import InputError, require
from recfuse.fusion.geometric_mean import GeometricMean
from recfuse.fusion.inference import export_policy
from recfuse.fusion.networks import GaussianPolicies
from recfuse.learning.algorithm import FusionAlgorithm
from recfuse.learning.algorithms.two_stage import TwoStageConfig
from recfuse.learning.config import StageOneTest
from recfuse.learning.phases import names_of
from recfuse.learning.resume import write_atomically
from recfuse.learning.settings import LearningSettings, require_short_term

logger = logging.getLogger("recfuse")
ROUNDS, BUNDLES = "stage_one_test.json", "stage_one"
STAGE_ONE, NAME = "stage_one", "stage_one_test"


class StageOneError(InputError):
    """Stage one is not judged yet, or does not keep its floors: stage two does not begin."""


@dataclass(frozen=True)
class Judgement:
    """What a test says of a policy.

    Attributes:
        changes: behaviour → (estimate, low, high) of its relative change against the base.
        below: behaviours below their floors. decided: whether the test has said so; else it goes on.
        words: of the outcome.
    """

    changes: Mapping[str, tuple[float, float, float]]
    below: tuple[str, ...]
    decided: bool
    words: str


# From a bundle and the floors of behaviours to a judgement.
Judge = Callable[[Path, Mapping[str, float]], Judgement]


@dataclass(frozen=True)
class Round:
    """One test: under which multipliers, of which bundle, and what it said; fields as those of `Judgement`."""

    multipliers: Mapping[str, float]
    bundle: str
    changes: Mapping[str, tuple[float, float, float]]
    below: tuple[str, ...]
    words: str


def check_test(test: StageOneTest, settings: LearningSettings, vocabulary: Vocabulary) -> dict[str, float]:
    """The floors of the test: of the behaviours that it names, or 0 of every short-term one.

    Args:
        settings: resolved for the samples.

    Raises:
        InvalidFieldError: stage two of the algorithm is not held to stage one by multipliers λ, or a floor is of no
            short-term behaviour.
    """
    name = "stage_one_test.judge"
    require(isinstance(settings, TwoStageConfig), name, test.judge, "none, but for the algorithm two_stage")
    assert isinstance(settings, TwoStageConfig)
    require(not settings.reads_replay or settings.extraction == "closed_form", name, test.judge,
            "none on replay under floors, which finds λ by itself; or advantage regressed, sampled, or extraction "
            "closed_form")
    require_short_term("stage_one_test.floors", test.floors, vocabulary)
    return dict(test.floors) or {behaviour.name: 0.0 for behaviour in vocabulary.short_term}


def phase_after(algorithm: FusionAlgorithm) -> str:
    """The name of the phase that follows stage one."""
    names = names_of(algorithm.settings.phases)
    return names[names.index(STAGE_ONE) + 1]


class StageOneGate:
    """The rounds of a training run.

    Args:
        test, judge: how it is judged, and by whom.
        checkpoint: of the run, beside which the rounds are kept.
        output: gets the bundles that are judged, in a directory of their own.
    """

    def __init__(self, test: StageOneTest, judge: Judge, checkpoint: Path, output: Path) -> None:
        self._test, self._judge, self._file = test, judge, checkpoint / ROUNDS
        self._bundles = output / BUNDLES
        self.rounds: list[Round] = []

    def pass_(self, algorithm: FusionAlgorithm) -> dict[str, float]:
        """Judges stage one, which is fitted, until its floors are kept; returns the multipliers λ of the last round.

        Raises:
            StageOneError: a test is still going on, or the last round is below a floor.
        """
        floors = check_test(self._test, algorithm.settings, algorithm.samples.vocabulary)
        given = _multipliers(algorithm)
        fitted = _fitted(algorithm)
        self.rounds = self._read(fitted)
        while not self.rounds or self.rounds[-1].below:
            policies = algorithm.auxiliaries()
            multipliers = self._next(given, len(policies.names))
            bundle = self._export(algorithm, policies, multipliers)
            said = self._judge(bundle, floors)
            if not said.decided:
                raise StageOneError(f"{NAME}: {bundle} is not judged yet: {said.words}; stage two begins in a later "
                                    "call of this training")
            self.rounds.append(Round(multipliers, bundle.name, said.changes, said.below, said.words))
            write_atomically(self._file, json.dumps(
                {"fitted": fitted, "rounds": [asdict(each) for each in self.rounds]}, indent=1))
            logger.info("train_fusion %s: round %d, λ %s: %s", NAME, len(self.rounds), _words(multipliers), said.words)
        return dict(self.rounds[-1].multipliers)

    def summary(self) -> dict[str, Any]:
        """The rounds as metrics of a phase, whose loss is the largest fall of a behaviour in the last of them."""
        last = self.rounds[-1]
        return {"loss": max((-change[0] for change in last.changes.values()), default=math.nan),
                "iterations": len(self.rounds), "stopped": last.words, "rounds": [asdict(each) for each in self.rounds]}

    def _next(self, given: Mapping[str, float], policies: int) -> dict[str, float]:
        """The multipliers of the next round.

        Args:
            policies: of stage one; the mean of one is that one.

        Raises:
            StageOneError: there is none, or it would judge the same policy again.
        """
        if not self.rounds:
            return dict(given)
        last = self.rounds[-1]
        raised = {name: value * (self._test.factor if name in last.below else 1.0)
                  for name, value in last.multipliers.items()}
        alike = policies == 1 or {*last.below} >= {*raised}
        if len(self.rounds) < self._test.rounds and not alike:
            return raised
        why = "whatever λ are: all of them would rise alike" if alike else f"after {len(self.rounds)} rounds"
        raise StageOneError(f"{NAME}: {', '.join(last.below)} below the floor {why}, with λ "
                            f"{_words(last.multipliers)} ({last.words}); stage two does not begin")

    def _export(self, algorithm: FusionAlgorithm, policies: GaussianPolicies, multipliers: Mapping[str, float]) -> Path:
        shares = _shares(multipliers) if len(policies.names) > 1 else (1.0,)
        return export_policy(self._bundles, GeometricMean(policies, shares), algorithm.samples.vocabulary,
                             training={**algorithm.settings.to_dict(), "multipliers": dict(multipliers)},
                             data_fingerprint=algorithm.samples.fingerprint, metrics={"of": STAGE_ONE})

    def _read(self, fitted: Mapping[str, int]) -> list[Round]:
        """Rounds of the same stage one."""
        try:
            known = json.loads(self._file.read_text())
            if known["fitted"] != fitted:
                return []
            return [Round(**{**each, "below": tuple(each["below"])}) for each in known["rounds"]]
        except (OSError, ValueError, KeyError, TypeError):
            return []


def _fitted(algorithm: FusionAlgorithm) -> dict[str, int]:
    """Passes of every phase up to stage one; where they change, stage one is another."""
    names = names_of(algorithm.settings.phases)
    return {name: len(algorithm.progress.losses_of(name)) for name in names[: names.index(STAGE_ONE) + 1]}


def _multipliers(algorithm: FusionAlgorithm) -> dict[str, float]:
    """λ of every short-term behaviour, as the run was given them."""
    vocabulary = algorithm.settings.apply_to(algorithm.samples.vocabulary)
    return {behaviour.name: behaviour.multiplier for behaviour in vocabulary.short_term}


def _shares(multipliers: Mapping[str, float]) -> tuple[float, ...]:
    total = sum(multipliers.values())
    return tuple(value / total for value in multipliers.values())


def _words(multipliers: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in multipliers.items())


def identity_of_test(test: StageOneTest) -> dict[str, Any]:
    """What the result of a training depends on beside its settings; more rounds than before go on."""
    plain = {name: value for name, value in test.to_dict().items() if name != "rounds"}
    return {} if test.judge == "none" else {NAME: plain}
