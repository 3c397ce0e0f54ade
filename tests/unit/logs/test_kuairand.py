"""KuaiRand's official files → exposures: files that the test writes and, where they are at hand, the real ones."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from recfuse.config import InvalidFieldError
from recfuse.logs.exposures import ROWS_SCHEMA
from recfuse.logs.kuairand import read_exposures

REAL = Path(__file__).resolve().parents[4] / "shared" / "data" / "kuairand_pure"
BIG = 2**53 + 1  # no float64 holds it
FINE = {"user_id": 1, "video_id": 10, "date": 20220425, "hourmin": 1530, "time_ms": 1650900000000, "is_click": 1,
        "is_like": 0, "is_follow": 0, "is_comment": 0, "is_forward": 1, "is_hate": 0, "long_view": 1,
        "play_time_ms": 12500, "duration_ms": 30000, "is_rand": 0, "tab": 4}
USERS = [{"user_id": 1, "user_active_degree": "full_active", "follow_user_num": 7, "onehot_feat4": 3.0},
         {"user_id": BIG, "user_active_degree": "middle", "follow_user_num": 0, "onehot_feat4": None}]
ITEMS = [{"video_id": 10, "author_id": BIG, "video_type": "NORMAL", "tag": "20,43", "video_duration": 30000.0,
          "music_id": 5, "show_cnt": 99.0},
         {"video_id": 11, "author_id": 7, "video_type": "AD", "tag": None, "video_duration": None, "music_id": 6,
          "show_cnt": 98.0}]


def write(path: Path, rows: list[dict]) -> None:
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".csv":
        pyarrow.csv.write_csv(table, path)
    else:
        pyarrow.parquet.write_table(table, path)


def write_logs(directory: Path, rows: list[dict], suffix: str = ".parquet",
               sequences: list[dict] | None = None) -> Path:
    directory.mkdir(exist_ok=True)
    write(directory / f"log_standard_20220425_20220505{suffix}", rows)
    write(directory / f"user_features_pure{suffix}", USERS)
    write(directory / f"video_features_basic_pure{suffix}", ITEMS)
    if sequences is not None:
        write(directory / "user_sequences_until_20220424.parquet", sequences)
    return directory


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_columns_are_mapped_exactly(tmp_path: Path, suffix: str) -> None:
    later = FINE | {"user_id": BIG, "video_id": 11, "time_ms": FINE["time_ms"] + 5, "hourmin": 100, "tab": 1}
    exposures = read_exposures(write_logs(tmp_path / "logs", [later, FINE], suffix))
    assert exposures.rows.schema == ROWS_SCHEMA
    first, second = exposures.rows.to_pylist()
    assert first["user_id"] == 1
    assert first["scene"] == "4"
    assert (first["day"], first["hour"], first["watch_time"]) == (20220425, 15, 12.5)
    assert (first["click"], first["long_view"], first["like"], first["forward"]) == (1, 1, 0, 1)
    assert first["ts"].timestamp() * 1000 == FINE["time_ms"]
    assert (second["user_id"], second["scene"], second["hour"]) == (BIG, "1", 1)
    assert exposures.users.column("user_id").to_pylist() == [1, BIG]
    assert exposures.users.column("onehot_feat4").to_pylist() == [3, None]
    assert exposures.users.schema.field("follow_user_num").type == pa.float32()
    assert exposures.items.column("author_id").to_pylist() == [BIG, 7]
    assert exposures.items.column("tag").to_pylist() == ["20", ""]
    # The duration of a video that its features lack is the one of its rows.
    assert exposures.items.column("duration").to_pylist() == [30.0, 30.0]


def test_whole_month_statistics_are_not_features(tmp_path: Path) -> None:
    directory = write_logs(tmp_path / "logs", [FINE])
    write(directory / "item_features.parquet", ITEMS)
    assert "show_cnt" not in read_exposures(directory).items.column_names


@pytest.mark.parametrize(("bad", "reason"), [
    ({"is_click": 2}, "is_click is not 0 or 1"),
    ({"long_view": None}, "long_view is null or no integer"),
    ({"user_id": None}, "user_id is null or no integer"),
    ({"video_id": -4}, "video_id < 0"),
    ({"time_ms": -1}, "time_ms < 0"),
    ({"play_time_ms": -1}, "play_time_ms < 0"),
    ({"duration_ms": 0}, "duration_ms ≤ 0"),
    ({"date": 20221301}, "date is not yyyymmdd"),
    ({"hourmin": 2400}, "hourmin is not in 0..2359"),
    ({}, "full duplicate"),
    ({"play_time_ms": 3}, "duplicate (user_id, video_id, time_ms)"),
])
def test_impossible_rows_are_quarantined_alone(tmp_path: Path, bad: dict, reason: str) -> None:
    other = FINE | {"video_id": 11}
    exposures = read_exposures(write_logs(tmp_path / "logs", [FINE | bad, FINE, other]))
    assert exposures.account.rows_in == 3
    assert exposures.account.quarantined == {reason: 1}
    assert sorted(exposures.rows["item_id"].to_pylist()) == [10, 11]
    assert exposures.quarantine["reason"].to_pylist() == [reason]
    assert exposures.rows["watch_time"].to_pylist() == [12.5, 12.5]


def test_text_in_a_csv_cell_costs_only_its_row(tmp_path: Path) -> None:
    directory = write_logs(tmp_path / "logs", [FINE, FINE | {"video_id": 11}], ".csv")
    log = directory / "log_standard_20220425_20220505.csv"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0], lines[1], "oops" + lines[2][1:]]))
    account = read_exposures(directory).account
    assert (account.kept, account.quarantined) == (1, {"user_id is null or no integer": 1})


def test_order_in_the_files_does_not_matter(tmp_path: Path) -> None:
    rows = [FINE, FINE | {"play_time_ms": 1}, FINE | {"play_time_ms": 1}, FINE | {"video_id": 11}, FINE | {"tab": 0}]
    forwards = read_exposures(write_logs(tmp_path / "a", rows))
    backwards = read_exposures(write_logs(tmp_path / "b", rows[::-1]))
    assert forwards.rows.equals(backwards.rows)
    assert forwards.account == backwards.account


def test_several_log_files_are_read_together(tmp_path: Path) -> None:
    directory = write_logs(tmp_path / "logs", [FINE])
    write(directory / "log_standard_4_08_to_4_21_pure.csv", [FINE | {"video_id": 11}, FINE])
    account = read_exposures(directory).account
    assert (account.rows_in, account.kept, account.quarantined) == (3, 2, {"full duplicate": 1})


def test_history_that_reaches_into_the_logs_is_left_out(tmp_path: Path) -> None:
    sequences = [{"user_id": 1, "last_time_ms": FINE["time_ms"], "watch_seq": [11]},
                 {"user_id": BIG, "last_time_ms": FINE["time_ms"] - 1, "watch_seq": [11, 10]}]
    rows = [FINE, FINE | {"user_id": BIG}]
    history = read_exposures(write_logs(tmp_path / "logs", rows, sequences=sequences)).history
    assert history.to_pylist() == [{"user_id": BIG, "items": [11, 10]}]


def test_past_of_users_and_items_is_counted_before_the_logs(tmp_path: Path) -> None:
    """Pooled: 2 long views of 3 views. User 1: 1 of 2, drawn by 5: (1 + 10/3) / 7. Item 11: (2 + 40/3) / 22."""
    start = FINE["time_ms"]
    sequences = [
        {"user_id": 1, "last_time_ms": start - 1, "watch_seq": [11, 10], "long_watch_seq": [11], "history_len": 70},
        {"user_id": BIG, "last_time_ms": start - 2, "watch_seq": [11], "long_watch_seq": [11], "history_len": 1}]
    rows = [FINE, FINE | {"user_id": BIG, "time_ms": start + 9}]
    exposures = read_exposures(write_logs(tmp_path / "logs", rows, sequences=sequences))
    users = {row["user_id"]: row for row in exposures.users.to_pylist()}
    items = {row["item_id"]: row for row in exposures.items.to_pylist()}
    assert users[1]["user_past_views"] == 70
    assert users[1]["user_past_long_view_ratio"] == pytest.approx((1 + 10 / 3) / 7)
    assert items[11]["item_past_views"] == 2
    assert items[11]["item_past_long_view_ratio"] == pytest.approx((2 + 40 / 3) / 22)
    assert "user_past_like_ratio" not in users[1]


def test_past_of_items_holds_nothing_of_the_logged_days(tmp_path: Path) -> None:
    """A sequence that ends before its own user's first row, but after the first of all rows, would leak into items."""
    start = FINE["time_ms"]
    sequences = [{"user_id": 1, "last_time_ms": start - 1, "watch_seq": [10]},
                 {"user_id": BIG, "last_time_ms": start + 1, "watch_seq": [11]}]
    rows = [FINE, FINE | {"user_id": BIG, "time_ms": start + 9}]
    items = read_exposures(write_logs(tmp_path / "logs", rows, sequences=sequences)).items
    assert dict(zip(items["item_id"].to_pylist(), items["item_past_views"].to_pylist(), strict=True)) == {10: 1, 11: 0}


