"""A team's own exposures as Parquet: read back as written, and bad rows counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from recfuse.config import InvalidFieldError
from recfuse.logs.exposure_files import read_exposures, write_exposures
from recfuse.scenes.sources import read_logs
from recfuse.simulation import shop

BIG = 2**53 + 1


def write(root: Path, **columns: object) -> Path:
    rows = {"user_id": [1, BIG], "item_id": [7, 8], "scene": ["cart", "cart"],
            "ts": pa.array([10**15, 10**15 + 3_600_000_000], pa.timestamp("us", "UTC")), "click": [1, 0],
            "order": [0, 0]} | columns
    pq.write_table(pa.table({name: values for name, values in rows.items() if values is not None}),
                   root / "rows.parquet")
    pq.write_table(pa.table({"user_id": [1, BIG]}), root / "users.parquet")
    pq.write_table(pa.table({"item_id": [7, 8]}), root / "items.parquet")
    return root


@pytest.mark.parametrize("prefix", ["", "file://"])
def test_exposures_survive_the_way_through_files(tmp_path: Path, prefix: str) -> None:
    exposures, _ = shop.generate(rows=400)
    write_exposures(exposures, f"{prefix}{tmp_path}/shop")
    back = read_exposures(f"{prefix}{tmp_path}/shop", ["click", "order"])
    assert back.rows.to_pydict() == exposures.rows.to_pydict()
    assert back.users.equals(exposures.users)
    assert back.items.equals(exposures.items)
    assert back.account.kept == 400
    source = read_logs(f"{prefix}{tmp_path}/shop", "native", registry=shop.registry(shop.PAGES))
    assert source.exposures.rows.equals(back.rows)


def test_day_and_hour_come_from_the_time(tmp_path: Path) -> None:
    rows = read_exposures(str(write(tmp_path)), ["click"]).rows  # 10¹⁵ µs: 9 September 2001, 01:46:40 UTC
    assert rows["day"].to_pylist() == [20010909, 20010909]
    assert rows["hour"].to_pylist() == [1, 2]
    assert rows["user_id"].to_pylist() == [1, BIG]


def test_bad_rows_are_quarantined_and_counted(tmp_path: Path) -> None:
    n = 5
    write(tmp_path, user_id=[1, None, 2, 3, 4], item_id=np.arange(n), scene=["a", "a", None, "a", "a"],
          ts=pa.array(np.arange(n), pa.timestamp("us", "UTC")), click=[1, 1, 1, 9, 0], order=[1, 1, 1, 0, 1])
    exposures = read_exposures(str(tmp_path), ["click", "order"])
    assert exposures.account.quarantined == {"user_id is null": 1, "scene is null": 1, "click is not 0 or 1": 1,
                                             "order without its click": 1}
    assert (exposures.account.rows_in, exposures.account.kept) == (5, 1)
    repaired = read_exposures(str(tmp_path), ["click", "order"], "repair")
    assert repaired.column("click").tolist() == [1, 1]


@pytest.mark.parametrize(("columns", "message"), [
    ({"user_id": [1.5, 2.5]}, "rows.user_id: got 'double'; allowed: 64-bit integers or strings"),
    ({"item_id": [b"a", b"b"]}, "rows.item_id: got 'binary'; allowed: 64-bit integers or strings"),
    ({"scene": None}, r"rows.scene: got .*allowed: a column scene"),
    ({"click": None}, r"rows.click: got .*allowed: a label column click"),
    ({"click": ["yes", "no"]}, "rows.click: got 'string'; allowed: numbers"),
    ({"click": [5, 5]}, r"rows: got 0; allowed: at least one row that is not quarantined"),
])
def test_bad_columns_are_named(tmp_path: Path, columns: dict, message: str) -> None:
    with pytest.raises(InvalidFieldError, match=message):
        read_exposures(str(write(tmp_path, **columns)), ["click"])


def test_missing_files_and_registries_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidFieldError, match=r"rows: got 'missing'; allowed: rows or rows.parquet"):
        read_exposures(str(tmp_path), ["click"])
    with pytest.raises(InvalidFieldError, match="registry: got None; allowed: scenes and their tasks"):
        read_logs(str(tmp_path), "native")
    (write(tmp_path) / "users.parquet").unlink()
    with pytest.raises(InvalidFieldError, match=r"users\.parquet: got 'missing'"):
        read_exposures(str(tmp_path), ["click"])


def test_rows_in_parts_are_read_with_the_columns_of_their_directories(tmp_path: Path) -> None:
    """Hidden files and files that are no Parquet are left out; the scene stands in the directory's name alone."""
    root = write(tmp_path, scene=None)
    rows = pq.read_table(root / "rows.parquet")
    (root / "rows.parquet").unlink()
    for scene, part in (("cart", rows.slice(0, 1)), ("home", rows.slice(1))):
        (root / "rows" / f"scene={scene}").mkdir(parents=True)
        pq.write_table(part, root / "rows" / f"scene={scene}" / "part-0.PARQUET")
    (root / "rows" / "_SUCCESS").write_text("")
    (root / "rows" / "notes.txt").write_text("no rows")
    assert read_exposures(str(root), ["click"]).rows["scene"].to_pylist() == ["cart", "home"]


def test_rows_of_a_delta_table_are_those_that_it_has(tmp_path: Path) -> None:
    root = tmp_path / "a b#%=é"
    root.mkdir()
    write(root)
    rows = pq.read_table(root / "rows.parquet")
    (root / "rows.parquet").unlink()
    write_deltalake((root / "rows").as_uri(), rows.slice(0, 1))
    write_deltalake((root / "rows").as_uri(), rows.slice(1), mode="append")
    DeltaTable((root / "rows").as_uri()).optimize.compact()
    assert read_exposures(str(root), ["click"]).account.rows_in == 2
    DeltaTable((root / "rows").as_uri()).delete("user_id = 1")
    assert read_exposures(str(root), ["click"]).rows["user_id"].to_pylist() == [BIG]


def test_what_carries_a_value_without_loss_is_taken(tmp_path: Path) -> None:
    times = pa.array([10**18 + 7, 10**18 + 3_600_000_000_000], pa.timestamp("ns"))
    rows = read_exposures(str(write(tmp_path, scene=[3, 4], ts=times)), ["click"]).rows
    assert rows["scene"].to_pylist() == ["3", "4"]
    assert rows["ts"].cast(pa.int64()).to_pylist() == [10**15, 10**15 + 3_600_000_000]
