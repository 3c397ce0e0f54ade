"""The Python face: a log by the one reader, and a policy that ranks as serving does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import recfuse
from recfuse import Log, Vocabulary, load_policy
from recfuse.config import InvalidFieldError
from recfuse.fusion.inference import StagePolicy, export_policy
from recfuse.fusion.policies import FixedGaussian

ROOT = Path(__file__).parents[2]
SHOP = Vocabulary.from_dict({
    "behaviours": [{"name": "revenue", "kind": "long_term"}, {"name": "order", "kind": "short_term"}],
    "fusion_parameters": ["add_to_cart", "margin"], "formula": "linear", "state_size": 3,
    "state_features": [{"name": "hour", "mean": 12, "std": 6}, {"name": "scene", "categories": ["home"]}]})


@pytest.fixture
def policy(tmp_path):
    export_policy(tmp_path, FixedGaussian([2.0, -1.0], [.5, .5]), SHOP, training={}, data_fingerprint="", metrics={})
    return load_policy(tmp_path)


def test_scores_are_weighted_sums_and_the_best_comes_first(policy):
    ranked = policy.rank({"hour": 12, "scene": "home"}, {"margin": [0, 1, 0], "add_to_cart": [.1, .9, .5]})
    # Predictions are rounded to half precision, as serving logs them.
    halves = np.array([.1, .9, .5], np.float16).astype(float)
    np.testing.assert_allclose(ranked.scores, 2 * halves - [0, 1, 0], rtol=1e-12)
    assert ranked.order.tolist() == [2, 1, 0]
    assert ranked.weights == {"add_to_cart": 2.0, "margin": -1.0} == ranked.mu
    assert ranked.sigma == {"add_to_cart": .5, "margin": .5}
    assert policy.rank([0, 1, 0], [[.1, .9, .5], [0, 1, 0]], seen=[False, False, True]).order.tolist() == [1, 0]


def test_exploring_draws_by_the_seed(policy):
    state, predictions = np.zeros(3), {"add_to_cart": [.1, .9], "margin": [0, 1]}
    one, same = (policy.rank(state, predictions, explore=True, seed=7) for _ in range(2))
    assert one.weights == same.weights != one.mu
    drawn = [list(policy.rank(state, predictions, explore=True, seed=seed).weights.values()) for seed in range(400)]
    np.testing.assert_allclose(np.mean(drawn, 0), [2, -1], atol=.1)
    np.testing.assert_allclose(np.std(drawn, 0), [.5, .5], atol=.06)


def test_the_policy_of_a_stage_ranks_where_the_stage_is_named(tmp_path):
    stages = {"mix": StagePolicy(FixedGaussian([-2.0, 1.0], .5), SHOP, {}, "", {})}
    export_policy(tmp_path, FixedGaussian([2.0, -1.0], .5), SHOP, training={}, data_fingerprint="", metrics={},
                  stages=stages)
    policy, predictions = load_policy(tmp_path), {"add_to_cart": [.1, .9], "margin": [0, 1]}
    assert policy.rank(np.zeros(3), predictions, stage="mix").mu == {"add_to_cart": -2.0, "margin": 1.0}
    for stage in ("", "coarse"):
        assert policy.rank(np.zeros(3), predictions, stage=stage).mu == {"add_to_cart": 2.0, "margin": -1.0}
    with pytest.raises(InvalidFieldError, match="stage: got 'last'; allowed: coarse, fine, rerank, mix"):
        policy.rank(np.zeros(3), predictions, stage="last")


@pytest.mark.parametrize(("state", "predictions", "message"), [
    ([0, 1], {"add_to_cart": [1], "margin": [1]}, r"state.*\(2,\).*3 numbers"),
    ([0, 1, np.nan], {"add_to_cart": [1], "margin": [1]}, "state.*finite"),
    ({"hour": "noon"}, {"add_to_cart": [1], "margin": [1]}, "hour.*noon"),
    ([0, 1, 0], {"add_to_cart": [1]}, r"predictions\.margin"),
    ([0, 1, 0], {"add_to_cart": [1, 2], "margin": [1]}, "predictions.*as many"),
    ([0, 1, 0], [[1, 2]], "predictions.*2 rows"),
    ([0, 1, 0], {"add_to_cart": [np.inf], "margin": [1]}, "predictions.*finite"),
])
def test_bad_input_is_named(policy, state, predictions, message):
    with pytest.raises(InvalidFieldError, match=message):
        policy.rank(state, predictions)


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(InvalidFieldError, match="logs"):
        Log(tmp_path / "none")
    with pytest.raises(AttributeError, match="nothing"):
        _ = recfuse.nothing


def test_ranking_starts_no_ray(policy, tmp_path):
    code = (f"import sys; from recfuse import load_policy; load_policy({str(tmp_path)!r}).rank([0, 1, 0], [[1], [2]]); "
            "assert 'ray' not in sys.modules")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT / "platform")
