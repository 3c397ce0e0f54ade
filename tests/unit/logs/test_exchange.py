"""The steps of ingest without Ray: partitions beyond their budget, requests of several users, notes on files."""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
import random_logs
import session_logs
from session_logs import random_rows, row, table

from recfuse.logs import exchange
from recfuse.logs.config import IngestConfig
from recfuse.logs.exchange import Exchange, bundles
from recfuse.logs.files import DirectoryWriter
from recfuse.logs.ingest import _require_noted
from recfuse.logs.reading import read_log
from recfuse.logs.slices import Partition, write_slices
from recfuse.logs.source import Piece

LOCAL = pafs.LocalFileSystem()


def ingested(tmp_path, rows, name="samples", **limits):
    """Account and samples, partition by partition, of a log in two files."""
    logs = tmp_path / "logs"
    if not logs.exists():
        session_logs.write(logs, table(rows[::2]), table(rows[1::2]))
    result = random_logs.ingest_here(IngestConfig(logs=str(logs), output=str(tmp_path / name)), **limits)
    parts = [pq.ParquetFile(path).read() for path in sorted((tmp_path / name).glob("part-*"))]
    quarantine = [sample for path in sorted((tmp_path / name / "quarantine").iterdir())
                  for sample in pq.read_table(path).to_pylist()]
    return result, parts, sorted(map(str, quarantine))


def one_user(rows: int) -> list[dict]:
    """All of one user, some again."""
    some = [{**each, "user_id": "everybody"} for each in random_rows(rows, seed=5)]
    return some + [{**some[number], "feedback": {"watch_time": 9e9, "like": 1.0}} for number in range(0, rows, 9)]


def test_a_user_larger_than_the_budget_gives_the_same_samples(tmp_path, monkeypatch):
    whole = ingested(tmp_path, one_user(200), "whole", row_group=16)
    monkeypatch.setattr(exchange, "_REPEATED_AT_ONCE", 4)
    monkeypatch.setattr(Partition, "_all", lambda self: pytest.fail("a partition beyond the budget is held whole"))
    cut = ingested(tmp_path, one_user(200), "cut", row_group=16, budget=0)
    assert (cut[0].account, cut[0].fingerprint) == (whole[0].account, whole[0].fingerprint)
    assert cut[1:] == whole[1:]
    assert len(cut[2]) == 23, "duplicates lie in the quarantine, in several files"


def test_row_groups_are_of_samples_whatever_the_budget(tmp_path):
    ingested(tmp_path, one_user(100), row_group=16)
    [path] = (tmp_path / "samples").glob("part-*")
    metadata = pq.read_metadata(path)
    sizes = [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
    assert set(sizes[:-1]) == {16}
    assert 0 < sizes[-1] <= 16


def test_a_request_of_several_users_is_that_of_the_first_time_then_of_the_first_name(tmp_path):
    users = [f"u{number}" for number in range(12)]
    rows = [row(number, user=user, session=None, seconds=0.0) for number, user in enumerate(users)]
    rows += [row(100, user=user, session=None, seconds=60.0 + (user != "u7")) for user in users]  # u7 was first
    rows += [row(200, user=user, session=None, seconds=90.0) for user in users if user != "u0"]  # equal times: u1
    rows += [row(number, user=user, session=None, seconds=99_999.0) for number, user in enumerate(users, 300)]
    result, parts, quarantine = ingested(tmp_path, rows, partitions=5)
    found = {sample["request_id"]: sample["user_id"] for part in parts for sample in part.to_pylist()}
    assert (found["r100"], found["r200"]) == ("u7", "u1")
    assert len(quarantine) == 11 + 10
    expected = read_log(str(tmp_path / "logs")).account
    assert (result.account.kept, result.account.quarantined) == (expected.kept, expected.quarantined)


def test_requests_whose_hashes_alone_are_equal_are_none_of_several_users():
    rows = pa.table({"request": [7, 7, 7, 7], "user": pa.array([1, 2, 2, 3], pa.uint64()),
                     "request_id": ["a", "b", "c", "c"], "ts": [0, 1, 2, 1], "user_id": ["x", "y", "y", "z"]})
    first = exchange._first_of_shared(rows)
    assert first.to_pylist() == [{"request_id": "c", "ts": 1, "user_id": "z", "user": user} for user in (3, 2)]


def test_a_partition_is_the_same_rows_from_memory_and_from_files(tmp_path):
    (tmp_path / "x").mkdir()
    writer, rng = DirectoryWriter(LOCAL, str(tmp_path)), np.random.default_rng(0)
    rows = table(random_rows(90, seed=1))
    numbers = rng.integers(0, 4, 90) * 2
    for file, span in enumerate((slice(0, 50), slice(50, 90))):
        write_slices(writer, f"x/rows-{file}.arrow", rows[span], numbers[span])
    expected = rows.filter(pa.array(numbers == 4))
    order = rng.permutation(expected.num_rows)
    for budget in (0, 1 << 30):
        partition = Partition(LOCAL, str(tmp_path / "x"), "rows-", 4, budget)
        assert partition.rows == expected.num_rows
        assert partition.columns(["ts", "user_id"]).equals(expected.select(["ts", "user_id"]))
        assert partition.take(order).equals(expected.take(order).combine_chunks())
        assert partition.take(order[:0]).equals(expected.slice(0, 0).combine_chunks())
    assert Partition(LOCAL, str(tmp_path / "x"), "rows-", 5, 0).rows == 0


def test_a_task_reads_whole_pieces_up_to_a_number_of_rows():
    pieces = [Piece(number, 0, number, 0, rows, rows) for number, rows in enumerate((60_000, 60_000, 60_000, 900_000))]
    assert [[piece.number for piece in bundle] for bundle in bundles(pieces)] == [[0, 1], [2], [3]]


def test_what_is_noted_of_a_file_is_what_lies_there(tmp_path):
    content = table(random_rows(40))
    written = DirectoryWriter(LOCAL, str(tmp_path)).write_all("part-0.parquet", [content, content], content.schema)
    path = tmp_path / "part-0.parquet"
    assert (written.size, written.sha256) == (path.stat().st_size, hashlib.sha256(path.read_bytes()).hexdigest())
    assert pq.read_table(path).equals(pa.concat_tables([content, content]))
    noted = {path.name: (written.size, written.sha256)}
    _require_noted(LOCAL, str(tmp_path), noted)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(AssertionError, match=r"files changed.*part-0"):
        _require_noted(LOCAL, str(tmp_path), noted)


def test_partitions_are_compared_by_fewer_tasks():
    assert [Exchange(source=None, filesystem=LOCAL, root="", config=IngestConfig(), log_end=None,
                     partitions=partitions).key_partitions for partitions in (1, 8, 9)] == [1, 1, 2]
