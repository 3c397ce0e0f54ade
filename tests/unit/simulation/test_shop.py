"""The shop's generator: its truth, its pages, its catalogue, and how near the scorer comes to the best possible AUC."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recfuse.config import InvalidFieldError, load
from recfuse.scenes.config import TrainScenesConfig
from recfuse.scenes.dataset import split_by_time
from recfuse.scenes.training.fit import train
from recfuse.scenes.training.problem import prepare
from recfuse.serving.catalogue import Catalogue
from recfuse.serving.scenes import fuse_tasks
from recfuse.simulation import shop
from recfuse.stats.ranking import auc


def test_labels_come_from_the_truth() -> None:
    """Within each page the rates are the mean probabilities, to four standard errors; an order implies its click."""
    exposures, truth = shop.generate(seed=1, rows=40_000)
    page = np.array(exposures.rows["scene"].to_pylist())
    assert set(page) == {"cart", "empty_cart", "order_details", "order_tracking"}
    for task in ("click", "order"):
        label, p = exposures.column(task), getattr(truth, task)
        for name in shop.PAGES:
            own = page == name
            error = np.sqrt((p[own] * (1 - p[own])).sum()) / own.sum()
            assert abs(label[own].mean() - p[own].mean()) < 4 * error
    assert (exposures.column("click")[exposures.column("order") == 1] == 1).all()
    assert (truth.order <= truth.click).all()


def test_the_same_seed_gives_the_same_shop() -> None:
    first, again, other = (shop.generate(seed=seed, rows=500) for seed in (3, 3, 4))
    assert first[0].rows.equals(again[0].rows)
    assert first[0].items.equals(again[0].items)
    np.testing.assert_array_equal(first[1].order, again[1].order)
    assert not first[0].rows.equals(other[0].rows)


def test_the_catalogue_is_served_as_it_is() -> None:
    exposures, _ = shop.generate(rows=300)
    catalogue = Catalogue(exposures.items)
    (entry,) = catalogue.entries(catalogue.positions(np.array([7])))
    assert entry is not None
    assert 0 < entry["price"] <= entry["price_before"]
    assert entry["image"] == "images/7.webp"
    assert set(entry["parameters"]) == {"kind", "colour", "reduced", "rating"}


def test_the_scorer_comes_near_the_best_possible_auc_and_is_served(tmp_path: Path) -> None:
    """The settings of the demo, on half of its epochs; nothing can order the test day better than the truth does."""
    torch.set_num_threads(1)
    config = load(TrainScenesConfig, Path(__file__).parents[3] / "jobs" / "config" / "shop.yaml")
    exposures, truth = shop.generate()
    split = split_by_time(exposures, config.training_share)
    training = config.training.replace(epochs=2, bfloat16=False)
    problem = prepare(exposures, split.training, shop.registry(shop.PAGES), config.model, training, config.features)
    scorer = train(problem, tmp_path)
    scores = scorer.score_exposures(exposures)
    for task, gap in (("click", .045), ("order", .06)):
        label = exposures.column(task)[split.test]
        best, mine = auc(label, getattr(truth, task)[split.test]), auc(label, scores[task][split.test])
        assert best - gap < mine < best

    catalogue = Catalogue(exposures.items)
    place = catalogue.positions(np.arange(50))
    found = scorer.score("empty_cart", exposures.users.slice(5, 1).to_pylist()[0],
                         {**catalogue.features(place), "item_id": np.arange(50)})
    assert not any(found.unknown.values())
    best = np.argsort(-fuse_tasks(found.probabilities, {"click": .8, "order": .2}, "mean"))[:3]
    for entry in catalogue.entries(place[best]):
        assert entry is not None
        assert set(entry) == {"price", "price_before", "image", "parameters"}


def test_bad_sizes_are_named() -> None:
    with pytest.raises(InvalidFieldError, match="days: got 1; allowed: an integer ≥ 2"):
        shop.generate(days=1)
