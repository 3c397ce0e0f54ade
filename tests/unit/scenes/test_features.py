"""Features: exact ids, the unknown bucket, and nothing learned from rows that are not for training."""

from __future__ import annotations

import tracemalloc
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest

from recfuse.config import InvalidFieldError
from recfuse.logs.account import Account
from recfuse.logs.exposures import LABELS, Exposures
from recfuse.scenes.columns import align, read_integers, read_numbers
from recfuse.scenes.encoder import FeatureEncoder, FittedFeature
from recfuse.scenes.features import Feature, declared_features
from recfuse.scenes.histories import NO_ITEM, row_histories

BIG = 2**53


def small(rows: list[tuple[int, int, int, int]], history: dict[int, list[int]] | None = None) -> Exposures:
    """Rows of (user, item, ts in µs, click) in scene a; ages of users 1..4 are 10..40."""
    user, item, ts, click = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    labels = {label: np.zeros(len(rows), np.int8) for label in LABELS} | {"click": click.astype(np.int8)}
    table = pa.table({"user_id": user, "item_id": item, "scene": ["a"] * len(rows),
                      "ts": pa.array(ts).cast(pa.timestamp("us", "UTC")), "day": np.full(len(rows), 20220101, np.int32),
                      "hour": np.zeros(len(rows), np.int8), "watch_time": np.zeros(len(rows), np.float32), **labels})
    history = history or {}
    return Exposures(
        rows=table, account=Account(len(rows), len(rows)), quarantine=table.slice(0, 0),
        users=pa.table({"user_id": [1, 2, 3, 4], "age": pa.array([10.0, 20.0, 30.0, 40.0], pa.float32()),
                        "city": ["x", "y", None, "z"]}),
        items=pa.table({"item_id": [7, 8, BIG, BIG + 1], "author_id": [70, 80, BIG, BIG + 1]}),
        history=pa.table({"user_id": pa.array(list(history), pa.int64()),
                          "items": pa.array(list(history.values()), pa.list_(pa.int64()))}))


FEATURES = (Feature(name="user_id", source="user", minimum_count=1),
            Feature(name="city", source="user", minimum_count=1), Feature(name="age", source="user", kind="numeric"),
            Feature(name="item_id", source="item", minimum_count=1))


def fit(exposures: Exposures, training: list[bool], features=FEATURES, length: int = 0) -> FeatureEncoder:
    return FeatureEncoder.fit(features, exposures, np.array(training), length)


def test_ids_are_ranges_of_one_table() -> None:
    encoder = fit(small([(1, 7, 0, 1), (2, 8, 1, 0)]), [True, True])
    user, city, _, item = encoder.fitted
    # Row 0 pads; then an unknown bucket and the categories of each feature.
    assert (user.offset, user.size, city.offset, city.size, item.offset, item.size) == (1, 3, 4, 3, 7, 3)
    assert encoder.table_rows == 10
    encoded = encoder.encode("user", {"user_id": [2, 99], "city": ["y", "nowhere"], "age": [15.0, None]}, 2)
    assert encoded.ids.tolist() == [[3, 6], [1, 4]]
    assert encoded.ids.dtype == np.int32
    assert encoded.numbers.tolist() == [[0.0], [0.0]]  # the mean of 10 and 20, and a missing value
    assert encoded.unknown == {"user_id": 1, "city": 1, "age": 1}


def test_numbers_alone_are_refused() -> None:
    with pytest.raises(InvalidFieldError, match=r"features: got \['age'\]; allowed: at least one categorical"):
        fit(small([(1, 7, 0, 1)]), [True], (Feature(name="age", source="user", kind="numeric"),))


def test_64_bit_ids_stay_exact() -> None:
    encoder = fit(small([(1, BIG, 0, 1), (1, BIG + 1, 1, 0)]), [True, True])
    ids = encoder.encode("item", {"item_id": np.array([BIG, BIG + 1, BIG + 2])}, 3).ids[:, 0]
    assert (ids - encoder.fitted[-1].offset).tolist() == [1, 2, 0]
    # A client may send digits in strings: JSON of other languages has no 64-bit integers.
    as_text = encoder.encode("item", {"item_id": [str(BIG + 1), "x", None]}, 3).ids[:, 0]
    assert (as_text - encoder.fitted[-1].offset).tolist() == [2, 0, 0]


def test_rare_categories_share_the_unknown_bucket() -> None:
    features = (Feature(name="item_id", source="item", minimum_count=2),)
    encoder = fit(small([(1, 7, 0, 1), (1, 7, 1, 1), (1, 8, 2, 0)]), [True] * 3, features)
    assert encoder.fitted[0].values.tolist() == [7]


