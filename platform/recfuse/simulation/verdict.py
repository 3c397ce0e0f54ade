"""What an A/B test says of a learned policy beside a searched vector and hand-tuned weights: a table and sentences.

Every number is of a difference per user, every word says on which side of 0 its whole interval lies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from recfuse.behaviours import Vocabulary
from recfuse.logs.schema import VOCABULARY_FILE
from recfuse.simulation.ab_test import AbTestResult
from recfuse.stats.experiment import AbResult

# Arms that explore equally far up to this factor are compared without further words.
_ALIKE = 1.25
Side = Literal["gains", "pays", ""]


@dataclass(frozen=True)
class Comparison:
    """Attributes:
        result: whose base is the hand-tuned policy.
        vocabulary: names the behaviours that count; a world may count others.
        learned, searched: names of arms; lives: that the search simulated.
        reach: arm → how far exploration turns its rankings.
    """

    result: AbResult
    vocabulary: Vocabulary
    learned: str
    searched: str
    lives: int
    reach: Mapping[str, float]

    @classmethod
    def of(cls, tested: AbTestResult, samples: str, learned: str, searched: str, lives: int) -> Self:
        """Of the job `ab_test`, with the vocabulary of these samples."""
        vocabulary = Vocabulary.load(Path(samples) / VOCABULARY_FILE)
        return cls(tested.result, vocabulary, learned, searched, lives, tested.reach)

    @property
    def behaviours(self) -> list[str]:
        """Those of the vocabulary that the test measured."""
        return [name for name in self.vocabulary.behaviour_names if name in self.result.measures]

    @property
    def columns(self) -> list[str]:
        """Heads of the table."""
        return ["behaviour", f"{self.result.arms[0].name} (mean)", self.learned, self.searched, "verdict"]

    def rows(self) -> list[list[str]]:
        """A line per behaviour, then requests and sessions: the hand-tuned policy's mean, the relative differences of
        the learned policy and of the searched vector to it, and a verdict in words."""
        base, measures = self.result.arms[0], self.result.measures
        return [[name, f"{base.mean[measures.index(name)]:,.4g}", *(to_span(self.result.effect(arm, name))
                                                                    for arm in (self.learned, self.searched)),
                 self.verdict(name)]
                for name in [*self.behaviours, *(name for name in ("requests", "sessions") if name in measures)]]

    def verdict(self, measure: str) -> str:
        """Who gains and who pays, in a few words."""
        own, other = (_side(self.result.effect(arm, measure)) for arm in (self.learned, self.searched))
        if own == other:
            return {"gains": "both gain", "pays": "both pay", "": "no difference seen"}[own]
        said = [f"{arm} {side}" for arm, side in ((self.learned, own), (self.searched, other)) if side]
        return ", ".join(said) + (" alone" if len(said) == 1 else "")

    def sentences(self) -> list[str]:
        """The learned policy beside the searched vector, what either gained and paid, and whether exploration alone
        makes a difference between them."""
        long_term = [behaviour.name for behaviour in self.vocabulary.long_term if behaviour.name in self.behaviours]
        beside = ", ".join(f"{to_span(self.result.between(self.learned, self.searched, name))} {_words(name)}"
                           for name in long_term)
        return [*([f"{self.learned} brings {beside} relative to {self.searched}."] if beside else []),
                f"{self.searched}, which searched {self.lives:,} lives inside the simulator, "
                f"{self._account(self.searched)}.",
                f"{self.learned}, which learned from session logs alone, {self._account(self.learned)}.",
                *self._exploration()]

    def _account(self, arm: str) -> str:
        """What an arm gained and what it paid, against the hand-tuned policy."""
        sides: dict[Side, list[str]] = {"gains": [], "pays": []}
        for name in self.behaviours:
            effect = self.result.effect(arm, name)
            if side := _side(effect):
                sides[side].append(f"{_words(name)} {effect[0]:+.1%}")
        gained, paid = (", ".join(sides[side]) or "nothing for sure" for side in ("gains", "pays"))
        return f"gains {gained}; it pays {paid}"

    def _exploration(self) -> list[str]:
        """Who explores less has more from that alone."""
        own, other = self.reach[self.learned], self.reach[self.searched]
        if max(own, other) <= _ALIKE * min(own, other):
            return []
        more, less = (self.searched, self.learned) if other > own else (self.learned, self.searched)
        near = min(own, other)
        far = f"{max(own, other) / near:.1f} times as far as {less}'s" if near else f"and not {less}'s"
        return [f"Exploration turns {more}'s rankings {far}, which alone costs; {self.learned}:mean against "
                f"{self.searched}:mean leaves it out."]


def _side(effect: tuple[float, float, float]) -> Side:
    _, low, high = effect
    return "gains" if low > 0 else "pays" if high < 0 else ""


def to_span(effect: tuple[float, float, float]) -> str:
    """(estimate, low, high) of a relative difference, as text."""
    estimate, low, high = effect
    return f"{estimate:+.1%} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _words(name: str) -> str:
    return name.replace("_", " ")
