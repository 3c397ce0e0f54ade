"""The catalogue."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recfuse.config import InvalidFieldError
from recfuse.serving import catalogue as catalogue_module
from recfuse.serving.catalogue import Catalogue
from recfuse.serving.formats import encode

TABLE = pa.table({"item_id": [30, 10, 20], "price": [3.0, 1.0, None], "author": [7, 8, 9], "tag": ["x", None, "z"],
                  "sizes": [[1, 2], [], None]})


def test_lookup_by_hand() -> None:
    catalogue = Catalogue(TABLE)
    positions = catalogue.positions(np.array([20, 99, 30, -1, 31]))
    assert positions.tolist() == [1, -1, 2, -1, -1]
    features = catalogue.features(positions[:3])
    np.testing.assert_array_equal(features["price"], [np.nan, np.nan, 3.0])
    assert features["author"].tolist() == [9, None, 7]
    assert features["tag"].tolist() == ["z", None, "x"]
    assert "sizes" not in features
    assert catalogue.features(np.array([0, 2]))["author"].dtype == np.int64
    assert catalogue.entries(positions[:3].tolist()) == [
        {"price": None, "price_before": None, "image": None, "parameters": {"author": 9, "tag": "z", "sizes": None}},
        None,
        {"price": 3.0, "price_before": None, "image": None, "parameters": {"author": 7, "tag": "x", "sizes": [1, 2]}},
    ]


def test_lookups_do_not_change_the_catalogue() -> None:
    catalogue = Catalogue(TABLE)
    for _ in range(2):
        catalogue.features(catalogue.positions(np.array([10, 99])))
    assert catalogue.features(np.array([0]))["price"].tolist() == [1.0]


def test_ready_entries_are_the_same_json(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue_module, "_READY_ENTRIES", 2)  # Fewer than there are items.
    when = datetime.datetime(2026, 1, 2, 3, 4, 5)
    catalogue = Catalogue(TABLE.append_column("listed", pa.array([when, None, when])))
    for positions in ([0, -1, 2], [2, 0, 2], [1, 1], [2, 1, 0], [], [-1]):
        ready = encode({"entries": catalogue.ready_entries(positions)}, packed=False)
        assert ready == encode({"entries": catalogue.entries(positions)}, packed=False)


def test_an_empty_catalogue_knows_nothing() -> None:
    catalogue = Catalogue(TABLE.slice(0, 0))
    positions = catalogue.positions(np.array([1, 2]))
    assert positions.tolist() == [-1, -1]
    assert catalogue.features(positions)["author"].tolist() == [None, None]
    assert catalogue.entries([-1]) == [None]


@pytest.mark.parametrize(("table", "message"), [
    (pa.table({"id": [1]}), "a column item_id"),
    (pa.table({"item_id": [1.5]}), "catalogue.item_id: got 'double'; allowed: 64-bit integers or strings"),
    (pa.table({"item_id": ["a", "7", "a"]}), r"catalogue.item_id: got \['a'\]; allowed: each id once"),
    (pa.table({"item_id": ["a", ""]}), "none missing"),
    (pa.table({"item_id": [1, None]}), "none missing"),
    (pa.table({"item_id": [1, 1]}), "each id once"),
    (pa.table({"item_id": [1], "blob": [b"x"]}), "catalogue.blob"),
])
def test_bad_tables_are_refused(table: pa.Table, message: str) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        Catalogue(table)


def test_files(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "catalogue.parquet")
    assert len(Catalogue.load(tmp_path / "catalogue.parquet")) == 3
    (tmp_path / "bad.parquet").write_bytes(b"nothing")
    for name in ("bad.parquet", "missing.parquet"):
        with pytest.raises(InvalidFieldError, match="a Parquet file"):
            Catalogue.load(tmp_path / name)
