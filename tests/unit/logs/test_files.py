"""How logs and samples are written: dictionaries for names and ids alone, checksums, equal bytes for equal tables."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from session_logs import random_rows, table, vocabulary

from recfuse.logs.files import DirectoryWriter, list_files, visible_files, write_parquet
from recfuse.logs.sessions import SessionRule, to_samples
from recfuse.runtime.locations import locate

LOG = table(random_rows(200))
ITEM_IDS = "candidates.item_ids.list.element"
TABLES = {"log": LOG, "samples": to_samples(LOG, vocabulary(), SessionRule()).table}


@pytest.mark.parametrize("name", TABLES)
def test_names_and_ids_alone_have_a_dictionary(tmp_path, name):
    content = TABLES[name]
    write_parquet(content, tmp_path / "part.parquet")
    group = pq.read_metadata(tmp_path / "part.parquet").row_group(0)
    texts = {field.name for field in content.schema if pa.types.is_string(field.type)} | {ITEM_IDS}
    for column in (group.column(index) for index in range(group.num_columns)):
        assert column.has_dictionary_page == (column.path_in_schema in texts), column.path_in_schema
    assert pq.read_table(tmp_path / "part.parquet", schema=content.schema).equals(content)


def test_equal_tables_give_equal_bytes(tmp_path):
    for name in ("first.parquet", "second.parquet"):
        write_parquet(TABLES["samples"], tmp_path / name)
    assert (tmp_path / "first.parquet").read_bytes() == (tmp_path / "second.parquet").read_bytes()


def test_a_flipped_byte_is_seen(tmp_path):
    path = tmp_path / "part.parquet"
    write_parquet(TABLES["log"], path)
    column = pq.read_metadata(path).row_group(0).column(8)
    content = bytearray(path.read_bytes())
    content[column.data_page_offset + column.total_compressed_size - 1] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match="checksum"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def test_a_file_has_its_name_once_it_is_whole(tmp_path):
    place = locate(str(tmp_path))
    filesystem, root = place.filesystem, place.root
    assert isinstance(filesystem, pafs.LocalFileSystem)
    (tmp_path / "quarantine").mkdir()
    writer = DirectoryWriter(filesystem, root)
    for name in ("part-00000.parquet", "quarantine/piece-000000.parquet", "part-00000.parquet"):
        writer.write(name, TABLES["samples"])
    assert list_files(filesystem, root) == [f"{root}/part-00000.parquet"]
    assert list_files(filesystem, f"{root}/quarantine", "piece-") == [f"{root}/quarantine/piece-000000.parquet"]
    assert list_files(filesystem, root, "_") == []


def test_a_file_to_which_links_lead_again_is_taken_once(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    for name in ("log/a.parquet", "log/part/b.parquet", "elsewhere/c.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "log" / "latest.parquet").symlink_to("a.parquet")
    (tmp_path / "log" / "part" / "back").symlink_to(tmp_path / "log")
    (tmp_path / "log" / "outside").symlink_to(elsewhere)
    place = locate(str(tmp_path / "log"))
    assert [place.relative(info.path) for info in visible_files(place)] == [
        "a.parquet", "outside/c.parquet", "part/b.parquet"]
