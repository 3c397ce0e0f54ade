"""One test drives every architecture: fit, resume, export, serve from the bundle."""

from __future__ import annotations

import asyncio
import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np
import orjson
import pyarrow as pa
import pytest
import torch

from recfuse.bundle import read_bundle
from recfuse.config import InvalidFieldError
from recfuse.logs.exposures import Exposures
from recfuse.scenes.architectures import build_model
from recfuse.scenes.config import Architecture, ModelConfig
from recfuse.scenes.inference import SceneScorer
from recfuse.scenes.training.fit import train
from recfuse.scenes.training.problem import Problem
from recfuse.scenes.training.step import Stepper
from recfuse.serving.catalogue import Catalogue, CatalogueScorer
from recfuse.serving.config import ServingConfig
from recfuse.serving.formats import Body
from recfuse.serving.models import FixedModel
from recfuse.serving.scenes import ScenesService

ARCHITECTURES = get_args(Architecture)


def of(problem: Problem, architecture: str) -> Problem:
    weight = torch.ones_like(problem.positive_weight) if architecture == "esmm" else problem.positive_weight
    return dataclasses.replace(problem, positive_weight=weight,
                               model=problem.model.replace(architecture=architecture),
                               training=problem.training.replace(epochs=2, batch_size=128))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_fit_resume_export_serve(problem: Problem, exposures: Exposures, tmp_path: Path, architecture: str,
                                 monkeypatch: pytest.MonkeyPatch) -> None:
    mine = of(problem, architecture)
    whole = train(mine, tmp_path, "whole").score_exposures(exposures)

    step, first_epoch = Stepper.step, mine.steps

    def cut_off(stepper: Stepper, *batch: torch.Tensor) -> float:
        if stepper.taken > first_epoch:
            raise KeyboardInterrupt
        return step(stepper, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Stepper, "step", cut_off)
        with pytest.raises(KeyboardInterrupt):
            train(mine, tmp_path, "cut")
    resumed = train(mine, tmp_path, "cut")

    path = resumed.export(tmp_path / "bundles", training={}, data_fingerprint="f", metrics={})
    served = SceneScorer.from_bundle(read_bundle(path, "scenes"))
    scores = served.score_exposures(exposures)
    check_request(served, exposures)
    for task, values in scores.items():
        np.testing.assert_allclose(values, whole[task], rtol=0, atol=1e-6)
        known = values[np.isfinite(values)]
        assert ((known > 0) & (known < 1)).all()
        assert known.std() > 0


def check_request(scorer: SceneScorer, exposures: Exposures) -> None:
    """What is served, by call and as the answer to a client's JSON, is what rows of a user without a history give."""
    user, items = exposures.users.slice(2, 1).to_pylist()[0], exposures.items.slice(0, 9)
    columns = {name: np.array(items[name].to_pylist()) for name in items.column_names}
    found = scorer.score("1", {**user, "hour": 7}, columns).probabilities
    rows = pa.table({"user_id": np.full(9, user["user_id"]), "item_id": columns["item_id"], "scene": ["1"] * 9,
                     "hour": np.full(9, 7, np.int8)})
    expected = scorer.score_rows(rows, exposures.users, exposures.items)
    catalogue = Catalogue(exposures.items)
    request = {"user": {**user, "hour": 7}, "candidates": {"item_id": columns["item_id"].tolist()}, "top_n": None}
    service = ScenesService(ServingConfig(), FixedModel(CatalogueScorer(scorer, catalogue)))
    reply = asyncio.run(service.rank("1", Body(orjson.dumps(request))))
    answered = {item["item_id"]: item["probabilities"] for item in orjson.loads(reply.body)["items"]}
    for task, values in found.items():
        np.testing.assert_allclose(values, expected[task], rtol=0, atol=1e-6)
        served = [answered[item_id][task] for item_id in columns["item_id"].tolist()]
        np.testing.assert_allclose(served, expected[task], rtol=0, atol=1e-6)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_pairs_start_at_their_prior(problem: Problem, architecture: str) -> None:
    """Averaged over rows, an untrained model predicts about the base rate of every pair."""
    mine = of(problem, architecture)
    registry, rows = mine.registry, mine.rows.take(np.arange(400))
    torch.manual_seed(0)
    model = build_model(mine.model, table_rows=mine.encoder.table_rows, fields=mine.encoder.fields,
                        numeric=mine.encoder.numeric, item_field=0, pair_scene=registry.pair_scene,
                        pair_task=registry.pair_task, prior_logits=torch.full((len(registry.pairs),), -2.0))
    with torch.inference_mode():
        logits = model(*(torch.from_numpy(part) for part in (rows.ids(), rows.numbers(), rows.history, rows.scene)))
    for pair, scene in enumerate(registry.pair_scene):
        own = logits[torch.from_numpy(rows.scene == scene), pair]
        assert abs(own.mean().item() + 2.0) < 1.0


def test_unknown_architecture_is_named() -> None:
    with pytest.raises(InvalidFieldError, match="architecture: got 'transformer'; allowed: multi_scene, single_task"):
        ModelConfig(architecture="transformer")  # type: ignore[arg-type]


def test_esmm_never_predicts_more_than_its_first_task(problem: Problem, exposures: Exposures, tmp_path: Path) -> None:
    mine = dataclasses.replace(of(problem, "esmm"), recent=np.zeros(0, np.int64))  # a shift acts on each task alone
    scores = train(mine, tmp_path).score_exposures(exposures)
    scene = np.array(exposures.rows["scene"].to_pylist())
    assert (scores["long_view"][scene == "1"] <= scores["click"][scene == "1"] + 1e-6).all()
