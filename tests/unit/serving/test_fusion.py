"""Fusion of one request, without HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recfuse.behaviours import Behaviour, Formula, Vocabulary
from recfuse.bundle import read_bundle
from recfuse.fusion import ranking
from recfuse.fusion.inference import FusionActor, StagePolicy, export_policy
from recfuse.fusion.policies import Decision, FixedGaussian
from recfuse.serving.config import ServingConfig
from recfuse.serving.decision_log import DecisionLog
from recfuse.serving.formats import Body, RefusedError
from recfuse.serving.fusion import FusionModel, FusionService, best_first, fuse_columns
from recfuse.serving.models import FixedModel
from recfuse.stats.gaussian import gaussian_log_density


class FixedActor:
    """Always the worked example's vector (0.8, 0.5, 0.9)."""

    version = "fusion-fixed"
    stages: Mapping[str, FixedActor] = MappingProxyType({})

    def __init__(self, formula: Formula) -> None:
        self.vocabulary = Vocabulary(behaviours=(Behaviour(name="watch_time", kind="long_term"),), state_size=1,
                                     fusion_parameters=("play", "click", "like"), formula=formula)
        self._policy = FixedGaussian([0.8, 0.5, 0.9], 0.1)

    def of(self, stage: str) -> FixedActor:
        return self

    def act(self, state: Any, explore: bool, *, seed: int | None = None) -> Decision:
        return self._policy.act(state, explore, np.random.default_rng(seed))


def models(formula: Formula) -> FixedModel[FusionModel]:
    return FixedModel(FusionModel(FixedActor(formula)))


def rank(tmp_path: Path, play: list[float], formula: Formula = "linear", **fields: Any) -> dict[str, Any]:
    """In full precision, as predictions are fused where the log does not keep them."""
    config = ServingConfig(decision_log=str(tmp_path), explore=False, log_candidates=False)
    log = DecisionLog(tmp_path)
    n = len(play)
    body = {"user_id": "u", "state": [0.0], **fields, "candidates": {
        "item_id": list(range(n)), "predictions": {"play": play, "click": [.5] * n, "like": [.3] * n}}}
    try:
        service = FusionService(config, models(formula), log)
        reply = asyncio.run(service.rank("fine", Body(orjson.dumps(body))))
    finally:
        log.close()
    return dict(orjson.loads(reply.body))


def test_worked_example(tmp_path: Path) -> None:
    """maths 2.1: 0.8 · 60 + 0.5 · 0.5 + 0.9 · 0.3 = 48.52."""
    assert rank(tmp_path, [60.0])["items"] == [{"item_id": 0, "score": pytest.approx(48.52, abs=1e-5)}]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(0, 2**32 - 1), st.sampled_from(["linear", "log_sum", "power"]))
def test_the_columns_fuse_and_rank_as_the_tensors_do(count: int, seed: int, formula: Formula) -> None:
    rng = np.random.default_rng(seed)
    columns = rng.random((3, count)).round(1)  # ties
    action = rng.normal(size=3).astype(np.float32)
    vocabulary = FixedActor(formula).vocabulary
    _, scores = fuse_columns(columns, action, vocabulary)
    expected = ranking.fuse(torch.from_numpy(columns.T.copy()), torch.from_numpy(action.astype(np.float64)), formula,
                            vocabulary.offset)
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-12, atol=1e-12)
    for order in ("descending", "ascending"):
        np.testing.assert_array_equal(best_first(scores, order), ranking.rank(torch.from_numpy(scores), order))


def test_ties_keep_the_candidates_order(tmp_path: Path) -> None:
    for order in ("descending", "ascending"):
        assert [item["item_id"] for item in rank(tmp_path, [1.0] * 50, order=order)["items"]] == list(range(50))


def test_a_score_beyond_the_float_range_is_refused(tmp_path: Path) -> None:
    """exp(0.8 · log(1.7e308) + …) is finite, 2 · 1.7e308 is not; JSON could not carry infinity."""
    config = ServingConfig(decision_log=str(tmp_path))
    log = DecisionLog(tmp_path)
    body = {"user_id": "u", "state": [0.0], "candidates": {
        "item_id": [1], "predictions": {"play": [1.7e308], "click": [1.7e308], "like": [1.7e308]}}}
    try:
        with pytest.raises(RefusedError, match="fused score is finite"):
            asyncio.run(FusionService(config, models("linear"), log).rank("fine", Body(orjson.dumps(body))))
    finally:
        log.close()


def test_without_declared_features_the_state_must_be_sent(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="declares no features"):
        rank(tmp_path, [1.0], state=None, context={"age": 3})


def test_a_log_that_cannot_be_written_gives_503(tmp_path: Path) -> None:
    config = ServingConfig(decision_log=str(tmp_path))
    log = DecisionLog(tmp_path)
    log.close()
    body = {"user_id": "u", "state": [0.0], "candidates": {
        "item_id": [1], "predictions": {"play": [1.0], "click": [1.0], "like": [1.0]}}}
    with pytest.raises(RefusedError, match="decision_log") as caught:
        asyncio.run(FusionService(config, models("linear"), log).rank("fine", Body(orjson.dumps(body))))
    assert caught.value.status == 503


def test_the_policy_of_the_stage_decides_and_its_density_is_logged(tmp_path: Path) -> None:
    of = FixedActor("linear").vocabulary
    others, coarse = FixedGaussian([.8, .5, .9], .1), FixedGaussian([-.8, 2.0, 0.0], .3)
    bundle = export_policy(tmp_path / "models", others, of, training={}, data_fingerprint="", metrics={},
                           stages={"coarse": StagePolicy(coarse, of, {}, "", {})})
    actor, log = FusionActor.from_bundle(read_bundle(bundle)), DecisionLog(tmp_path)
    body = {"user_id": "u", "state": [0.0], "seed": 5, "explore": True, "candidates": {
        "item_id": [1, 2], "predictions": {"play": [1.0, 2.0], "click": [.5, .5], "like": [.5, .5]}}}
    service = FusionService(ServingConfig(decision_log=str(tmp_path)), FixedModel(FusionModel(actor)), log)
    try:
        answers = {stage: orjson.loads(asyncio.run(service.rank(stage, Body(orjson.dumps(body)))).body)
                   for stage in ("coarse", "fine", "mix")}
    finally:
        log.close()
    assert [item["item_id"] for item in answers["coarse"]["items"]] == [1, 2]
    assert [item["item_id"] for item in answers["fine"]["items"]] == [2, 1]
    [segment] = tmp_path.glob("*.jsonl")
    rows = {row["stage"]: row for row in map(orjson.loads, segment.read_bytes().splitlines())}
    for stage, policy in (("coarse", coarse), ("fine", others), ("mix", others)):
        row = rows[stage]
        assert (row["model_version"], row["explored"]) == (bundle.name, True)
        np.testing.assert_array_equal(np.float32(row["mu"]), policy.mu)
        action = np.float32([row["action"]])
        density = gaussian_log_density(action, policy.mu[None], policy.sigma[None])
        assert row["action_logp"] == pytest.approx(float(density[0]), rel=1e-6)
