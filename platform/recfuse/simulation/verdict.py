"""What an A/B test says of a learned policy beside a searched vector and hand-tuned weights, in sentences."""

from __future__ import annotations

from collections.abc import Mapping

from recfuse.simulation.world import FEEDBACK
from recfuse.stats.experiment import AbResult

# More of it is worse, and watch time has its own sentence.
_NOT_KEPT = ("watch_time", "hate")
# Arms that explore equally far up to this factor are compared without further words.
_ALIKE = 1.25


def verdict(result: AbResult, learned: str, searched: str, lives: int, far: Mapping[str, float]) -> list[str]:
    """Sentences: watch time beside the searched vector, what is kept of the base's clicks and interactions, and
    whether exploration alone makes a difference between the two.

    Args:
        result: whose base is the hand-tuned policy.
        learned, searched: names of arms; lives: that the search simulated.
        far: arm → how far exploration turns its rankings.
    """
    base = result.arms[0].name
    watch = _words(result.between(learned, searched, "watch_time"))
    kept = [name for name in FEEDBACK if name in result.measures and name not in _NOT_KEPT]
    below = [name for name in kept if result.effect(learned, name)[0] < 0]
    first = (f"{learned} brings {watch} watch time relative to {searched}, which searched {lives:,} lives inside the "
             f"simulator; {learned} learned from logs alone.")
    if not below:
        second = f"Clicks and every interaction are at or above hand-tuned's ({base}): {', '.join(kept)}."
    else:
        named = ", ".join(f"{name} {_words(result.effect(learned, name))}" for name in below)
        second = (f"Below hand-tuned's ({base}): {named}; the other {len(kept) - len(below)} of {len(kept)} clicks and "
                  "interactions are at or above.")
    return [first, second, *_exploration(far[learned], far[searched], learned, searched)]


def _exploration(own: float, other: float, learned: str, searched: str) -> list[str]:
    """Who explores less has watch time from that alone."""
    if max(own, other) <= _ALIKE * min(own, other):
        return []
    more, less = (searched, learned) if other > own else (learned, searched)
    near = min(own, other)
    far = f"{max(own, other) / near:.1f} times as far as {less}'s" if near else f"and not {less}'s"
    return [f"Exploration turns {more}'s rankings {far}, which alone costs watch time; {learned}:mean against "
            f"{searched}:mean leaves it out."]


def _words(effect: tuple[float, float, float]) -> str:
    estimate, low, high = effect
    return f"{estimate:+.1%} [{low:+.1%}, {high:+.1%}]"
