"""Files of rows: one builds and all map, damaged ones are built again, old ones go."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from recfuse.scenes.row_files import RowFiles

SHAPE, HALF = (10, 4), np.dtype(np.float16)


def blocks(shift: float = 0.0) -> Iterator[np.ndarray]:
    rows = np.arange(40, dtype=HALF).reshape(SHAPE) + HALF.type(shift)
    yield rows[:6]
    yield rows[6:]


def built(directory: Path, key: str = "k", shift: float = 0.0) -> tuple[np.ndarray, bool]:
    """The rows, and whether they were computed now."""
    computed = []

    def compute() -> Iterator[np.ndarray]:
        computed.append(1)
        return blocks(shift)

    return RowFiles(directory).rows(key, SHAPE, HALF, compute).numpy(), bool(computed)


def test_rows_are_computed_once_and_then_mapped(tmp_path: Path) -> None:
    first, computed = built(tmp_path / "rows")
    again, computed_again = built(tmp_path / "rows")
    assert (computed, computed_again) == (True, False)
    for rows in (first, again):
        np.testing.assert_array_equal(rows, np.concatenate(list(blocks())))
    (file,) = (tmp_path / "rows").glob("*.npy")
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if str(file) in line]
    assert len(maps) == 2  # both are the file's pages, none a copy of this process


@pytest.mark.parametrize("damage", ["byte", "short", "empty", "header"])
def test_a_damaged_file_is_built_again_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture,
                                                     damage: str) -> None:
    built(tmp_path)
    (file,) = tmp_path.glob("*.npy")
    content = bytearray(file.read_bytes())
    content[-1 if damage == "byte" else 0] ^= 1
    # Another inode, as a copy that failed would be: those who have mapped the old one go on.
    other = tmp_path / "other"
    other.write_bytes({"byte": content, "header": content, "short": content[:100], "empty": b""}[damage])
    other.rename(file)
    with caplog.at_level(logging.WARNING):
        rows, computed = built(tmp_path)
    assert computed
    np.testing.assert_array_equal(rows, np.concatenate(list(blocks())))
    assert len(caplog.records) == 1
    assert f"{file} are damaged" in caplog.text
    assert built(tmp_path)[1] is False


def test_a_part_that_a_death_left_is_removed_and_nothing_is_left_of_a_failure(tmp_path: Path) -> None:
    (tmp_path / ".rows-1234.part").write_bytes(b"x")
    built(tmp_path)
    assert not list(tmp_path.glob("*.part")) + list(tmp_path.glob(".*.part"))

    def fail() -> Iterator[np.ndarray]:
        yield next(blocks())
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        RowFiles(tmp_path).rows("other", SHAPE, HALF, fail)
    assert len(list(tmp_path.glob("*.npy"))) == 1
    assert not list(tmp_path.glob(".*.part"))


def test_the_oldest_files_go_and_a_used_one_stays(tmp_path: Path) -> None:
    kept, _ = built(tmp_path, "key0")
    for number in range(1, 6):
        built(tmp_path, f"key{number}", number)
        os.utime(next(tmp_path.glob(f"rows-key{number}-*")), (number, number))
        built(tmp_path, "key0")
    keys = sorted(path.name.split("-")[1] for path in tmp_path.glob("*.npy"))
    assert keys == ["key0", "key3", "key4", "key5"]
    np.testing.assert_array_equal(kept, np.concatenate(list(blocks())))


def _build_slowly(directory: Path, counts: Path) -> None:
    def compute() -> Iterator[np.ndarray]:
        (counts / str(os.getpid())).touch()
        time.sleep(.3)
        return blocks()

    rows = RowFiles(directory).rows("k", SHAPE, HALF, compute).numpy()
    np.testing.assert_array_equal(rows, np.concatenate(list(blocks())))


def test_of_several_processes_one_builds(tmp_path: Path) -> None:
    (tmp_path / "counts").mkdir()
    context = multiprocessing.get_context("fork")
    replicas = [context.Process(target=_build_slowly, args=(tmp_path / "rows", tmp_path / "counts")) for _ in range(4)]
    for replica in replicas:
        replica.start()
    for replica in replicas:
        replica.join(30)
    assert [replica.exitcode for replica in replicas] == [0] * 4
    assert len(list((tmp_path / "counts").iterdir())) == 1
