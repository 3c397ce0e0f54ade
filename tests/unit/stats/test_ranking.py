"""Ranking metrics against scikit-learn and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from recfuse.config import InvalidFieldError
from recfuse.stats import ranking
from recfuse.stats.ranking import (
    auc,
    auc_difference,
    calibration_error,
    evaluate_scenes,
    gauc,
    log_loss,
    metric_intervals,
    predicted_over_observed,
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 6)), min_size=2, max_size=60))
def test_auc_is_sklearns_with_ties(rows: list[tuple[int, int]]) -> None:
    y, s = np.array(rows).T
    if y.min() == y.max():
        assert math.isnan(auc(y, s))
    else:
        assert auc(y, s) == pytest.approx(sk.roc_auc_score(y, s))


def test_gauc_is_the_weighted_mean_over_users() -> None:
    rng = np.random.default_rng(0)
    user, y, s = rng.integers(0, 40, 500) * 1000, rng.integers(0, 2, 500), rng.integers(0, 5, 500) / 5
    y[user == 3000] = 0
    weights, areas = [], []
    for one in np.unique(user):
        own = user == one
        if 0 < y[own].sum() < own.sum():
            weights.append(own.sum())
            areas.append(sk.roc_auc_score(y[own], s[own]))
    value, counted, skipped = gauc(y, s, user)
    assert value == pytest.approx(np.average(areas, weights=weights))
    assert counted == len(areas)
    assert counted + skipped == len(np.unique(user))
    assert skipped >= 1


def test_log_loss_is_sklearns() -> None:
    rng = np.random.default_rng(1)
    y, p = rng.integers(0, 2, 300), rng.random(300)
    assert log_loss(y, p) == pytest.approx(sk.log_loss(y, p))


def test_calibration_error_by_hand() -> None:
    """Two bins of two: |0.15 − 0.5| and |0.85 − 1|, each with half of the rows."""
    y, p = [0, 1, 1, 1], [0.1, 0.2, 0.8, 0.9]
    assert calibration_error(y, p, bins=2) == pytest.approx(0.25)
    assert predicted_over_observed(y, p) == pytest.approx(2 / 3)


def test_calibrated_predictions_have_a_small_error() -> None:
    rng = np.random.default_rng(2)
    p = rng.random(50_000)
    y = rng.random(50_000) < p
    assert calibration_error(y, p) < 0.01
    assert predicted_over_observed(y, p) == pytest.approx(1.0, abs=0.02)


def test_scenes_and_pooled() -> None:
    scenes = np.array(["a", "a", "b", "b", "b"])
    users = np.array([1, 1, 1, 2, 2])
    labels = {"click": [0, 1, 1, 0, 1], "order": [0, 0, 0, 0, 1]}
    nan = float("nan")
    predictions = {"click": np.array([.1, .9, .8, .3, .2]), "order": np.array([nan, nan, .1, .2, .3])}
    found = {(m.scene, m.task): m for m in evaluate_scenes(scenes, users, labels, predictions)}
    assert set(found) == {("a", "click"), ("b", "click"), ("b", "order"), ("all", "click"), ("all", "order")}
    assert found["a", "click"].auc == 1.0
    assert found["b", "click"].auc == 0.5
    assert found["all", "click"].auc == pytest.approx(sk.roc_auc_score(labels["click"], predictions["click"]))
    assert (found["all", "order"].rows, found["all", "order"].positives) == (3, 1)
    assert found["b", "click"].skipped_users == 1


def test_empty_sets_have_no_metrics() -> None:
    assert math.isnan(auc([], []))
    assert math.isnan(log_loss([], []))
    assert math.isnan(calibration_error([], []))


@pytest.mark.parametrize(("labels", "scores", "message"), [
    ([0, 2], [.1, .2], r"labels: got \[0.0, 2.0\]; allowed: 0 or 1"),
    ([0, 1], [.1], r"scores: got \(1,\); allowed: \(2,\)"),
    ([0, 1], [.1, float("nan")], "scores: got 'not finite'"),
    ([[0, 1]], [[.1, .2]], r"labels: got \(1, 2\); allowed: \[N\]"),
])
def test_bad_inputs_are_named(labels: list, scores: list, message: str) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        auc(labels, scores)


def test_intervals_hold_the_estimates_and_shrink_with_users() -> None:
    rng = np.random.default_rng(2)
    widths = []
    for users in (40, 1_000):
        user = np.repeat(np.arange(users), 8)
        p = rng.random(len(user))
        y = (rng.random(len(user)) < p).astype(int)
        found = metric_intervals(y, p, user, draws=200)
        for name, value in (("auc", auc(y, p)), ("gauc", gauc(y, p, user)[0]), ("log_loss", log_loss(y, p)),
                            ("predicted_over_observed", predicted_over_observed(y, p))):
            low, high = getattr(found, name)
            assert low < value < high
        assert found.calibration_error[0] >= 0
        widths.append(found.auc[1] - found.auc[0])
    assert widths[1] < widths[0] / 3  # by √25 in the limit


def test_weights_of_users_act_as_repetition_does() -> None:
    """A draw that counts one user twice gives the AUC of rows in which that user's rows come twice, ties included."""
    user, y, s = np.array([0, 0, 1, 1, 2]), np.array([1.0, 0, 1, 0, 1]), np.array([.2, .2, .7, .4, .1])
    weights = np.array([[1.0, 2.0, 1.0], [0.0, 1.0, 3.0]])
    again = [0, 1, 2, 2, 3, 3, 4], [2, 3, 4, 4, 4]
    expected = [sk.roc_auc_score(y[rows], s[rows]) for rows in map(list, again)]
    np.testing.assert_allclose(ranking._weighted_auc(y, s, weights, user), expected)


@pytest.mark.parametrize(("noise", "verdict"), [(0.0, "no difference shown"), (1.0, "gain"), (-1.0, "loss")])
def test_difference_of_two_models(noise: float, verdict: str) -> None:
    rng = np.random.default_rng(3)
    user, p = np.repeat(np.arange(400), 5), rng.random(2_000)
    y = (rng.random(2_000) < p).astype(int)
    worse = p + abs(noise) * rng.random(2_000)
    first, second = (p, worse) if noise >= 0 else (worse, p)
    found = auc_difference(y, first, second, user)
    assert found.verdict == verdict
    assert found.difference == pytest.approx(auc(y, first) - auc(y, second))
    assert found.low <= found.difference <= found.high


def test_one_class_has_no_interval_of_auc() -> None:
    found = metric_intervals([0, 0, 0], [.1, .2, .3], [1, 2, 3])
    assert all(math.isnan(bound) for bound in (*found.auc, *found.gauc, *found.predicted_over_observed))


@pytest.mark.parametrize(("users", "draws", "message"), [
    ([1, 2], 10, "users: got 2; allowed: 3 values"), ([1, 2, 3], 0, "draws: got 0; allowed: an integer ≥ 1"),
])
def test_bad_bootstraps_are_named(users: list[int], draws: int, message: str) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        metric_intervals([0, 1, 0], [.1, .2, .3], users, draws=draws)
