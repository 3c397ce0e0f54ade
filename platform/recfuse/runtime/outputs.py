"""Output directories: whose they are, one job at a time, and nothing removed that the job did not write.

A job that writes a directory anew claims it. A marker that the job itself puts there says so, with the names of all it
wrote; no other file's name proves anything.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from recfuse.config import InvalidFieldError
from recfuse.runtime.locations import Location, locate

MARKER, LOCK = ".recfuse-output.json", ".recfuse-lock"


@dataclass
class Output:
    """A directory that a job has claimed.

    Attributes:
        location: where it is.
        job: who claimed it.
        name: the config field that holds the path, for errors.
        patterns: of the names that the job writes; what a run that was cut off has left is told by them.
    """

    location: Location
    job: str
    name: str = "output"
    patterns: tuple[str, ...] = ("*",)
    _marker: dict[str, Any] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether a run that claimed it has ended as it should."""
        return self._marker.get("state") == "finished"

    @property
    def local_directory(self) -> Path:
        """Where it is on this machine.

        Raises:
            InvalidFieldError: it is on another filesystem.
        """
        if not isinstance(self.location.filesystem, pafs.LocalFileSystem):
            raise InvalidFieldError(self.name, self.location.uri, "a directory of this machine")
        return Path(self.location.root)

    def begin(self) -> None:
        """Removes what an earlier run of the job wrote, and marks the directory as being written.

        Raises:
            InvalidFieldError: it holds something that the job did not write.
        """
        self.require_own()
        for path in self._entries():
            self.location.filesystem.delete_file(f"{self.location.root}/{path}")
        self._write({"job": self.job, "state": "running"})

    def require_own(self) -> None:
        """Refuses a directory that holds something that the job did not write.

        Raises:
            InvalidFieldError: names the first such file.
        """
        foreign = self.foreign()
        if foreign:
            raise InvalidFieldError(self.name, foreign[0],
                                    f"nothing in {self.location.uri} but what {self.job} wrote")

    def remove_empty(self) -> None:
        """Removes the directory, where nothing is in it."""
        if not self._entries():
            self.location.filesystem.delete_dir(self.location.root)

    def join(self) -> None:
        """Marks the directory as the job's, beside whatever lies in it; nothing is removed.

        Raises:
            InvalidFieldError: another job has claimed it.
        """
        self.require_unclaimed()
        if not self._marker:
            self._write({"job": self.job, "state": "joined"})

    def require_replaceable(self, name: str) -> None:
        """Refuses a file of a joined directory that the job did not write.

        Raises:
            InvalidFieldError: names it; or another job has claimed the directory.
        """
        self.require_unclaimed()
        if name not in self._marker.get("files", []) and self.location.kind(name) != pafs.FileType.NotFound:
            raise InvalidFieldError(self.name, f"{self.location.uri}/{name}",
                                    f"a directory without a {name} that {self.job} did not write")

    def replace(self, name: str, content: str | bytes) -> None:
        """Writes one file of a joined directory, in one step, and says in the marker that it is the job's.

        Raises:
            InvalidFieldError: as `require_replaceable`.
        """
        self.require_replaceable(name)
        filesystem, target = self.location.filesystem, self.location.below(name).root
        filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        with filesystem.open_output_stream(f"{target}.writing") as stream:
            stream.write(content.encode() if isinstance(content, str) else content)
        self._write({"job": self.job, "state": "joined", "files": sorted({*self._marker.get("files", []), name})})
        filesystem.move(f"{target}.writing", target)

    def remove(self, name: str) -> None:
        """Removes one file of a joined directory that the job wrote; nothing where there is none.

        Raises:
            InvalidFieldError: as `require_replaceable`.
        """
        self.require_replaceable(name)
        files = self._marker.get("files", [])
        if name not in files:
            return
        if self.location.kind(name) != pafs.FileType.NotFound:
            self.location.filesystem.delete_file(self.location.below(name).root)
        self._write({**self._marker, "files": [each for each in files if each != name]})

    def require_unclaimed(self) -> None:
        """Raises InvalidFieldError where another job has claimed the directory."""
        if self._marker and self._marker.get("job") != self.job:
            raise InvalidFieldError(self.name, self.location.uri, f"a directory of {self.job}'s own; this one was "
                                                                  f"written by {self._marker.get('job')}")

    def finish(self) -> None:
        """Marks it as whole, and everything in it as the job's."""
        self._write({"job": self.job, "state": "finished", "files": sorted(self._entries())})

    def foreign(self) -> list[str]:
        """Files that the job did not write, by their paths beneath it."""
        entries = self._entries()
        if not self._marker:
            return sorted(entries)
        if self._marker.get("job") != self.job:
            return [f"what {self._marker.get('job')} wrote"]
        if self.finished:
            return sorted(set(entries) - set(self._marker["files"]))
        return sorted(path for path in entries if not any(fnmatch(path, pattern) for pattern in self.patterns))

    def _entries(self) -> list[str]:
        selector = pafs.FileSelector(self.location.root, recursive=True)
        paths = (self.location.relative(info.path) for info in self.location.filesystem.get_file_info(selector)
                 if info.is_file)
        return [path for path in paths if path not in (MARKER, LOCK)]

    def _read(self) -> None:
        if self.location.kind(MARKER) == pafs.FileType.File:
            with self.location.filesystem.open_input_stream(self.location.below(MARKER).root) as stream:
                self._marker = _parsed(stream.read())
            if not self._marker:
                raise InvalidFieldError(self.name, f"{self.location.uri}/{MARKER}",
                                        "the marker of a job, in JSON; where it is broken, whose the files are is not "
                                        "known")

    def _write(self, marker: dict[str, Any]) -> None:
        filesystem, target = self.location.filesystem, self.location.below(MARKER).root
        with filesystem.open_output_stream(f"{target}.writing") as stream:
            stream.write(json.dumps(marker).encode())
        filesystem.move(f"{target}.writing", target)
        self._marker = marker