def test_nothing_is_fitted_on_rows_outside_training() -> None:
    """Two exposures that differ only outside the training rows give the same encoder."""
    train = [(1, 7, 0, 1), (2, 8, 1, 0)]
    mask = [True, True, False, False]
    features = (*FEATURES, Feature(name="age", source="user", kind="bucketed", buckets=3),
                Feature(name="author_id", source="item", minimum_count=1))
    one = fit(small([*train, (3, BIG, 2, 1), (3, BIG, 3, 1)]), mask, features)
    other = fit(small([*train, (4, BIG + 1, 2, 0), (1, 7, 3, 0)]), mask, features)
    for a, b in zip(one.fitted, other.fitted, strict=True):
        assert a.values.tolist() == b.values.tolist()
        assert (a.offset, a.mean, a.std) == (b.offset, b.mean, b.std)
    assert one.fitted[2].mean == 15.0  # of the ages 10 and 20 alone


def test_history_is_earlier_than_its_row() -> None:
    """User 1: history (5, 6), clicks 7 at t = 10 and 8 at t = 20; what happens at a row's own time is not before it."""
    exposures = small([(1, 7, 10, 1), (2, 7, 10, 1), (1, 8, 20, 1), (1, 9, 20, 1), (1, 7, 30, 0), (1, 3, 40, 0)],
                      {1: [5, 6], 3: [4]})
    histories = row_histories(exposures, 4)
    n = NO_ITEM
    assert histories.tolist() == [[n, n, 5, 6], [n, n, n, n], [n, 5, 6, 7], [n, 5, 6, 7], [6, 7, 8, 9], [6, 7, 8, 9]]


def test_future_rows_change_no_history() -> None:
    rows = [(1, 7, 10, 1), (1, 8, 20, 1), (2, 8, 25, 1)]
    future = [(1, 9, 30, 1), (2, 7, 31, 1)]
    now = row_histories(small(rows, {1: [5]}), 3)
    later = row_histories(small(rows + future, {1: [5]}), 3)
    assert now.tolist() == later[:3].tolist()


def test_histories_match_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    rows = [(int(u), int(i), int(t), int(c)) for u, i, t, c in zip(
        rng.integers(1, 5, 60), rng.integers(1, 9, 60), np.sort(rng.integers(0, 30, 60)), rng.integers(0, 2, 60),
        strict=True)]
    before = {1: [3, 4], 2: [], 4: [8]}
    expected = []
    for user, _, ts, _ in rows:
        seen = before.get(user, []) + [i for u, i, t, c in rows if u == user and t < ts and c]
        expected.append(([NO_ITEM] * 5 + seen)[-5:])
    assert row_histories(small(rows, before), 5).tolist() == expected


def test_items_unknown_to_training_are_not_pooled() -> None:
    encoder = fit(small([(1, 7, 0, 1)]), [True], length=3)
    assert encoder.encode_history(np.array([[NO_ITEM, 8, 7]])).tolist() == [[0, 0, encoder.fitted[-1].offset + 1]]


def test_declared_features_take_every_column_by_its_type() -> None:
    declared = {(f.name, f.source, f.kind) for f in declared_features(small([(1, 7, 0, 1)]))}
    assert declared == {("user_id", "user", "categorical"), ("age", "user", "bucketed"), ("age", "user", "numeric"),
                        ("city", "user", "categorical"), ("item_id", "item", "categorical"),
                        ("author_id", "item", "categorical"), ("scene", "context", "categorical"),
                        ("hour", "context", "categorical")}


def test_align_gives_nulls_for_keys_that_a_table_lacks() -> None:
    aligned = align(small([(1, 7, 0, 1)]).users, "user_id", np.array([4, 9]))
    assert aligned.to_pylist() == [{"user_id": 4, "age": 40.0, "city": "z"}, {"user_id": 9, "age": None, "city": None}]


@pytest.mark.parametrize(("features", "message"), [
    ((Feature(name="height", source="user"),), r"users.height: got .*allowed: a column height"),
    ((Feature(name="age", source="user"),), r"user.age: got .*float.*allowed: integers or strings"),
    ((Feature(name="city", source="user", kind="numeric"),), r"user.city: got .*allowed: numbers"),
    ((Feature(name="city", source="user"),) * 2, "features: got .*each column once"),
])
def test_bad_columns_are_named(features: tuple[Feature, ...], message: str) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        fit(small([(1, 7, 0, 1)]), [True], features)


def test_no_training_rows_and_history_without_items_are_errors() -> None:
    with pytest.raises(InvalidFieldError, match="training: got 0; allowed: at least one training row"):
        fit(small([(1, 7, 0, 1)]), [False])
    with pytest.raises(InvalidFieldError, match=r"features: .*a categorical item feature item_id"):
        fit(small([(1, 7, 0, 1)]), [True], FEATURES[:1], length=3)


