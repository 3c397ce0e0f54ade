"""Slopes of realised on predicted: against statsmodels, hand-worked cases, and the posterior's closed form."""

from __future__ import annotations

import numpy as np
import pytest
import statsmodels.api as sm

from recfuse.config import InvalidFieldError
from recfuse.stats.slopes import Slope, fit_slope, read_slopes, shrink


def test_slope_and_error_are_those_of_least_squares_with_dummies_and_clusters() -> None:
    rng = np.random.default_rng(0)
    user = rng.integers(0, 40, 600)
    scene = rng.integers(0, 3, 600)
    group = user * 3 + scene
    predicted = rng.random(600) + .1 * group
    shared = rng.normal(size=40)[user]  # whatever a user's rows share
    realised = .4 * predicted + group + shared * predicted * .2 + rng.normal(size=600)
    weights = rng.uniform(.5, 2, 600)
    found = fit_slope(realised, predicted, group, user, weights)
    dummies = (group[:, None] == np.unique(group)).astype(float)
    fit = sm.WLS(realised, np.c_[predicted, dummies], weights).fit(
        cov_type="cluster", cov_kwds={"groups": user, "use_correction": False})
    assert found.slope == pytest.approx(fit.params[0], rel=1e-9)
    assert found.error == pytest.approx(fit.bse[0] * np.sqrt(40 / 39), rel=1e-8)


def test_a_group_s_level_says_nothing_of_the_slope() -> None:
    """Between groups the slope is −10; within each of them, 2 and 4: (2 · ½ + 4 · 2) / (½ + 2) = 3.6 by hand."""
    predicted, realised = np.array([0., 1., 5., 7.]), np.array([10., 12., -40., -32.])
    found = fit_slope(realised, predicted, [0, 0, 1, 1])
    assert found.slope == pytest.approx(3.6)
    # Residuals' sums by group: ½ (2 − 3.6) = −.8 and 2 (4 − 3.6) = .8.
    assert found.error == pytest.approx(np.sqrt(2 * (.8 ** 2 + .8 ** 2)) / 2.5)
    assert found.rows == 4


def test_rows_alone_in_their_group_count_for_nothing() -> None:
    with_one = fit_slope([10., 12., -40., -32., 7.], [0., 1., 5., 7., 9.], [0, 0, 1, 1, 2])
    assert with_one == fit_slope([10., 12., -40., -32.], [0., 1., 5., 7.], [0, 0, 1, 1])


@pytest.mark.parametrize("predicted", [[.3, .3, .3], []])
def test_without_differences_nothing_is_known(predicted: list[float]) -> None:
    found = fit_slope(np.arange(len(predicted)), predicted, np.zeros(len(predicted)))
    assert np.isnan(found.slope)
    assert np.isnan(found.error)
    assert shrink(found) == Slope(.5, .5, len(predicted))


def test_the_posterior_is_the_precision_weighted_mean() -> None:
    """Error .25, prior N(.5, .5²): precisions 16 and 4, so (16 · 1.5 + 4 · .5) / 20 = 1.3, deviation 1/√20."""
    found = shrink(Slope(1.5, .25, 9))
    assert found.slope == pytest.approx(1.3)
    assert found.error == pytest.approx(20 ** -.5)
    assert shrink(Slope(1.5, 1e9, 9), mean=1.0, std=.1).slope == pytest.approx(1.0)
    assert shrink(Slope(1.5, 0.0, 9)).slope == 1.5


def test_saved_slopes_are_read_back() -> None:
    saved = {"like": {"1": {"slope": .5, "error": .25, "rows": 9}, "all": {"slope": None, "error": None, "rows": 1}}}
    found = read_slopes(saved)["like"]
    assert found["1"] == Slope(.5, .25, 9)
    assert np.isnan(found["all"].slope)
    assert shrink(found["all"]) == Slope(.5, .5, 1)


@pytest.mark.parametrize(("call", "message"), [
    (lambda: fit_slope([0., 1.], [0., 1., 2.], [0, 0]), "predicted: got"),
    (lambda: fit_slope([0., np.nan], [0., 1.], [0, 0]), "realised: got .*finite numbers"),
    (lambda: fit_slope([0., 1.], [0., 1.], [0, 0], weights=[1., -1.]), "weights: got -1.0; allowed: numbers ≥ 0"),
    (lambda: shrink(Slope(1.0, .1, 5), std=0.0), "std: got 0.0; allowed: a number > 0"),
])
def test_bad_values_are_named(call, message: str) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        call()