def _parsed(content: bytes) -> dict[str, Any]:
    """A marker; empty where the bytes are none."""
    try:
        marker = json.loads(content)
    except ValueError:
        return {}
    if not isinstance(marker, dict) or not isinstance(marker.get("job"), str):
        return {}
    files = marker.get("files", None if marker.get("state") == "finished" else [])
    return marker if isinstance(files, list) and all(isinstance(file, str) for file in files) else {}


@contextmanager
def claim(path: str, job: str, name: str = "output", patterns: Iterable[str] = ("*",),
          known: Iterable[str] = ()) -> Iterator[Output]:
    """Inside, the directory is this job's alone; what is in it is not touched before `Output.begin`.

    Args:
        path: directory or URI; it is made where it does not exist.
        job: names the writer.
        name: the config field that holds the path, for errors.
        patterns: see `Output`.
        known: files whose presence proves that an earlier version of the job, which had no marker, wrote it all.

    Raises:
        InvalidFieldError: another process is writing to it, it cannot be written to, its marker is broken, or it is a
            file.
    """
    location = locate(path, name)
    if location.kind() == pafs.FileType.File:
        raise InvalidFieldError(name, path, "a directory")
    try:
        location.filesystem.create_dir(location.root, recursive=True)
    except OSError as error:
        raise InvalidFieldError(name, path, f"a directory that can be made ({error})") from None
    with locked(location, name, path):
        output = Output(location, job, name, tuple(patterns))
        output._read()
        if not output._marker and any(location.kind(each) == pafs.FileType.File for each in known):
            output._marker = {"job": job, "state": "finished", "files": output._entries()}
        yield output


@contextmanager
def locked(location: Location, name: str, path: str) -> Iterator[None]:
    """Inside, no other process holds the directory. The lock is the kernel's and dies with its holder; on a filesystem
    that is not local there is none.

    Raises:
        InvalidFieldError: another process holds it, or it cannot be written to.
    """
    if not isinstance(location.filesystem, pafs.LocalFileSystem):
        yield
        return
    try:
        descriptor = os.open(Path(location.root) / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise InvalidFieldError(name, path, f"a directory that can be written to ({error.strerror}: {LOCK})") from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
            raise InvalidFieldError(name, path, "a directory that no other job is writing to") from None
        yield
    finally:
        os.close(descriptor)
