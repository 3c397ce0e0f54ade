"""The spread of what predictions mean: found where it is known, and none where there is none."""

import numpy as np
import pytest

from recfuse.config import InvalidFieldError
from recfuse.simulation.meaning import meaning_spread


def answers(spread, users=4_000, rows=10, seed=0, binary=True):
    """Answers of users whose slopes are log-normal with mean 1 and this spread, and who differ in how often they
    answer; the predictions tell users apart too."""
    rng = np.random.default_rng(seed)
    user = np.repeat(np.arange(users), rows)
    within, between = rng.normal(size=users * rows), .5 * rng.normal(size=users)
    sigma = np.log1p(spread**2)**.5
    slope = np.exp(sigma * rng.normal(size=users) - sigma**2 / 2)
    odds = .8 * (slope[user] * within + between[user]) + .4 * rng.normal(size=users)[user]
    if binary:
        outcome = (rng.random(len(odds)) < 1 / (1 + np.exp(-odds))).astype(float)
    else:
        # The noise grows with the prediction, which no estimate of its variance knows.
        outcome = odds + rng.normal(size=len(odds)) * np.exp(.5 * within)
    return outcome, within + between[user], user


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("spread", [0.0, .5])
def test_a_known_spread_is_within_the_interval(spread, binary):
    found = meaning_spread(*answers(spread, binary=binary), binary=binary, draws=300)
    slack = .05 if binary else .02  # of the other terms of the logistic function
    assert found.low - slack <= spread**2 <= found.high + slack
    assert found.high - found.low < .3
    assert (found.low > 0) is (spread > 0)
    assert found.slope == pytest.approx(.8, rel=.1)
    assert found.spread == pytest.approx(max(found.variance, 0)**.5)


def test_chance_alone_is_no_spread():
    """Slopes fitted user by user differ widely; the estimate's mean over seeds is 0 within its error."""
    estimates = [meaning_spread(*answers(0.0, users=500, rows=6, seed=seed), draws=10).variance for seed in range(20)]
    assert abs(np.mean(estimates)) < 3 * np.std(estimates) / 20**.5
    outcome, prediction, user = answers(0.0, users=500, rows=6)
    fitted = [np.polyfit(prediction[user == each], outcome[user == each], 1)[0] for each in range(500)]
    assert np.var(fitted) / np.mean(fitted)**2 > .5


def test_users_with_few_exposures_are_left_out_and_equal_seeds_agree():
    outcome, prediction, user = answers(.3, users=200)
    more = [np.append(values, extra) for values, extra in ((outcome, [1., 0, 1]), (prediction, [9., 9, 9]),
                                                         (user, [900, 900, 901]))]
    first, second = (meaning_spread(*values, draws=50) for values in ((outcome, prediction, user), more))
    assert first == second
    with pytest.raises(InvalidFieldError, match="user: got 0; allowed: at least 2 persons with 4 exposures"):
        meaning_spread(outcome[:3], prediction[:3], user[:3])
