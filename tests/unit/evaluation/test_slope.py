"""Windows of ratios: their weights by hand, which one is taken, and what a log without support says."""

import numpy as np
import pytest

from recfuse.evaluation.answers import EstimateOptions, OffPolicyEstimate
from recfuse.evaluation.estimator import estimate_all
from recfuse.evaluation.estimators import ESTIMATORS, OF_FOLLOWED, RATIO_OF_RATES
from recfuse.evaluation.ope import ratio_part
from recfuse.evaluation.slope import CAPS, choose_cap, choose_window, reached, slope, window_logs
from recfuse.evaluation.support import Ratios
from recfuse.fusion.policies import FixedGaussian
from tests.unit.evaluation import depletion

FEW = EstimateOptions(min_ess=1, draws=20)


def test_weights_of_windows_by_hand():
    """A session of ratios 2, 3, 5, with rows of another one (7) between: the last one, two and three ratios."""
    session, step = np.array([0, 1, 0, 0]), np.array([0, 0, 1, 2])
    logs = list(window_logs(np.log([2.0, 7.0, 3.0, 5.0]), session, step))
    np.testing.assert_allclose(np.exp(logs), [[2, 7, 3, 5], [2, 7, 6, 15], [2, 7, 6, 30]])


def test_estimates_by_hand():
    """Feedback 1, 2, 4 of one session with ratios 1/2, 1, 3, and of another with 1 and 10; the last two ratios.

    w = ½, ½, 3 and 1: a request brings (½ + 1 + 12 + 10) / 5. Sessions end at the third request and the other one: a
    session brings 23.5 / (3 + 1).
    """
    step = np.array([0, 1, 2, 0])
    log = list(window_logs(np.log([.5, 1.0, 3.0, 1.0]), np.array([0, 0, 0, 1]), step, 2))[1]
    values, users = np.array([[1.0], [2.0], [4.0], [10.0]]), np.array([0, 0, 0, 1])
    for last, expected in ((np.ones(4), 23.5 / 5), (np.array([0.0, 0.0, 1.0, 1.0]), 23.5 / 4)):
        part = ratio_part(Ratios(log, np.inf), values, last, users, FEW, window=2)
        assert part.statistic(part.sums.sum(0)[None])[0, 0] == pytest.approx(expected)
        assert part.evidence.logged[0] == pytest.approx(17 / last.sum())


def interval(middle, half):
    ends = np.array([middle]), np.array([middle - half]), np.array([middle + half])
    return OffPolicyEstimate(*ends, logged=np.ones(1), effective_sample_size=np.full(1, 1e3), requests=9, users=9,
                             capped_share=0.0, change=ends[0], change_low=ends[1], change_high=ends[2])


@pytest.mark.parametrize(("candidates", "chosen"), [
    # Windows 1, 2, 3: all agree with the last one, so that the narrowest is taken.
    ([(.10, .06), (.10, .10), (.10, .20)], 0),
    # The first one is off by more than a sixth of its half: the second is taken.
    ([(.15, .06), (.11, .10), (.10, .20)], 1),
    # The intervals of the first two meet the last one's, and still they are off.
    ([(.15, .06), (.14, .10), (.10, .20)], 2),
    # The second one is off, and ends the search, although the first agrees with the last one.
    ([(.10, .06), (.14, .10), (.10, .20)], 2),
    # The second one is wider than what has less bias: nobody asks it.
    ([(.10, .06), (.50, .30), (.10, .20)], 0),
])
def test_the_narrowest_that_those_of_less_bias_do_not_contradict(candidates, chosen):
    assert slope([interval(*each) for each in candidates]) == chosen


def test_only_caps_that_cut_something_compete():
    assert reached(CAPS, np.log([1.0, 30.0])) == [5.0, 10.0, 20.0, np.inf]
    assert reached((10.0,), np.log([1.0, 2.0])) == [10.0]


