"""A team's own exposures as Parquet: read back as written, and bad rows counted."""

from __future__ import annotations

import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, write_deltalake

from recfuse.config import InvalidFieldError
from recfuse.logs.exposure_files import read_exposures, read_known, write_exposures
from recfuse.scenes.dataset import label_matrix
from recfuse.scenes.histories import NO_ITEM, row_histories
from recfuse.scenes.registry import Registry, Scene
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


def test_labels_are_those_of_the_rows_page(tmp_path: Path) -> None:
    """Null where the page lacks the task, or never logs it; a null beside values of the same page is a fault."""
    registry = Registry(numbers={"paid": 50.0}, scenes=(
        Scene(name="home", tasks=("open", "buy")), Scene(name="cart", tasks=("buy", "paid")),
        Scene(name="track", tasks=("open",), optional_tasks=("buy",))))
    write(tmp_path, user_id=list(range(8)), item_id=[7] * 8, ts=pa.array(range(8), pa.timestamp("us", "UTC")),
          scene=["home", "home", "cart", "cart", "cart", "track", "track", "other"], click=None, order=None,
          open=[True, None, None, None, None, False, True, None], buy=[1.0, 0, 0, 1, 1, None, None, None],
          paid=pa.array([None, None, "12.50", None, "-1", None, None, None]).cast(pa.decimal128(9, 2)))
    exposures = read_logs(str(tmp_path), "native", registry=registry).exposures
    assert exposures.account.quarantined == {"open is not 0 or 1": 1, "paid is not a number ≥ 0": 2}
    assert exposures.quarantine["reason"].to_pylist() == ["open is not 0 or 1"] + ["paid is not a number ≥ 0"] * 2
    assert exposures.rows.select(["user_id", "open", "buy", "paid"]).to_pydict() == {
        "user_id": [0, 2, 5, 6, 7], "open": [1, 0, 0, 1, 0], "buy": [1, 0, 0, 0, 0], "paid": [0, 12.5, 0, 0, 0]}
    assert exposures.opened == "open"
    assert label_matrix(exposures.filter(np.arange(5) < 4).rows, registry).tolist() == [
        [1, 1, 0], [0, 0, .25], [0, 0, 0], [1, 0, 0]]


def test_an_order_needs_a_click_only_where_the_page_has_clicks(tmp_path: Path) -> None:
    write(tmp_path, scene=["cart", "mail"], click=[0, None], order=[1, 1])
    tasks = {"cart": ("click", "order"), "mail": ("order",)}
    exposures = read_exposures(str(tmp_path), ["click", "order"], tasks=tasks)
    assert exposures.account.quarantined == {"order without its click": 1}
    assert exposures.rows["scene"].to_pylist() == ["mail"]


HISTORIES = {
    "nulls": (pa.array([1, 1, BIG, None]), pa.array([[8, None], None, [], [7]], pa.list_(pa.int64()))),
    "lists of one user": (pa.array([1, BIG, 1]), pa.array([[8], [], [None]], pa.large_list(pa.int64()))),
    "text": (pa.array(["1", str(BIG)]), pa.array([["8"], ["", None]])),
}


@pytest.mark.parametrize("kind", HISTORIES)
def test_histories_may_have_gaps(tmp_path: Path, kind: str) -> None:
    users, items = HISTORIES[kind]
    pq.write_table(pa.table({"user_id": users, "items": items}), write(tmp_path) / "history.parquet")
    history = read_exposures(str(tmp_path), ["click"]).history
    assert history.to_pydict() == {"user_id": [1], "items": [[8]]}
    assert row_histories(read_exposures(str(tmp_path), ["click"]), 2).tolist() == [[NO_ITEM, 8], [NO_ITEM, NO_ITEM]]


@pytest.mark.parametrize(("table", "message"), [
    (pa.table({"user_id": [1]}), r"history.items: got \['user_id'\]; allowed: a column items"),
    (pa.table({"user_id": [1], "items": ["7,8"]}), "history.items: got 'string'; allowed: lists of item ids"),
    (pa.table({"user_id": [1], "items": [[1.5]]}), "history.items: got 'double'; allowed: 64-bit integers or strings"),
])
def test_bad_histories_are_named(tmp_path: Path, table: pa.Table, message: str) -> None:
    pq.write_table(table, write(tmp_path) / "history.parquet")
    with pytest.raises(InvalidFieldError, match=message):
        read_exposures(str(tmp_path), ["click"])


def test_of_two_rows_about_one_user_the_last_counts(tmp_path: Path) -> None:
    users = pa.table({"user_id": ["1", None, str(BIG), "1"], "age": [20, 30, 40, 50]})
    pq.write_table(users, write(tmp_path) / "users.parquet")
    assert read_exposures(str(tmp_path), ["click"]).users.to_pydict() == {"user_id": [BIG, 1], "age": [40, 50]}
    assert read_known(str(tmp_path)).users.to_pydict() == {"user_id": [str(BIG), "1"], "age": [40, 50]}


@pytest.mark.parametrize("day", [["2001-09-08", "2001-09-09"], ["20010908", "20010909"], [20010908, None],
                                 [datetime.date(2001, 9, 8), None]], ids=str)
def test_days_are_taken_as_they_are_written(tmp_path: Path, day: list[object]) -> None:
    exposures = read_exposures(str(write(tmp_path, day=day, hour=["23", None])), ["click"])
    assert exposures.rows.select(["day", "hour"]).to_pydict() == {"day": [20010908, 20010909], "hour": [23, 2]}
    with pytest.raises(InvalidFieldError, match=r"rows\.day: got 'string'; allowed: integers yyyymmdd, or dates"):
        read_exposures(str(write(tmp_path, day=["monday", "tuesday"])), ["click"])
