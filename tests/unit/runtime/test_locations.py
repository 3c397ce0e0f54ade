"""One meaning of a path or URI for every job."""

from __future__ import annotations

from pathlib import Path

import pyarrow.fs as pafs
import pytest

from recfuse.config import InvalidFieldError
from recfuse.runtime.locations import locate

NAMES = ["plain", "with space", "100%", "50%20off", "a#b", "what?", "dt=2024-05-01", "größe-日本", "a&b+c", "[x]"]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_means_itself(tmp_path, name):
    directory = tmp_path / name
    directory.mkdir()
    (directory / "file").write_bytes(b"here")
    place = locate(directory)
    assert place.kind() == pafs.FileType.Directory
    with place.filesystem.open_input_stream(place.below("file").root) as stream:
        assert stream.read() == b"here"
    assert Path(place.uri) == directory
    assert place.relative(place.below("file").root) == "file"


def test_a_relative_path_and_a_file_uri_are_the_same_place(tmp_path, monkeypatch):
    (tmp_path / "a b").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate("a b").root == locate(f"file://{tmp_path}/a%20b").root == str(tmp_path / "a b")
    assert locate("a b/").root == locate("a b").root


def test_a_name_in_a_uri_means_itself_too():
    place = locate("mock://bucket/größe #1/a b")
    assert place.root.endswith("größe #1/a b")


@pytest.mark.parametrize("path", ["", "nothing://bucket/x"])
def test_what_cannot_be_found_is_refused_in_a_line(path):
    with pytest.raises(InvalidFieldError, match=r"^logs: got .*; allowed: a path"):
        locate(path, "logs")


def test_a_place_that_cannot_be_reached_is_refused_in_a_line(monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    place = locate("s3://key:word@bucket/logs?region=eu-west-1&scheme=http&endpoint_override=127.0.0.1:9")
    with pytest.raises(InvalidFieldError, match=r"path: got 's3://…@bucket/logs.*; allowed: a place that can be"):
        place.kind()
