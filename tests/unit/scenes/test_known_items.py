"""Items that are encoded once: the same scores as from their columns, whatever a request changes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.scorer_former import FormerScorer
from recfuse.config import InvalidFieldError
from recfuse.logs.exposures import Exposures
from recfuse.scenes.config import ModelConfig, Precision
from recfuse.scenes.inference import SceneScorer, Scores
from recfuse.scenes.known_items import KnownItems
from recfuse.scenes.registry import Registry
from recfuse.scenes.request import RequestNetwork
from recfuse.scenes.row_files import RowFiles
from recfuse.scenes.training.problem import Problem
from recfuse.serving.catalogue import Catalogue

USER = {"user_id": 7, "hour": 3, "history": [1, 2, 3, 10**12]}
LIMIT = {"float32": 1e-6, "float16": 1e-4, "none": 1e-6}


class Shop:
    """A scorer with its catalogue; `former` is the path that the rows must equal."""

    def __init__(self, exposures: Exposures, registry: Registry, config: ModelConfig) -> None:
        self.scorer = SceneScorer.untrained(exposures, registry, config, seed=1)
        self.catalogue = Catalogue(exposures.items)
        self.former = FormerScorer(self.scorer, self.scorer._model)  # type: ignore[arg-type]
        self.keys = exposures.items["item_id"].to_numpy()

    def known(self, precision: Precision, apart: tuple[str, ...] = (), files: RowFiles | None = None) -> KnownItems:
        places = np.arange(len(self.catalogue))
        return self.scorer.known_items(self.catalogue.keys, self.catalogue.features(places), precision, apart, files)

    def expected(self, ids: np.ndarray, sent: Mapping[str, Any], user: Mapping[str, Any] = USER) -> Scores:
        columns = self.catalogue.features(self.catalogue.positions(ids))
        return self.former.score("1", user, {**columns, **sent, "item_id": ids})

    def found(self, known: KnownItems, ids: np.ndarray, sent: Mapping[str, Any],
              user: Mapping[str, Any] = USER) -> Scores:
        return self.scorer.score("1", user, {**sent, "item_id": ids}, known, self.catalogue.positions(ids))


@pytest.fixture(scope="module", params=["attention", "mean", "none"])
def shop(request: pytest.FixtureRequest, exposures: Exposures, problem: Problem) -> Shop:
    pooling = {"history_length": 0} if request.param == "none" else {"history_length": 5,
                                                                     "history_pooling": request.param}
    return Shop(exposures, problem.registry, ModelConfig(
        embedding_size=4, experts=3, expert_layers=(8, 6), tower_layers=(5,), **pooling))


def same(found: Scores, expected: Scores, limit: float) -> None:
    assert found.unknown == expected.unknown
    assert set(found.probabilities) == set(expected.probabilities)
    for task, values in expected.probabilities.items():
        np.testing.assert_allclose(found.probabilities[task], values, rtol=0, atol=limit)


@pytest.mark.parametrize("precision", ["float32", "float16", "none"])
@pytest.mark.parametrize("count", [0, 1, 40, 700])
def test_rows_score_as_columns_do(shop: Shop, precision: Precision, count: int) -> None:
    ids = np.random.default_rng(count).choice(shop.keys, count)
    same(shop.found(shop.known(precision), ids, {}), shop.expected(ids, {}), LIMIT[precision])


@pytest.mark.parametrize("apart", [(), ("age_days",), ("age_days", "duration", "tag", "item_id")])
@pytest.mark.parametrize("precision", ["float32", "none"])
def test_what_is_sent_goes_before_what_is_known(shop: Shop, precision: Precision, apart: tuple[str, ...]) -> None:
    """Random features and ids, some of them of nowhere: what they replace is taken out of the row exactly."""
    known, rng = shop.known(precision, apart), np.random.default_rng(5)
    names = ("duration", "author_id", "video_type", "tag", "age_days", "not a feature")
    for _ in range(25):
        ids = rng.choice(np.append(shop.keys, [10**12, -5]), 30)
        others = rng.permutation(np.append(ids[:25], [4] * 5))
        columns = shop.catalogue.features(shop.catalogue.positions(others))
        columns["not a feature"] = np.arange(30)
        sent = {name: columns[name] for name in names if rng.random() < .4}
        if "tag" in sent:
            sent["tag"] = np.array([*sent["tag"].tolist()[:-1], None], object)
        same(shop.found(known, ids, sent), shop.expected(ids, sent), 1e-6)


def test_a_stranger_without_history_and_items_of_nowhere(shop: Shop) -> None:
    ids, user = np.array([10**12, 10**13]), {"hour": 5}
    found = shop.found(shop.known("float16"), ids, {}, user)
    same(found, shop.expected(ids, {}, user), 1e-4)
    assert found.unknown["item_id"] == 2


def test_rows_survive_the_request(shop: Shop) -> None:
    """Nothing that a request does writes to what is shared."""
    known = shop.known("float16")
    parts = known.ids, known.numbers, known.unknown, known.rows.numpy()
    before = [part.copy() for part in parts]
    ids = np.append(shop.keys, 10**12)
    shop.found(known, ids, {"duration": np.full(len(ids), 3.0)})
    for part, kept in zip(parts, before, strict=True):
        np.testing.assert_array_equal(part, kept)


def test_sent_columns_are_refused_by_their_name(shop: Shop) -> None:
    known, ids = shop.known("float32"), shop.keys[:3]
    with pytest.raises(InvalidFieldError, match=r"item\.duration: got 1; allowed: 3 values"):
        shop.found(known, ids, {"duration": [1.0]})
    with pytest.raises(InvalidFieldError, match=r"item\.duration: got 'string'; allowed: numbers"):
        shop.found(known, ids, {"duration": ["long", "short", "x"]})


def test_numbers_that_float16_does_not_hold_are_refused(shop: Shop) -> None:
    keys = np.array([1])
    assert torch.isfinite(shop.scorer.known_items(keys, {"duration": [9.0]}, "float16").rows).all()
    with torch.no_grad():
        weight = shop.scorer._network._varying
        kept = weight.clone()
        weight.mul_(1e9)
        with pytest.raises(InvalidFieldError, match="item_rows: got 'float16'; allowed: float32"):
            shop.known("float16")
        weight.copy_(kept)


def test_rows_of_a_file_score_as_those_in_memory(shop: Shop, tmp_path: Path) -> None:
    """One file for what the rows follow from: another scorer, other items or another precision have their own."""
    files = RowFiles(tmp_path)
    own, mapped = shop.known("float16"), shop.known("float16", files=files)
    np.testing.assert_array_equal(mapped.rows.numpy(), own.rows.numpy())
    ids = np.append(shop.keys, 10**12)
    same(shop.found(mapped, ids, {}), shop.found(own, ids, {}), 0)
    shop.known("float16", files=files)
    assert len(list(tmp_path.glob("*.npy"))) == 1
    shop.known("float32", files=files)
    shop.known("float16", ("duration",), files)
    shop.scorer.known_items(shop.keys[:5], {}, "float16", files=files)
    assert len(list(tmp_path.glob("*.npy"))) == 4


def test_without_a_directory_rows_stay_in_the_process(shop: Shop, tmp_path: Path, caplog: pytest.LogCaptureFixture
                                                      ) -> None:
    (tmp_path / "file").touch()
    known = shop.known("float16", files=RowFiles(tmp_path / "file" / "rows"))
    assert known.rows is not None
    assert "the rows of items are kept in this process alone" in caplog.text


@pytest.mark.parametrize("apart", [(), ("duration",)])
def test_a_new_catalogue_computes_what_changed(shop: Shop, tmp_path: Path, apart: tuple[str, ...],
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    """Some items are gone, some new, one is another; the rows are those of a build of all."""
    files, places = RowFiles(tmp_path), np.arange(len(shop.catalogue))
    columns, keys = shop.catalogue.features(places), shop.catalogue.keys
    before = shop.scorer.known_items(keys[5:], {name: column[5:] for name, column in columns.items()}, "float16", apart,
                                     files)
    new = {name: column[:-5].copy() for name, column in columns.items()}
    new["duration"][20] *= 1000.0
    new["tag"][30] = 10**9
    computed: list[int] = []
    item_rows = RequestNetwork.item_rows

    def counted(self: RequestNetwork, items: Any, *absent: Any) -> torch.Tensor:
        computed.append(len(items[0]))
        return item_rows(self, items, *absent)

    with monkeypatch.context() as patch:
        patch.setattr(RequestNetwork, "item_rows", counted)
        changed = shop.scorer.known_items(keys[:-5], new, "float16", apart, files, before)
    assert sum(computed) == 5 + 1 + (not apart)
    whole = shop.scorer.known_items(keys[:-5], new, "float16", apart)
    np.testing.assert_allclose(changed.rows.numpy(), whole.rows.numpy(), rtol=2e-3, atol=1e-6)
    computed.clear()
    with monkeypatch.context() as patch:
        patch.setattr(RequestNetwork, "item_rows", counted)
        shop.scorer.known_items(keys[:-5], new, "float32", apart, before=changed)
    assert sum(computed) == len(changed.ids)  # rows of another precision are no help
