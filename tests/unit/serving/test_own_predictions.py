"""Recommendations by predictions of the client's own, with and without a scorer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recfuse.behaviours import Vocabulary
from recfuse.bundle.pointer import Pointer, read_pointer, write_pointer
from recfuse.serving.models import ServedModel
from recfuse.serving.scenes import NoScorer

from .conftest import TASKS, FakeScorer

PREDICTIONS = {"click": [0.1, 0.9, 0.5], "long_view": [0.2, 0.1, 0.4]}


def body(*item_ids: Any, **changes: Any) -> dict[str, Any]:
    candidates = {"item_id": list(item_ids) or ["a", "b", "c"], "predictions": PREDICTIONS}
    return {"user": {"user_id": "u-1"}, "scene": "feed", "candidates": candidates, "explore": False, **changes}


def error(answer: Any) -> dict[str, Any]:
    assert answer.status_code in (404, 422), answer.text
    detail: dict[str, Any] = answer.json()["error"]
    return detail


def test_without_a_scorer_own_predictions_rank_as_those_of_the_fusion_endpoint(start: Callable[..., Any]) -> None:
    application = start(NoScorer())
    answer = application.post("/v1/recommend", body(explain=True)).json()
    same = application.post("/v1/fusion/fine/rank", {
        "user_id": "u-1", "scene": "feed", "candidates": body()["candidates"], "explore": False}).json()
    assert [(item["item_id"], item["score"]) for item in answer["items"]] == [
        (item["item_id"], item["score"]) for item in same["items"]]
    assert answer["scenes_version"] is None
    assert answer["items"][0]["catalogue"] is None


def test_without_a_scorer_the_refusals_say_so(start: Callable[..., Any]) -> None:
    application = start(NoScorer())
    bare = {"user": {"user_id": 7}, "scene": "feed", "candidates": {"item_id": [1, 2]}}
    for answer in (application.post("/v1/recommend", bare),
                   application.post("/v1/scenes/feed/rank", {"user": {"user_id": 7}, "candidates": {"item_id": [1]}})):
        assert "no scorer is served here" in error(answer)["allowed"]


@pytest.mark.parametrize("scorer", [NoScorer(), FakeScorer()], ids=["none", "one"])
def test_the_document_without_a_scorer_has_examples_that_are_answered(start: Callable[..., Any], scorer: Any) -> None:
    application = start(scorer)
    paths = application.get("/openapi.json").json()["paths"]
    assert ("/v1/scenes/{scene}/rank" in paths) == isinstance(scorer, FakeScorer)
    example = paths["/v1/recommend"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert ("predictions" in example["candidates"]) == isinstance(scorer, NoScorer)
    assert application.post("/v1/recommend", example).status_code == 200
    assert application.get("/docs").status_code == 200


def test_own_predictions_go_before_the_scorers(start: Callable[..., Any]) -> None:
    application = start()
    candidates = {"item_id": [1, 2, 3], "predictions": {"click": PREDICTIONS["click"]}}
    answer = application.post("/v1/recommend", body(candidates=candidates, explain=True)).json()
    told = {item["item_id"]: item["predictions"] for item in answer["items"]}
    assert [told[item]["click"] for item in (1, 2, 3)] == pytest.approx(PREDICTIONS["click"], abs=1e-3)
    assert [told[item]["long_view"] for item in (1, 2, 3)] == pytest.approx([.1, .9, .3], abs=1e-3)  # the scorer's


def test_what_nobody_predicts_is_named(start: Callable[..., Any], models: Path, vocabulary: Vocabulary) -> None:
    scorer = FakeScorer(tasks={"feed": ("click",)})
    scorer.score = lambda *_: type("Scores", (), {  # type: ignore[method-assign, assignment]
        "probabilities": {"click": [.1, .2, .3]}, "unknown": {}})()
    detail = error(start(scorer).post("/v1/recommend", body(candidates={"item_id": [1, 2, 3]})))
    assert detail["field"] == "candidates.predictions.long_view"
    assert "in no scene" in detail["allowed"]
    # Another scene of the scorer predicts it: here it decides nothing.
    scorer.tasks = {"feed": ("click",), "shop": TASKS}
    assert start(scorer).post("/v1/recommend", body(candidates={"item_id": [1, 2, 3]})).status_code == 200
    half = body(candidates={"item_id": ["a"], "predictions": {"click": [.5]}})
    assert error(start(NoScorer()).post("/v1/recommend", half))["field"] == "candidates.predictions.long_view"


@pytest.mark.parametrize(("candidates", "field"), [
    ({"item_id": [1, 2], "predictions": {"click": [.1]}}, "candidates.predictions.click"),
    ({"item_id": [1], "predictions": {"click": ["x"]}}, "candidates.predictions.click[0]"),
])
def test_bad_candidates_are_named(start: Callable[..., Any], candidates: dict[str, Any], field: str) -> None:
    assert error(start().post("/v1/recommend", body(candidates=candidates)))["field"] == field


def test_a_scene_that_the_scorer_lacks_is_ranked_by_own_predictions(start: Callable[..., Any]) -> None:
    scorer = FakeScorer(tasks={"wall": TASKS})
    answer = start(scorer).post("/v1/recommend", body(1, 2, 3))
    assert answer.status_code == 200
    assert not scorer.seen


def test_a_scorer_may_come_and_go(models: Path) -> None:
    absent = NoScorer()
    served = ServedModel[Any](models, "scenes", lambda bundle: bundle, 0, absent)
    assert served.current is absent
    before = read_pointer(models)
    write_pointer(models, Pointer(fusion=before.fusion, scenes="scenes-missing"))
    assert not served.refresh()
    assert served.current is absent
    write_pointer(models, before)
    assert served.refresh()
    assert served.error is None
