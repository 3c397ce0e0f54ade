"""The closing words of an A/B test."""

import numpy as np
import pytest

from recfuse.simulation.verdict import verdict
from recfuse.stats.experiment import AbResult, compare

ALIKE = {"mine": .3, "cem": .36}
MEASURES = ("watch_time", "click", "like", "hate")


def result(like: float) -> AbResult:
    """Means: watch time 10, 12 and 11, and of `mine` likes as given; hate has doubled."""
    spread = np.array([-1.0, 1.0])[:, None]
    means = {"logged": (10, 4, 2, 1), "cem": (12, 4, 2, 1), "mine": (11, 4, like, 2)}
    return compare({name: np.array(mean) * (1 + .1 * np.tile(spread, (50, 1))) for name, mean in means.items()},
                   MEASURES, primary="watch_time", draws=50)


def test_watch_time_stands_beside_the_searched_vector():
    """11/12 − 1 = −8.3%; each mean of 100 users has a relative error of about .01, so half the interval is 2.6%."""
    sentence, _ = verdict(result(2.0), "mine", "cem", 1_000, ALIKE)
    assert sentence == ("mine brings -8.3% [-10.9%, -5.8%] watch time relative to cem, which searched 1,000 lives "
                        "inside the simulator; mine learned from logs alone.")


@pytest.mark.parametrize(("like", "words"), [
    (2.0, "Clicks and every interaction are at or above hand-tuned's (logged): click, like."),
    (1.5, "Below hand-tuned's (logged): like -25.0% [-2")])
def test_what_is_below_hand_tuned_is_named_with_its_interval(like, words):
    sentence = verdict(result(like), "mine", "cem", 1_000, ALIKE)[1]
    assert sentence.startswith(words)
    assert "hate" not in sentence
    assert ("; the other 1 of 2 clicks and interactions are at or above." in sentence) == (like < 2)


@pytest.mark.parametrize(("far", "words"), [
    ({"mine": .2, "cem": .4}, "Exploration turns cem's rankings 2.0 times as far as mine's, which alone costs"),
    ({"mine": .4, "cem": .2}, "Exploration turns mine's rankings 2.0 times as far as cem's, which alone costs"),
    ({"mine": .4, "cem": 0.0}, "Exploration turns mine's rankings and not cem's, which alone costs")])
def test_who_explores_less_has_watch_time_from_that_alone(far, words):
    sentence = verdict(result(2.0), "mine", "cem", 1_000, far)[2]
    assert sentence.startswith(words)
    assert "mine:mean against cem:mean" in sentence
    assert len(verdict(result(2.0), "mine", "cem", 1_000, dict.fromkeys(far, 0.0))) == 2