def test_the_lowest_cap_with_support_is_taken_and_of_what_is_not_normalised_the_largest():
    """Of 2,000 ratios one is 5,000 and ruins the effective sample size; a cap of 5 leaves nearly all of the rest."""
    rng = np.random.default_rng(0)
    ratio = np.append(rng.uniform(.8, 1.2, 1_999), 5e3)
    values, users = rng.random((2_000, 1)) + 1, np.arange(2_000)

    def part(ratios):
        return ratio_part(ratios, values, np.ones(2_000), users, EstimateOptions(draws=50))

    found = choose_cap(part, np.log(ratio), CAPS, EstimateOptions(draws=50))
    assert (found.cap, found.refused) == (5.0, "")
    assert found.capped_share == pytest.approx(1 / 2_000)

    def plain(ratios):
        return ratio_part(ratios, values, np.ones(2_000), users, EstimateOptions(draws=50), normalise=False)

    assert choose_cap(plain, np.log(ratio), CAPS, EstimateOptions(draws=50)).cap == 20.0
    refused = choose_cap(part, np.log(ratio), (np.inf,), EstimateOptions(draws=50))
    assert "effective sample size" in refused.refused


def test_one_ratio_alone_says_nothing_of_the_states_that_follow():
    """Ratios of 5 for one request in six, and of .2 else: of two in a row too much is missing."""
    session, step = np.repeat(np.arange(200), 2), np.tile(np.arange(2), 200)
    log = np.log(np.where(np.random.default_rng(0).permuted(np.arange(400) % 6) == 0, 5.0, .2))
    feedback, options = np.ones((400, 1)), EstimateOptions(draws=50, min_ess=60)

    def part(ratios, window):
        return ratio_part(ratios, feedback, np.ones(len(session)), session, options, window=window)

    found = choose_window(part, list(window_logs(log, session, step)), CAPS, options)
    assert "effective sample size" in found.refused or "mean ratio" in found.refused
    assert found.window == 2
    assert np.isnan(found.change).all()
    alone = choose_window(part, list(window_logs(log, session, np.zeros(400, int))), CAPS, options)
    assert (alone.refused, alone.window) == ("", 1), "sessions of one request have no more"


@pytest.fixture(scope="module")
def answers():
    return {answer.estimator: answer for answer in estimate_all(depletion.case(seed=1), ESTIMATORS)}


def test_what_hides_in_the_state_is_found_by_windows_alone(answers):
    """The policy takes more of what the request before it has used up: the gain of a single changed request is lost."""
    truth = depletion.truths()
    assert truth["one changed request"] > .08
    assert abs(truth["a request when the policy is followed"]) < .01
    for name, question in (("NCIS", "one changed request"), ("SN-DR", "one changed request"),
                           ("windowed NCIS", "a request when the policy is followed"),
                           ("ratio of rates", "a whole session")):
        found = answers[name]
        assert not found.refused, name
        assert found.change_low[0] < truth[question] < found.change_high[0], name
    assert answers["windowed NCIS"].window >= 2
    assert [point.window for point in answers["windowed NCIS"].trend][:2] == [1, 2]
    assert any("states shift" in sentence for sentence in answers["windowed NCIS"].warnings)
    assert answers["NCIS"].change_low[0] > truth["a request when the policy is followed"] + .05


def test_critics_that_see_no_state_only_rank_and_fail_their_test(answers):
    found = answers["FQE"]
    assert found.ranks_only
    assert found.feedback_share == 0
    assert np.isnan([found.low, found.high, found.change_low, found.change_high]).all()
    assert found.change[0] > depletion.truths()["a whole session"] + .05, "and is wrong"
    assert any("assumes the state is Markov" in sentence for sentence in found.warnings)
    assert any("fail the test on the return to go" in sentence for sentence in found.warnings)


def test_where_nothing_is_depleted_nothing_is_said_to_shift():
    """The logged policy itself: every window finds no change at all."""
    case = depletion.case(1_000, policy=FixedGaussian(depletion.LOGGED.mu, depletion.LOGGED.sigma))
    for answer in estimate_all(case, (*OF_FOLLOWED, RATIO_OF_RATES)):
        np.testing.assert_allclose(answer.change, 0, atol=1e-6)
        assert answer.warnings == ()