@pytest.mark.parametrize(("change", "message"), [
    ({"name": " "}, "name: got ' '"), ({"source": "shop"}, "source: got 'shop'"),
    ({"kind": "text"}, "kind: got 'text'"),
    ({"minimum_count": 0}, "minimum_count: got 0"), ({"buckets": 1}, "buckets: got 1"),
])
def test_bad_declarations_are_named(change: dict, message: str) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        Feature(name="a", source="user").replace(**change)


def test_hashed_ids_need_no_vocabulary_and_stay_exact() -> None:
    """Unseen values fall into some bucket, always the same; neighbouring 64-bit ids are told apart; null is unknown."""
    features = (Feature(name="item_id", source="item", hash_buckets=1_000),
                Feature(name="city", source="user", hash_buckets=50))
    encoder = fit(small([(1, 7, 0, 1), (2, 8, 1, 0)]), [True, True], features)
    user, item = encoder.fitted
    assert (user.size, item.size) == (51, 1_001)
    ids = encoder.encode("item", {"item_id": np.array([BIG, BIG + 1, BIG, -1])}, 4).ids[:, 0] - item.offset
    assert ids[0] == ids[2] != ids[1]
    assert ((ids >= 1) & (ids <= 1_000)).all()
    cities = encoder.encode("user", {"city": ["x", None, "never seen"]}, 3)
    assert cities.ids[1, 0] == user.offset
    assert cities.unknown == {"city": 1}
    # 20,000 ids fill 1,000 buckets evenly: 20 ± a few deviations of 4.5 each.
    spread = np.bincount(encoder.encode("item", {"item_id": np.arange(20_000)}, 20_000).ids[:, 0])
    assert spread.max() < 50


def test_hashed_histories_pad_what_is_absent() -> None:
    features = (Feature(name="item_id", source="item", hash_buckets=10),)
    encoder = fit(small([(1, 7, 0, 1)]), [True], features, length=2)
    ids = encoder.encode_history(np.array([[NO_ITEM, 7]]))
    assert ids[0, 0] == 0
    assert ids[0, 1] > 0


def test_hash_buckets_are_for_categories() -> None:
    for change in ({"hash_buckets": 1}, {"hash_buckets": 5, "kind": "numeric"}):
        with pytest.raises(InvalidFieldError, match="hash_buckets: got "):
            Feature(name="a", source="user", **change)


def test_text_costs_its_different_values_not_the_longest() -> None:
    """A description of a million letters beside many short ones; Unicode, and a NUL at the end, stay exact."""
    texts = ["x" * 10**6, "x", "x\0", "ü", None, *["y"] * 1_000]
    rows = pa.table({"text": texts})
    column = FittedFeature(Feature(name="text", source="context"), np.array(["x", "x\0", "y", "ü"], object))
    tracemalloc.start()
    ids, unknown = column.ids(rows["text"])
    assert tracemalloc.get_traced_memory()[1] < 20 * 10**6
    tracemalloc.stop()
    assert ids[:6].tolist() == [-1, 0, 1, 3, -1, 2]
    assert unknown.sum() == 2


@pytest.mark.parametrize(("values", "expected"), [
    ([2**53 + 1, None], [2.0**53, 0]), (np.array([2**63 + 5, 1], np.uint64), [2.0**63, 1]),
    ([2**63, 1.5], [2.0**63, 1.5]), ([True, 2], [1, 2]), (pa.array([2**53 + 1, 2**60]), [2.0**53, 2.0**60]),
    (pa.array([Decimal("9.95"), None]), [9.95, 0]), (pa.array([True, False]), [1, 0]),
])
def test_numbers_of_any_kind_are_taken(values: object, expected: list[float]) -> None:
    numbers, _ = read_numbers(values, Feature(name="n", source="item", kind="numeric"))
    assert numbers.tolist() == expected


@pytest.mark.parametrize(("values", "expected"), [
    ([2**64 - 1, 5], [-1, 5]), (pa.array([2**64 - 1, None], pa.uint64()), [-1, None]), ([True, False], [1, 0]),
    (["7", "007", str(2**63 - 1), str(2**63), "x", None], [7, 7, 2**63 - 1, None, None, None]),
    (pa.array(["7", "8"]).dictionary_encode(), [7, 8]),
])
def test_integer_categories_of_any_kind_are_taken(values: object, expected: list[int | None]) -> None:
    numbers, valid = read_integers(values, Feature(name="n", source="item"))
    assert [number if there else None for number, there in zip(numbers.tolist(), valid, strict=True)] == expected
