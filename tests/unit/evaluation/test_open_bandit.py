"""Real logged bandit data with true propensities: the other policy's click rate, whose truth is in its own log."""

from pathlib import Path

import pytest

from benchmarks.ope import open_bandit

DATA = Path(__file__).parents[4] / "shared" / "data" / "open_bandit"


@pytest.mark.skipif(not DATA.is_dir(), reason="the Open Bandit data is not at ../shared/data/open_bandit")
def test_the_click_rate_of_thompson_sampling_is_found_from_the_uniform_policys_log():
    (truth, low, high), found = open_bandit(DATA)
    assert truth == pytest.approx(.0069)
    names = [one.estimator for one in found]
    assert names == ["IS", "NCIS", "DR", "SN-DR", "DM"]
    for one in found[:4]:
        assert not one.refused
        assert one.low[0] < truth < one.high[0], one.estimator
        assert low < one.estimate[0] < high, "and the estimate in the truth's own interval"
    assert found[0].mean_ratio == pytest.approx(1.0, abs=.05)
    assert found[0].logged[0] == pytest.approx(.0046), "the uniform policy's own rate is another"
