"""Ali-CCP in its official layout: samples that share the features of their user, written here."""

from __future__ import annotations

from pathlib import Path

import pytest

from recfuse.config import InvalidFieldError
from recfuse.logs.ali_ccp import read_exposures
from recfuse.logs.aliexpress import TEST
from recfuse.scenes.sources import read_logs


def features(**fields: int | str) -> str:
    """`f205=7` → field 205, feature 7, value 1.0."""
    return "\x01".join(f"{name[1:]}\x02{value}\x031.0" for name, value in fields.items())


def write(root: Path, train: list[str], test: list[str], common: list[str]) -> Path:
    for name, samples in (("train", train), ("test", test)):
        (root / f"sample_skeleton_{name}.csv").write_text("\n".join(samples) + "\n" if samples else "")
        (root / f"common_features_{name}.csv").write_text("\n".join(common) + "\n")
    return root


COMMON = [f"c1,2,{features(f101=77, f121=5)}", f"c2,2,{features(f101=88, f121=6)}"]
TRAIN = [f"1,1,1,c1,3,{features(f205=7, f206=70, f301=1)}", f"2,0,1,c2,3,{features(f205=8, f206=80, f301=2)}",
         f"3,0,0,c1,2,{features(f205=7, f301=2)}", f"4,1,0,c9,2,{features(f205=9, f301=1)}"]
TEST_ROWS = [f"5,1,0,c2,3,{features(f205=8, f206=80, f301=1, f508=3)}"]


def test_common_features_are_joined(tmp_path: Path) -> None:
    exposures = read_exposures(write(tmp_path, TRAIN, TEST_ROWS, COMMON))
    rows = {(row["user_id"], row["item_id"], row["scene"]): row for row in exposures.rows.to_pylist()}
    assert set(rows) == {(77, 7, "1"), (77, 7, "2"), (88, 8, "1")}
    assert (rows[77, 7, "1"]["click"], rows[77, 7, "1"]["order"]) == (1, 1)
    assert rows[88, 8, "1"]["day"] == TEST
    assert rows[88, 8, "1"]["context_508"] == 3
    assert dict(zip(exposures.users["user_id"].to_pylist(), exposures.users["user_121"].to_pylist(),
                    strict=True)) == {77: 5, 88: 6}
    assert exposures.items.filter(exposures.items["item_id"].to_numpy() == 8)["item_206"].to_pylist() == [80]


def test_orphans_and_samples_without_a_user_are_counted(tmp_path: Path) -> None:
    account = read_exposures(write(tmp_path, TRAIN, TEST_ROWS, COMMON)).account
    assert (account.rows_in, account.kept) == (5, 3)
    assert account.quarantined == {"order without its click": 1, "click is not 0 or 1": 1}


def test_scenes_are_the_positions(tmp_path: Path) -> None:
    source = read_logs(str(write(tmp_path, TRAIN, TEST_ROWS, COMMON)), "ali_ccp", "repair")
    assert source.registry.scene_names == ("1", "2")
    assert {"context_508", "user_121", "item_206", "scene"} <= {feature.name for feature in source.features}


def test_bad_files_are_named(tmp_path: Path) -> None:
    write(tmp_path, TRAIN, TEST_ROWS, COMMON)
    (tmp_path / "common_features_test.csv").unlink()
    with pytest.raises(InvalidFieldError, match=r"exposures: got .*common_features_test.csv'; allowed: a CSV file"):
        read_exposures(tmp_path)
    write(tmp_path, TRAIN, [], COMMON)
    with pytest.raises(InvalidFieldError, match=r"test.csv: got .*(at least one row|readable Parquet or CSV)"):
        read_exposures(tmp_path)
    with pytest.raises(InvalidFieldError, match="layout: got 'movielens'; allowed: kuairand, native"):
        read_logs(str(tmp_path), "movielens")
