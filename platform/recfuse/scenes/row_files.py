"""Rows of items in files that every process of a machine maps, so that the memory holds them once."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import uuid
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

logger = logging.getLogger("recfuse")
_LOCK = ".rows-lock"
_KEPT = 4  # files: those of a model and a canary, before a swap and after it


class RowFiles:
    """A directory of row files, each named by what its rows were made of and by the checksum of its bytes.

    Args:
        directory: made where it is missing.
    """

    def __init__(self, directory: str | Path) -> None:
        self._directory = Path(directory)

    def rows(self, key: str, shape: tuple[int, int], dtype: np.dtype, blocks: Callable[[], Iterable[np.ndarray]]
             ) -> Tensor:
        """Rows [M, outputs] that lie in the memory of all processes together; nobody may write to them.

        The first process builds the file and others wait for it. A file that is damaged is built again.

        Args:
            key: of all that the rows depend on.
            blocks: computes the rows, some of them after the others.

        Raises:
            OSError: the directory cannot be written to, or is full.
        """
        found = self._mapped(key, shape, dtype)
        if found is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            with self._locked():
                found = self._mapped(key, shape, dtype, remove=True)
                if found is None:
                    found = torch.from_numpy(np.load(self._written(key, shape, dtype, blocks()), mmap_mode="c"))
                self._remove_old()
        return found

    def _mapped(self, key: str, shape: tuple[int, int], dtype: np.dtype, remove: bool = False) -> Tensor | None:
        """The rows of a whole file, mapped; None where there is none. Damaged files are removed, if that is asked."""
        for path in self._directory.glob(f"rows-{key}-*.npy"):
            try:
                # Writing would copy a page; "c" spares PyTorch's warning of arrays that cannot be written to.
                rows = np.load(path, mmap_mode="c")
                if rows.shape == shape and rows.dtype == dtype and path.stem.endswith(f"-{zlib.crc32(rows.data):08x}"):
                    with contextlib.suppress(OSError):  # It may be another user's; then it is older than it is.
                        os.utime(path)
                    return torch.from_numpy(rows)
            except (OSError, ValueError, EOFError):
                pass  # It is shorter than it says, or has no header.
            if remove:
                logger.warning("the rows of items in %s are damaged, they are computed again", path)
                path.unlink(missing_ok=True)
        return None

    def _written(self, key: str, shape: tuple[int, int], dtype: np.dtype, blocks: Iterable[np.ndarray]) -> Path:
        # Who held the lock before, and died, left a part; writes, unlike a map, say where the disk is full.
        for left in self._directory.glob(".rows-*.part"):
            left.unlink(missing_ok=True)
        part = self._directory / f".rows-{uuid.uuid4().hex}.part"
        try:
            checksum = 0
            with open(part, "wb") as file:
                np.lib.format.write_array_header_1_0(file, {
                    "descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape})
                for block in blocks:
                    checksum = zlib.crc32(block.data, checksum)
                    file.write(block.data)
            return part.rename(self._directory / f"rows-{key}-{checksum:08x}.npy")
        finally:
            part.unlink(missing_ok=True)

    def _remove_old(self) -> None:
        """Whoever has mapped a file goes on with it when it is gone."""
        files = sorted(self._directory.glob("rows-*.npy"), key=lambda path: path.stat().st_mtime)
        for path in files[:-_KEPT]:
            path.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Inside, nobody else writes here; the lock dies with its holder."""
        with open(self._directory / _LOCK, "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