def test_missing_file_is_named(tmp_path: Path) -> None:
    directory = write_logs(tmp_path / "logs", [FINE])
    (directory / "user_features_pure.parquet").unlink()
    message = r"exposures: got .*logs.*allowed: a directory with user_features\*\.parquet"
    with pytest.raises(InvalidFieldError, match=message):
        read_exposures(directory)
    with pytest.raises(InvalidFieldError, match=r"exposures: got .*nowhere.*allowed: a directory"):
        read_exposures(tmp_path / "nowhere")


def test_missing_column_is_named(tmp_path: Path) -> None:
    row = {name: value for name, value in FINE.items() if name != "long_view"}
    with pytest.raises(InvalidFieldError, match=r"log_standard_20220425_20220505.parquet: column long_view"):
        read_exposures(write_logs(tmp_path / "logs", [row]))


def test_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    directory = write_logs(tmp_path / "logs", [FINE])
    (directory / "log_standard_zz.parquet").write_bytes(b"no parquet")
    with pytest.raises(InvalidFieldError, match=r"log_standard_zz.parquet: got .*readable Parquet or CSV"):
        read_exposures(directory)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real logs are not at ../shared/data/kuairand_pure")
def test_real_files() -> None:
    exposures = read_exposures(REAL)
    account = exposures.account
    assert account.rows_in == 185_061
    # 5,039 rows repeat a (user, video, time); 2,793 have no duration.
    assert account.quarantined["duration_ms ≤ 0"] == 2_793
    assert sum(account.quarantined.values()) == exposures.quarantine.num_rows
    assert account.kept == exposures.rows.num_rows == 177_229
    assert set(exposures.rows["scene"].to_pylist()) >= {"0", "1", "2", "4", "6"}
    assert exposures.column("day").max() == 20220505


