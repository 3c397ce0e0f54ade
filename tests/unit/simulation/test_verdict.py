"""The closing words of an A/B test."""

import numpy as np
import pytest

from recfuse.behaviours import Behaviour, Vocabulary
from recfuse.simulation.verdict import Comparison
from recfuse.stats.experiment import AbResult, compare

ALIKE = {"mine": .3, "cem": .36}
MEASURES = ("revenue", "click", "order_made", "refund", "requests")
VOCABULARY = Vocabulary(
    behaviours=(Behaviour(name="revenue", kind="long_term"), Behaviour(name="click", kind="short_term"),
                Behaviour(name="order_made", kind="short_term")), fusion_parameters=("a", "b"), state_size=1)


def result(order: float) -> AbResult:
    """Means: revenue 10, 12 and 11, and of `mine` orders as given; cem has lost clicks, and refunds have doubled."""
    spread = np.array([-1.0, 1.0])[:, None]
    means = {"logged": (10, 4, 2, 1, 5), "cem": (12, 3, 2, 1, 5), "mine": (11, 4, order, 2, 5)}
    return compare({name: np.array(mean) * (1 + .1 * np.tile(spread, (50, 1))) for name, mean in means.items()},
                   MEASURES, primary="revenue", draws=50)


def comparison(order: float = 2.0, reach: dict[str, float] = ALIKE) -> Comparison:
    return Comparison(result(order), VOCABULARY, "mine", "cem", 1_000, reach)


def test_the_learned_policy_stands_beside_the_searched_vector():
    """11/12 − 1 = −8.3%; each mean of 100 users has a relative error of about .01, so half the interval is 2.6%."""
    assert comparison().sentences()[0] == "mine brings -8.3% [-10.9, -5.8] revenue relative to cem."


@pytest.mark.parametrize(("order", "words"), [
    (2.0, "gains revenue +10.0%; it pays nothing for sure."),
    (1.5, "gains revenue +10.0%; it pays order made -25.0%."),
    (3.0, "gains revenue +10.0%, order made +50.0%; it pays nothing for sure.")])
def test_what_each_gained_and_paid_is_said_in_behaviours_of_the_vocabulary(order, words):
    _, searched, learned = comparison(order).sentences()
    assert searched == ("cem, which searched 1,000 lives inside the simulator, gains revenue +20.0%; it pays click "
                        "-25.0%.")
    assert learned == f"mine, which learned from session logs alone, {words}"


@pytest.mark.parametrize(("order", "verdict"), [
    (2.0, "no difference seen"), (1.5, "mine pays alone"), (3.0, "mine gains alone")])
def test_every_row_has_a_verdict(order, verdict):
    rows = comparison(order).rows()
    assert [row[0] for row in rows] == ["revenue", "click", "order_made", "requests"]
    assert [row[-1] for row in rows] == ["both gain", "cem pays alone", verdict, "no difference seen"]
    assert rows[0][1] == "10"
    assert rows[0][3].startswith("+20.0% [+1")
    assert len(comparison().columns) == len(rows[0])


@pytest.mark.parametrize(("reach", "words"), [
    ({"mine": .2, "cem": .4}, "Exploration turns cem's rankings 2.0 times as far as mine's, which alone costs"),
    ({"mine": .4, "cem": .2}, "Exploration turns mine's rankings 2.0 times as far as cem's, which alone costs"),
    ({"mine": .4, "cem": 0.0}, "Exploration turns mine's rankings and not cem's, which alone costs")])
def test_who_explores_less_has_more_from_that_alone(reach, words):
    sentence = comparison(reach=reach).sentences()[-1]
    assert sentence.startswith(words)
    assert "mine:mean against cem:mean" in sentence
    assert len(comparison(reach=dict.fromkeys(reach, 0.0)).sentences()) == 3
