"""Which files are a log: directories, Delta tables, partitions, names, vocabularies."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from deltalake import DeltaTable, write_deltalake

from recfuse.config import InvalidFieldError
from recfuse.logs.source import open_log, pieces, read_piece

WORDS = {"behaviours": [{"name": "watch_time", "kind": "long_term"}], "fusion_parameters": ["click", "like"],
         "state_size": 1, "formula": "linear"}


def vocabulary(directory, **changes):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "vocabulary.yaml").write_text(yaml.safe_dump(WORDS | changes))
    return directory


def rows(*numbers, **more):
    return pa.table({"number": list(numbers), **{name: [value] * len(numbers) for name, value in more.items()}})


def put(path, *numbers, **more):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows(*numbers, **more), path)


def read(path):
    source = open_log(str(path))
    found, unreadable = pieces(source)
    assert not unreadable
    return pa.concat_tables([read_piece(source, piece) for piece in found], promote_options="default")


def numbers(path):
    return sorted(read(path)["number"].to_pylist())


def test_names_that_are_parquet_are_taken_and_others_named(tmp_path, caplog):
    log = vocabulary(tmp_path / "log")
    for position, name in enumerate(["a.parquet", "b.PARQUET", "c.pq", "part-0", "deep/er/d.snappy.parquet"]):
        put(log / name, position)
    for name in ["_SUCCESS", "._a.parquet", ".crc/x.parquet", "_tmp/y.parquet"]:
        put(log / name, 99)
    (log / "notes.csv").write_text("a,b")
    (log / "README").write_text("no Parquet at all")
    assert numbers(log) == [0, 1, 2, 3, 4]
    left_out = open_log(str(log)).left_out
    assert sorted(left_out) == ["README", "notes.csv"]


def test_the_quarantine_and_account_of_samples_are_no_samples(tmp_path):
    log = vocabulary(tmp_path / "samples")
    put(log / "part-00000.parquet", 1)
    put(log / "quarantine" / "piece-0.parquet", 99)
    (log / "account.json").write_text("{}")
    assert numbers(log) == [1]
    assert not open_log(str(log)).left_out


def test_directories_named_column_value_are_columns(tmp_path):
    log = vocabulary(tmp_path / "log")
    put(log / "dt=2024-05-01" / "scene=a%2Fb" / "p.parquet", 1)
    put(log / "dt=2024-05-02" / "scene=__HIVE_DEFAULT_PARTITION__" / "p.parquet", 2)
    table = read(log).sort_by("number")
    assert table["scene"].to_pylist() == ["a/b", None]
    assert table["dt"].to_pylist() == ["2024-05-01", "2024-05-02"]


def test_a_delta_table_is_read_as_of_its_present_version(tmp_path):
    log = vocabulary(tmp_path / "log")
    write_deltalake(str(log), rows(1, 2, 3))
    write_deltalake(str(log), rows(4, 5), mode="append")
    assert numbers(log) == [1, 2, 3, 4, 5]
    DeltaTable(str(log)).optimize.compact()
    assert numbers(log) == [1, 2, 3, 4, 5]
    DeltaTable(str(log)).delete("number = 2")
    assert numbers(log) == [1, 3, 4, 5]
    write_deltalake(str(log), rows(9), mode="overwrite")
    assert numbers(log) == [9]


def test_the_partition_columns_of_a_delta_table_are_columns(tmp_path):
    log = vocabulary(tmp_path / "a b=c#d")
    table = pa.concat_tables([rows(1, scene="home page"), rows(2, scene="ü/%")])
    write_deltalake(log.as_uri(), table, partition_by=["scene"])
    assert read(log).sort_by("number")["scene"].to_pylist() == ["home page", "ü/%"]


def test_a_served_log_is_its_table_of_sessions(tmp_path):
    served = vocabulary(tmp_path / "served")
    write_deltalake(str(served / "sessions"), rows(1, 2))
    write_deltalake(str(served / "events"), rows(7))
    assert numbers(served) == [1, 2]


def test_a_feature_that_is_not_read_is_refused_by_name(tmp_path):
    log = vocabulary(tmp_path / "log")
    write_deltalake(str(log), rows(1))
    commit = log / "_delta_log" / "00000000000000000001.json"
    features = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": ["columnMapping"],
                "writerFeatures": ["columnMapping"]}
    commit.write_text(json.dumps({"protocol": features}) + "\n")
    with pytest.raises(InvalidFieldError, match=r"logs: got .*columnMapping"):
        open_log(str(log))


def test_vocabularies_that_contradict_each_other_are_named(tmp_path):
    log = vocabulary(tmp_path / "log")
    put(log / "day1" / "p.parquet", 1)
    vocabulary(log / "day2")
    put(log / "day2" / "p.parquet", 2)
    assert numbers(log) == [1, 2]
    vocabulary(log / "day2", fusion_parameters=["like", "click"])
    with pytest.raises(InvalidFieldError, match=r"day2/vocabulary.yaml.*fusion_parameters.*in vocabulary.yaml"):
        open_log(str(log))


@pytest.mark.parametrize(("prepare", "message"), [
    (lambda log: None, "logs: got .*; allowed: a directory that exists"),
    (lambda log: log.mkdir(), "vocabulary: got .*vocabulary.yaml.*allowed: a YAML file that travels with the log"),
    (lambda log: (log.mkdir(), (log / "vocabulary.yaml").write_text("[")), "vocabulary: got .*allowed: a YAML file"),
    (lambda log: (vocabulary(log), (log / "x.csv").write_text("a")), "at least one Parquet file; it has x.csv"),
])
def test_what_is_no_log_is_refused_in_a_line(tmp_path, prepare, message):
    prepare(tmp_path / "log")
    with pytest.raises(InvalidFieldError, match=message):
        open_log(str(tmp_path / "log"))
