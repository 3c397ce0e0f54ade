"""The truth lies in the 95% interval in at least 93% of 200 logs, and 5% of A/A tests find something."""

import pytest

from benchmarks.ope import measured
from recfuse.simulation.ab_test import MEASURES, Arm, aa_test
from tests.unit.simulation import worlds

pytestmark = pytest.mark.bench


def test_intervals_hold_the_truth_as_often_as_they_say():
    covered = measured(worlds.world(), logs=200, persons=1_500, truth_persons=200_000)
    for name, share in covered.items():
        # FQE is as wrong as its linear critics; capped, unnormalised IS has the bias of its cap.
        if not name.startswith(("FQE", "IS,")):
            assert share.mean() >= .93, (name, share)
    assert all(share.mean() >= .90 for name, share in covered.items() if name.startswith("IS,"))


def test_a_policy_against_itself_is_different_in_five_of_a_hundred_tests():
    found = aa_test(worlds.world(), Arm("logged", worlds.LOGGED, explore=True), runs=200, persons=1_000, draws=500)
    assert found.false[MEASURES.index("watch_time")] == pytest.approx(.05, abs=.03)
    assert found.false.mean() == pytest.approx(.05, abs=.03)
    assert found.family <= .05 + .03
