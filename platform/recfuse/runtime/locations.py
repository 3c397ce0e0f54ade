"""Where data lies: one meaning of a path or URI for every job."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.fs as pafs

from recfuse.config import InvalidFieldError

_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")


@dataclass(frozen=True)
class Location:
    """A place on a filesystem.

    Attributes:
        uri: as other libraries take it: an absolute path, or a URI with its scheme.
        filesystem: of pyarrow.
        root: the place within the filesystem, without a slash at the end.
    """

    uri: str
    filesystem: pafs.FileSystem
    root: str

    @property
    def delta_uri(self) -> str:
        """As deltalake takes it, which reads a local path as a URI too and would decode `%20` in a name."""
        return self.uri if "://" in self.uri else Path(self.uri).as_uri()

    def kind(self, below: str = "") -> pafs.FileType:
        """What lies there: a file, a directory, or nothing.

        Raises:
            InvalidFieldError: the filesystem does not answer.
        """
        try:
            return self.filesystem.get_file_info(f"{self.root}/{below}" if below else self.root).type
        except (pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InvalidFieldError("path", _shown(self.uri), f"a place that can be reached ({reason})") from None

    def below(self, name: str) -> Location:
        """The place of this name beneath it."""
        return Location(f"{self.uri}/{name}", self.filesystem, f"{self.root}/{name}")

    @property
    def above(self) -> Location:
        """The directory that it lies in."""
        return Location(self.uri.rsplit("/", 1)[0] or "/", self.filesystem, self.root.rsplit("/", 1)[0])

    def relative(self, path: str) -> str:
        """A path of the filesystem as seen from here."""
        return path[len(self.root) + 1:] if path.startswith(self.root + "/") else path


def locate(path: str | Path, field: str = "path") -> Location:
    """The place that a path or URI names.

    A path is taken to the letter: spaces, `%`, `#`, `?` and `=` mean themselves. In a URI (`s3://…`, `gs://…`) the same
    holds, save for what stands behind a `?`, which pyarrow reads as options; a `?` or `%` of a name is written `%3F`,
    `%25`.

    Args:
        path: local path, or URI of a filesystem that pyarrow knows.
        field: names the value in the error.

    Raises:
        InvalidFieldError: an empty path, or a scheme that pyarrow does not know.
    """
    text = str(path)
    if not text:
        raise InvalidFieldError(field, text, "a path or URI")
    scheme = _SCHEME.match(text)
    if scheme is None or scheme[1] == "file":
        place = unquote(text[len("file://"):]) if scheme else text
        absolute = str(Path(place).expanduser().absolute())
        return Location(absolute, pafs.LocalFileSystem(), absolute.rstrip("/") or "/")
    name, question, options = text.partition("?")
    # Reserved characters of a name must be escaped, or pyarrow cuts the path there.
    escaped = quote(name, safe=":/%@+,;=~!$&'()*[]")
    try:
        filesystem, root = pafs.FileSystem.from_uri(escaped + question + options)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidFieldError(field, _shown(text), f"a path, or a URI that pyarrow knows ({reason})") from None
    return Location(text.rstrip("/"), filesystem, root.rstrip("/"))


def _shown(uri: str) -> str:
    """A URI as messages show it: without the name and password that it may carry."""
    return re.sub(r"://[^/@]*@", "://…@", uri)
