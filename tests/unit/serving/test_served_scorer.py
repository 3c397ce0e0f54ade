"""Scorer, catalogue and rows: what serves is one of all three, at any moment."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from recfuse.behaviours import Vocabulary
from recfuse.bundle import read_bundle
from recfuse.bundle.pointer import read_pointer
from recfuse.scenes.inference import SceneScorer
from recfuse.serving.catalogue import Catalogue
from recfuse.serving.config import ServingConfig
from recfuse.serving.formats import Body
from recfuse.serving.publish import publish
from recfuse.serving.replicas import ScenesReplica

from .conftest import write_policy
from .test_contract import ITEMS, point, write_scorer

IDS = [*ITEMS["item_id"], 10**12]
BODY = Body(orjson.dumps({"user": {"user_id": 7}, "candidates": {"item_id": IDS}, "top_n": None}))


@pytest.fixture
def models(tmp_path: Path, vocabulary: Vocabulary) -> Path:
    root = tmp_path / "models"
    publish(root, fusion=write_policy(tmp_path / "trained", vocabulary, seed=1),
            scenes=write_scorer(tmp_path / "trained"), catalogue=pa.table(ITEMS))
    return root


def replica(models: Path, **options: Any) -> ScenesReplica:
    return ScenesReplica(ServingConfig(models=str(models), poll_seconds=0, **options), follow=False)


def answered(scenes: ScenesReplica) -> tuple[str, dict[int, float]]:
    """The version, and item → its first task."""
    reply = asyncio.run(scenes.rank("feed", BODY))
    answer = orjson.loads(reply.body)
    assert reply.status == 200, answer
    return answer["model_version"], {item["item_id"]: next(iter(item["probabilities"].values()))
                                     for item in answer["items"]}


def expected(models: Path) -> dict[int, float]:
    """By the scorer alone, from columns of the catalogue that the pointer names."""
    pointer = read_pointer(models)
    scorer = SceneScorer.from_bundle(read_bundle(models / str(pointer.scenes)))
    catalogue, keys = Catalogue.load(models / str(pointer.catalogue)), np.array(IDS)
    scores = scorer.score("feed", {"user_id": 7}, {**catalogue.features(catalogue.positions(keys)), "item_id": keys})
    return dict(zip(IDS, next(iter(scores.probabilities.values())).tolist(), strict=True))


def other_catalogue(models: Path) -> dict[str, Any]:
    """The same items with each other's features."""
    table = pa.table(ITEMS)
    turned = {name: list(reversed(ITEMS[name])) if name != "item_id" else ITEMS[name] for name in table.column_names}
    return {"catalogue": publish(models, catalogue=pa.table(turned)).catalogue}


@pytest.mark.parametrize("precision", ["float16", "float32", "none"])
def test_replicas_share_the_rows_of_scorer_and_catalogue(models: Path, precision: str) -> None:
    scenes = [replica(models, item_rows=precision, rows=str(models.parent / "elsewhere")) for _ in range(2)]
    for each in scenes:
        assert answered(each)[1] == pytest.approx(expected(models), abs=1e-4 if precision == "float16" else 1e-6)
    assert len(list((models.parent / "elsewhere").glob("rows-*.npy"))) == (precision != "none")
    assert (scenes[0]._scorer.arms.current.known.rows is None) == (precision == "none")


def test_no_answer_mixes_scorer_catalogue_and_rows(models: Path, tmp_path: Path) -> None:
    """Swaps of scorer and catalogue at once while requests are answered: each is that of its version's pair."""
    scenes, first = replica(models, item_rows="float32"), read_pointer(models)
    pairs = [{"scenes": first.scenes, "catalogue": first.catalogue},
             {"scenes": write_scorer(models, seed=5).name, **other_catalogue(models)}]
    wanted = {}
    for pair in pairs:
        point(models, **pair)
        wanted[pair["scenes"]] = expected(models)
    mixed = {"scenes": pairs[0]["scenes"], "catalogue": pairs[1]["catalogue"]}
    point(models, **mixed)
    assert expected(models) != pytest.approx(wanted[pairs[0]["scenes"]], abs=1e-6)  # else nothing is tested
    answers: list[tuple[str, dict[int, float]]] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(answered(scenes))

    client = threading.Thread(target=ask)
    client.start()
    for number in range(30):
        point(models, **pairs[number % 2])
        for follower in scenes.followers:
            follower.prepare()
        for follower in scenes.followers:
            follower.swap()
    stop.set()
    client.join()
    assert {version for version, _ in answers} == set(wanted)
    for version, found in answers:
        assert found == pytest.approx(wanted[version], abs=1e-6)
    assert len(list((models / "rows").glob("rows-*.npy"))) == 2


def test_what_is_prepared_serves_after_the_swap_and_a_canary_has_rows_of_its_own(models: Path) -> None:
    scenes, canary = replica(models), write_scorer(models, seed=5)
    before, (joined,) = scenes._scorer.arms, scenes.followers
    point(models, scenes_canary=canary, canary_share=0.5)
    joined.prepare()
    assert scenes._scorer.arms is before
    joined.swap()
    arms = scenes._scorer.arms
    assert arms.current is before.current
    assert arms.canary.model.version == canary.name
    assert not np.array_equal(arms.canary.model.known.rows, arms.current.known.rows)
    scenes.reconfigure({"bundle": str(canary)})
    assert answered(scenes)[0] == canary.name
    scenes.reconfigure({"bundle": None})
    assert scenes._scorer.arms.current.version == before.current.version


def test_damaged_rows_are_computed_again_with_a_line_in_the_log(models: Path, caplog: pytest.LogCaptureFixture) -> None:
    answered(replica(models))
    (file,) = (models / "rows").glob("*.npy")
    damaged = bytearray(file.read_bytes())
    damaged[-1] ^= 255
    file.unlink()
    file.write_bytes(damaged)
    with caplog.at_level(logging.WARNING):
        assert answered(replica(models))[1] == pytest.approx(expected(models), abs=1e-4)
    assert [record.getMessage() for record in caplog.records if str(file) in record.getMessage()] == [
        f"the rows of items in {file} are damaged, they are computed again"]


def test_rows_need_no_directory_that_can_be_written_to(models: Path) -> None:
    (models / "rows").touch()
    assert answered(replica(models))[1] == pytest.approx(expected(models), abs=1e-4)
    shutil.rmtree(models, ignore_errors=True)


def test_a_feature_apart_that_no_item_has_is_named(models, caplog):
    with caplog.at_level(logging.WARNING):
        scenes = replica(models, rows_apart=("prize",))
    assert "rows_apart: got 'prize'; allowed: features of items of scenes-" in caplog.text
    assert answered(scenes)[1] == pytest.approx(expected(models), abs=1e-4)
