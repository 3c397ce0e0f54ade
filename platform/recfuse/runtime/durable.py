"""A file that rows are appended to one behind the other, each durable when the call returns.

The file is filled with zeros ahead of its rows: a write then brings rows alone and no new size of the file. Where the
file system takes it, rows go past the page cache (O_DIRECT) in whole blocks: the last block is written again with each
row that it has room for, and zeros follow the rows within it as they do behind it. Whoever reads finds the same bytes
either way.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import threading
from pathlib import Path

BLOCK_BYTES = 4096  # A multiple of what any common disk takes.
_ZEROS = bytes(1024 * 1024)
_PAUSE_SECONDS = 0.05


class DurableFile:
    """A new file with room for rows; holds a lock on it until it is finished, which says that somebody writes there.

    Args:
        path: must not exist yet.
        size: bytes that are reserved; rows beyond them are written as well, more slowly.
        durable: `append` returns when the disk has the rows, not only the operating system.
        hurry: while it is not set, reserving pauses now and then, so that others' writes come between.
        pauses: whether reserving pauses at all.

    Raises:
        OSError: there is no room for it, or the directory cannot be written to.
    """

    def __init__(self, path: Path, size: int, durable: bool, hurry: threading.Event, pauses: bool) -> None:
        self.path, self.size, self.offset = path, size, 0
        self._buffer: mmap.mmap | None = None  # Blocks from the last one that is not full yet.
        # Durable when a write returns: one call, after which a thread waits for the interpreter once.
        flags = os.O_WRONLY | (os.O_DSYNC if durable else 0)
        self._file = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o640)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX)
            if durable:
                self._reserve(hurry, pauses)
                self._go_past_the_cache()
        except OSError:
            os.close(self._file)
            raise

    def append(self, payload: bytes) -> None:
        """Writes rows behind the others.

        Raises:
            OSError: they are not there as a whole, and what comes next takes their place.
        """
        if self._buffer is None:
            view, place = memoryview(payload), self.offset
            while view:
                done = os.pwrite(self._file, view, place)
                view, place = view[done:], place + done
        else:
            self._append_blocks(payload)
        self.offset += len(payload)

    def finish(self) -> None:
        """Cuts the file to its rows and closes it."""
        os.ftruncate(self._file, self.offset)
        self._close()

    def discard(self) -> None:
        """Closes and deletes a file without rows."""
        self._close()
        self.path.unlink()

    def _close(self) -> None:
        os.close(self._file)
        if self._buffer is not None:
            self._buffer.close()

    def _reserve(self, hurry: threading.Event, pauses: bool) -> None:
        with open(self.path, "r+b", buffering=0) as file:
            for start in range(0, self.size, len(_ZEROS)):
                file.write(_ZEROS[: self.size - start])
                os.fsync(file)
                # Piece by piece, with room between for the rows that requests wait for.
                hurry.wait(_PAUSE_SECONDS if pauses else 0.0)
        directory = os.open(self.path.parent, os.O_RDONLY)  # The name of the file is to be durable too.
        os.fsync(directory)
        os.close(directory)

    def _go_past_the_cache(self) -> None:
        """Tries it with a block of zeros; some file systems refuse the flag and others the write."""
        flags, buffer = fcntl.fcntl(self._file, fcntl.F_GETFL), mmap.mmap(-1, BLOCK_BYTES)
        try:
            fcntl.fcntl(self._file, fcntl.F_SETFL, flags | os.O_DIRECT)
            if os.pwrite(self._file, buffer, 0) == BLOCK_BYTES:
                self._buffer = buffer
                return
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                buffer.close()
                raise
        fcntl.fcntl(self._file, fcntl.F_SETFL, flags)
        buffer.close()

    def _append_blocks(self, payload: bytes) -> None:
        filled = self.offset % BLOCK_BYTES
        rows_end = filled + len(payload)
        end = -(-rows_end // BLOCK_BYTES) * BLOCK_BYTES
        buffer = self._room(end, filled)
        buffer[filled:rows_end] = payload
        buffer[rows_end:end] = _ZEROS[:end - rows_end]
        first, place = self.offset - filled, 0
        with memoryview(buffer) as view:
            while place < end:
                with view[place:end] as rest:
                    done = os.pwrite(self._file, rest, first + place) // BLOCK_BYTES * BLOCK_BYTES
                if not done:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                place += done
        # What the next rows are written with. Until here the block at the front was that of the rows before these.
        if rows_end >= BLOCK_BYTES:
            kept = rows_end % BLOCK_BYTES
            buffer[:kept] = buffer[rows_end - kept:rows_end]

    def _room(self, size: int, filled: int) -> mmap.mmap:
        """The buffer, so large, with the rows of its first block."""
        assert self._buffer is not None
        if len(self._buffer) < size:
            larger = mmap.mmap(-1, size)  # Aligned, as O_DIRECT wants it.
            larger[:filled] = self._buffer[:filled]
            self._buffer.close()
            self._buffer = larger
        return self._buffer
