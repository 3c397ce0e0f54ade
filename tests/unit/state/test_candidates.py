"""What a state says of the candidates."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recfuse.behaviours import Behaviour, CandidateFeatures, Formula, Vocabulary
from recfuse.state.candidates import CandidateEncoder


def encoder(formula: Formula, page: int = 2, parameters: int = 3) -> CandidateEncoder:
    return CandidateEncoder(Vocabulary(
        behaviours=(Behaviour(name="watch_time", kind="long_term"),), formula=formula,
        fusion_parameters=tuple("abcdef"[:parameters]), state_size=CandidateFeatures.width_of(parameters),
        candidate_features=CandidateFeatures(page=page)))


def test_by_hand() -> None:
    """a = 1, 2, 6 and b = 3, 3, 0: means, spreads, the best two, the best, their correlation, how many, none seen."""
    raw = encoder("linear", parameters=2).raw(np.array([[[1.0, 2.0, 6.0], [3.0, 3.0, 0.0]]]))[0]
    spread = math.sqrt(14 / 3), math.sqrt(2)
    covariance = (-2 * 1 + -1 * 1 + 3 * -2) / 3
    expected = [3, 2, *spread, 4, 3, 6, 3, covariance / (spread[0] * spread[1]), math.log(4), 0]
    np.testing.assert_allclose(raw, expected, rtol=1e-12)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 30), padding=st.integers(1, 5),
       formula=st.sampled_from(["linear", "log_sum", "power"]), page=st.integers(1, 12))
def test_a_request_alone_is_encoded_as_one_of_a_padded_batch(
    seed: int, count: int, padding: int, formula: Formula, page: int
) -> None:
    rng = np.random.default_rng(seed)
    predictions = rng.random((1, 3, count)).round(1)
    padded = np.concatenate([predictions, np.full((1, 3, padding), -9.0)], 2)
    batch = np.concatenate([padded, padded * 0.5], 0)
    alone = encoder(formula, page).encode(predictions)
    together = encoder(formula, page).encode(np.abs(batch), counts=np.array([count, count + padding]))
    np.testing.assert_allclose(alone[0], together[0], rtol=0, atol=1e-6)
    nothing_seen = encoder(formula, page).encode(predictions, np.zeros((1, count), bool))
    np.testing.assert_array_equal(alone, nothing_seen)


@pytest.mark.parametrize("seen", [None, np.zeros((1, 0), bool)])
def test_no_candidates_are_zeros(seen: np.ndarray | None) -> None:
    np.testing.assert_array_equal(encoder("linear").raw(np.zeros((1, 3, 0)), seen), np.zeros((1, 17)))
