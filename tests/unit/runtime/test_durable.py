"""Rows in a file that is durable, past the page cache or through it."""

from __future__ import annotations

import errno
import fcntl
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recfuse.runtime.durable import BLOCK_BYTES, DurableFile


def opened(path: Path, size: int = 1 << 16) -> DurableFile:
    return DurableFile(path, size, True, threading.Event(), False)


def refuse_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fcntl.fcntl

    def refused(file: int, command: int, argument: int = 0) -> Any:
        if command == fcntl.F_SETFL and argument & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return real(file, command, argument)

    monkeypatch.setattr(fcntl, "fcntl", refused)


@pytest.mark.parametrize("direct", [True, False])
def test_rows_of_any_size_stand_one_behind_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                     direct: bool) -> None:
    if not direct:
        refuse_flag(monkeypatch)
    rng = np.random.default_rng(0)
    sizes = [1, BLOCK_BYTES - 1, BLOCK_BYTES, BLOCK_BYTES + 1, *rng.integers(1, 3 * BLOCK_BYTES, 40).tolist(), 200_000]
    rows = [rng.integers(1, 256, size, np.uint8).tobytes() for size in sizes]
    file = opened(tmp_path / "rows")
    for count, row in enumerate(rows, 1):
        file.append(row)
        # Whoever reads meanwhile finds every row, and zeros alone behind them.
        content = (tmp_path / "rows").read_bytes()
        assert content.rstrip(b"\0") == b"".join(rows[:count])
    file.finish()
    assert (tmp_path / "rows").read_bytes() == b"".join(rows)


def test_what_a_failed_write_left_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = opened(tmp_path / "rows")
    file.append(b"a" * 5_000)
    write = os.pwrite

    def cut(number: int, view: memoryview, place: int) -> int:
        if place >= 2 * BLOCK_BYTES:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(number, view[:BLOCK_BYTES], place)

    monkeypatch.setattr(os, "pwrite", cut)
    with pytest.raises(OSError, match="No space left"):
        file.append(b"b" * 10_000)
    monkeypatch.undo()
    file.append(b"c" * 10)
    file.finish()
    assert (tmp_path / "rows").read_bytes() == b"a" * 5_000 + b"c" * 10
