"""The embedded exposures: what they declare is what they hold."""

import numpy as np
import pyarrow as pa
import pytest

from recfuse.config import InvalidFieldError
from recfuse.logs.exposures import LABELS, ROWS_SCHEMA
from recfuse.simulation.exposures import SCENES, generate, generate_with_truth
from recfuse.stats.ranking import auc


@pytest.fixture(scope="module")
def source():
    return generate_with_truth(seed=1, rows=40_000)


def test_rows_have_the_schema_and_the_order_of_every_source(source):
    exposures, _ = source
    assert exposures.rows.schema == ROWS_SCHEMA
    assert exposures.account.rows_in == exposures.account.kept == exposures.rows.num_rows == 40_000
    ts = exposures.rows["ts"].cast(pa.int64()).to_numpy()
    assert (np.diff(ts) >= 0).all()
    local = (ts // 1_000_000 + 8 * 3_600) // 3_600 % 24
    np.testing.assert_array_equal(local, exposures.column("hour"))
    assert len(np.unique(exposures.column("day"))) == 11


def test_every_scene_has_its_declared_rates(source):
    exposures, truth = source
    scene = exposures.rows["scene"].to_numpy(zero_copy_only=False)
    for name, declared in SCENES.items():
        mine = scene == name
        for label in LABELS:
            rate, expected = getattr(declared, label), truth.probabilities[label][mine].mean()
            assert expected == pytest.approx(rate, rel=1e-6), (name, label)
            # Four standard errors of a mean of Bernoulli draws.
            error = 4 * (rate * (1 - rate) / mine.sum()) ** .5
            assert exposures.column(label)[mine].mean() == pytest.approx(rate, abs=error), (name, label)


def test_rare_behaviours_are_rare_and_need_a_click(source):
    exposures, _ = source
    clicked = exposures.column("click") == 1
    for label in ("long_view", "like", "follow", "comment", "forward"):
        assert not exposures.column(label)[~clicked].any()
    for label in ("comment", "forward", "follow", "hate"):
        assert exposures.column(label).mean() < .005


def test_watch_time_follows_from_the_response(source):
    exposures, _ = source
    watch, click, long_view = (exposures.column(name) for name in ("watch_time", "click", "long_view"))
    assert (watch >= 0).all()
    assert watch[long_view == 1].mean() > watch[(click == 1) & (long_view == 0)].mean() > watch[click == 0].mean()
    hidden = (exposures.rows["scene"].to_numpy(zero_copy_only=False) == "0") & (click == 0)
    assert (watch[hidden] == 0).all()


def test_the_truth_orders_the_labels(source):
    exposures, truth = source
    assert auc(exposures.column("click"), truth.probabilities["click"]) > .75


def test_users_items_and_history_are_whole(source):
    exposures, _ = source
    for table, key in ((exposures.users, "user_id"), (exposures.items, "item_id")):
        ids = table[key].to_numpy()
        assert len(np.unique(ids)) == len(ids)
        assert np.isin(exposures.column(key), ids).all()
    assert exposures.items["duration"].type == pa.float32()
    assert exposures.history["items"].type == pa.list_(pa.int64())
    flat = exposures.history["items"].combine_chunks().flatten().to_numpy()
    assert np.isin(flat, exposures.items["item_id"].to_numpy()).all()


def test_the_seed_decides_everything():
    first, again, other = (generate(seed=seed, users=50, items=40, rows=500) for seed in (5, 5, 6))
    assert first.rows.equals(again.rows)
    assert first.users.equals(again.users)
    assert first.items.equals(again.items)
    assert not first.rows.equals(other.rows)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"users": 3}, "users: got 3; allowed: an integer ≥ 10"),
    ({"items": 5}, "items: got 5; allowed: an integer ≥ 20"),
    ({"rows": 10}, "rows: got 10; allowed: an integer ≥ 100"),
    ({"days": 1}, r"days: got 1; allowed: an integer in \[2, 31\]"),
])
def test_bad_sizes_are_refused(arguments, message):
    with pytest.raises(InvalidFieldError, match=message):
        generate(**arguments)
