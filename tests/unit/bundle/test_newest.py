"""Finding a bundle by its directory: by manifest, kind and the record of the last write, never by name or luck."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch

from recfuse.bundle import newest_bundle, read_bundle, write_bundle
from recfuse.bundle.bundle import NEWEST
from recfuse.config import InvalidFieldError


def write(root: Path, number: float, kind: str = "fusion") -> Path:
    return write_bundle(root, kind=kind, tensors={"a": {"x": torch.tensor([number])}}, manifest={})


def test_the_newest_of_its_kind_is_found(tmp_path):
    """Without a record, as in a directory that something else has filled, by time."""
    paths = [write(tmp_path, k) for k in range(3)]
    (tmp_path / NEWEST.format(kind="fusion")).unlink()
    for age, path in enumerate(paths):
        os.utime(path, (1000 - age, 1000 - age))
    assert newest_bundle(tmp_path, "fusion") == paths[0]
    assert newest_bundle(paths[2], "fusion") == paths[2], "a bundle is itself"
    with pytest.raises(InvalidFieldError, match=r"scenes bundle: got .*a directory that holds one"):
        newest_bundle(tmp_path, "scenes")
    with pytest.raises(InvalidFieldError, match=r"scenes bundle: got .*this is a bundle of kind fusion"):
        newest_bundle(paths[2], "scenes")


def test_what_was_written_last_is_the_newest_also_where_it_was_there_before(tmp_path):
    first, second = write(tmp_path, 1.0), write(tmp_path, 2.0)
    assert newest_bundle(tmp_path, "fusion") == second
    assert write(tmp_path, 1.0) == first
    os.utime(second, (2e9, 2e9))
    assert newest_bundle(tmp_path, "fusion") == first, "whatever the times of the directories"
    write(tmp_path, 3.0, "scenes")
    assert newest_bundle(tmp_path, "fusion") == first, "each kind has a record of its own"


def test_a_record_of_what_is_gone_counts_for_nothing(tmp_path):
    first, second = write(tmp_path, 1.0), write(tmp_path, 2.0)
    shutil.rmtree(second)
    assert newest_bundle(tmp_path, "fusion") == first
    (tmp_path / NEWEST.format(kind="fusion")).write_text("{cut o")
    assert newest_bundle(tmp_path, "fusion") == first


@pytest.mark.parametrize("name", ["fusion-v2", "fusion-", "scenes-1", "fusion", "a b"])
def test_a_directory_is_no_bundle_by_its_name(tmp_path, name):
    bundle = write(tmp_path / name, 1.0)
    assert newest_bundle(tmp_path / name, "fusion") == bundle


def test_what_lies_beside_the_bundles_is_passed_over(tmp_path):
    bundle = write(tmp_path, 1.0)
    (tmp_path / NEWEST.format(kind="fusion")).unlink()
    (tmp_path / "fusion-old.tar.gz").write_bytes(b"x")
    (tmp_path / "fusion-notes").mkdir()
    (tmp_path / "fusion-broken").mkdir()
    (tmp_path / "fusion-broken" / "manifest.json").write_text("{")
    shutil.copytree(bundle, tmp_path / "fusion-copy")
    shutil.copytree(bundle, tmp_path / ".writing-0123")
    for path in tmp_path.iterdir():
        os.utime(path, (2e9, 2e9))
    os.utime(bundle, (1e9, 1e9))
    assert newest_bundle(tmp_path, "fusion") == bundle
    assert read_bundle(bundle).kind == "fusion"


def test_nothing_that_was_cut_off_while_it_was_written_is_a_bundle(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)  # as a kill leaves it
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, 1.0)
    assert next(path.name for path in tmp_path.iterdir()).startswith(".writing-")
    with pytest.raises(InvalidFieldError, match="fusion bundle: got "):
        newest_bundle(tmp_path, "fusion")
