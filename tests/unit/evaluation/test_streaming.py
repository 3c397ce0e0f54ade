"""Sums of batches give what the whole log in memory gives."""

import numpy as np
import pyarrow as pa
import pytest

from recfuse.config import InvalidFieldError
from recfuse.evaluation.ope import importance_sampling, ncis
from recfuse.evaluation.streaming import estimates_of_sums, merge, user_sums


def test_batches_merge_to_the_whole():
    rng = np.random.default_rng(0)
    target, behaviour, feedback = rng.normal(size=5_000), rng.normal(size=5_000), rng.random((5_000, 2))
    users = np.sort(rng.integers(100, 400, 5_000)).astype(str)  # in the order of their ids, as merged sums are
    shuffled = rng.permutation(5_000)
    parts = [user_sums(target[some], behaviour[some], feedback[some], 5.0, users[some])
             for some in np.array_split(shuffled, 7)]
    whole = (target, behaviour, feedback, 5.0, users)
    merged = estimates_of_sums(merge([pa.table({}), *parts]))
    for found, expected in zip(merged, (ncis(*whole), importance_sampling(*whole)), strict=True):
        assert (found.estimator, found.requests, found.users) == (expected.estimator, 5_000, expected.users)
        for name in ("estimate", "low", "high", "logged", "effective_sample_size"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-5, err_msg=name)
        assert found.capped_share == pytest.approx(expected.capped_share)
        assert found.mean_ratio == pytest.approx(expected.mean_ratio)


def test_no_support_is_refused_here_too():
    sums = user_sums(np.full(500, -50.0), np.zeros(500), np.ones((500, 1)), 5.0, np.arange(500))
    normalised, plain = estimates_of_sums(merge([sums]))
    assert "the mean ratio is 0.00, where 1 is expected" in normalised.refused
    assert "the mean ratio is 0.000, where 1 ± 0.02 is asked" in plain.refused


def test_bad_input_is_refused():
    with pytest.raises(InvalidFieldError, match="cap: got inf; allowed: a finite number > 0"):
        user_sums([0.0], [0.0], [[1.0]], np.inf, ["a"])
    with pytest.raises(InvalidFieldError, match="log: got 0; allowed: at least one request"):
        merge([])
