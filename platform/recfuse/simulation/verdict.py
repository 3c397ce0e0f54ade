"""What an A/B test says of a learned policy beside a searched vector and hand-tuned weights, in sentences."""

from __future__ import annotations

from recfuse.simulation.world import FEEDBACK
from recfuse.stats.experiment import AbResult

# More of it is worse, and watch time has its own sentence.
_NOT_KEPT = ("watch_time", "hate")


def verdict(result: AbResult, learned: str, searched: str, lives: int) -> list[str]:
    """Two sentences: watch time beside the searched vector, and what is kept of the base's clicks and interactions.

    Args:
        result: whose base is the hand-tuned policy.
        learned, searched: names of arms; lives: that the search simulated.
    """
    base = result.arms[0].name
    watch = _words(result.between(learned, searched, "watch_time"))
    kept = [name for name in FEEDBACK if name in result.measures and name not in _NOT_KEPT]
    below = [name for name in kept if result.effect(learned, name)[0] < 0]
    first = (f"{learned} brings {watch} watch time relative to {searched}, which searched {lives:,} lives inside the "
             f"simulator; {learned} learned from logs alone.")
    if not below:
        return [first, f"Clicks and every interaction are at or above hand-tuned's ({base}): {', '.join(kept)}."]
    named = ", ".join(f"{name} {_words(result.effect(learned, name))}" for name in below)
    return [first, f"Below hand-tuned's ({base}): {named}; the other {len(kept) - len(below)} of {len(kept)} clicks "
                   "and interactions are at or above."]


def _words(effect: tuple[float, float, float]) -> str:
    estimate, low, high = effect
    return f"{estimate:+.1%} [{low:+.1%}, {high:+.1%}]"