PACK = {".gz": gzip.compress, ".bz2": bz2.compress,
        ".zst": lambda content: pa.Codec("zstd").compress(content, asbytes=True)}


@pytest.mark.parametrize("ending", PACK)
def test_compressed_csv_is_read_beside_the_other_files(tmp_path: Path, ending: str) -> None:
    directory = write_logs(tmp_path / "logs", [FINE], ".csv")
    write(directory / "log_standard_2.csv", [FINE | {"video_id": 11}])
    plain = directory / "log_standard_2.csv"
    (directory / f"log_standard_2.CSV{ending}").write_bytes(PACK[ending](plain.read_bytes()))
    plain.unlink()
    write(directory / "log_standard_3.parquet", [FINE | {"video_id": 11, "time_ms": FINE["time_ms"] + 9}])
    assert read_exposures(directory).account.kept == 3


def test_a_file_that_was_cut_off_loses_its_last_row_to_the_quarantine(tmp_path: Path) -> None:
    directory = write_logs(tmp_path / "logs", [FINE, FINE | {"video_id": 11}], ".csv")
    path = next(directory.glob("log_standard_*"))
    path.write_text(path.read_text()[:-20])
    exposures = read_exposures(directory)
    assert str(exposures.account) == ("in 2 = kept 1 + quarantined 1; another number of columns than the header: 1")
    [row] = exposures.quarantine.to_pylist()
    assert row["reason"] == "another number of columns than the header"
    assert path.read_text().endswith(row["row"])


def test_odd_files_beside_the_logs(tmp_path: Path) -> None:
    """A byte order mark and an index without a name are read over; hidden, empty and other files are left out, named
    where somebody might miss them."""
    directory = write_logs(tmp_path / "logs", [FINE], ".csv")
    path = next(directory.glob("log_standard_*"))
    lines = path.read_text().splitlines()
    path.write_bytes(b"\xef\xbb\xbf" + "\n".join([f'"",{lines[0]}', f"0,{lines[1]}"]).encode())
    (directory / "log_standard_empty.csv").write_text("")
    (directory / "log_random_4.csv").write_text("a,b\n")
    for name in ("_log_standard_x.csv", ".log_standard_y.csv"):
        (directory / name).write_text("no")
    account = read_exposures(directory).account
    assert (account.rows_in, account.kept) == (1, 1)
    assert account.notes == ("files that are not read: log_random_4.csv, log_standard_empty.csv",)


def test_an_unknown_separator_is_refused_by_name(tmp_path: Path) -> None:
    directory = write_logs(tmp_path / "logs", [FINE], ".csv")
    path = next(directory.glob("log_standard_*"))
    path.write_text(path.read_text().replace(",", ";").replace('"', ""))
    with pytest.raises(InvalidFieldError, match=r"log_standard_.*got \"columns separated by ';'\".*by commas"):
        read_exposures(directory)


def test_logs_of_which_nothing_is_kept_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidFieldError, match=r"0 of 1 rows kept.*play_time_ms < 0"):
        read_exposures(write_logs(tmp_path / "logs", [FINE | {"play_time_ms": -1}]))


def test_types_that_do_not_go_together_cost_their_rows_alone(tmp_path: Path) -> None:
    directory = write_logs(tmp_path / "logs", [FINE], ".csv")
    write(directory / "log_standard_2.csv", [FINE | {"video_id": 11, "tab": "home"}])
    assert str(read_exposures(directory).account) == "in 2 = kept 1 + quarantined 1; tab is null or no integer: 1"
