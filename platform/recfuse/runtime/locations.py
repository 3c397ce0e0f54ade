"""Where data lies: one meaning of a path or URI for every job."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, unquote

import pyarrow as pa
import pyarrow.fs as pafs

from recfuse.config import InvalidFieldError

_SAFE = ":/@+,;=~!$&'()*[]"
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]+)://")


@dataclass(frozen=True)
class Location:
    """A place on a filesystem.

    Attributes:
        uri: an absolute path, or a URI with its scheme and options, as `locate` takes it.
        filesystem: of pyarrow.
        root: the place within the filesystem, without a slash at the end.
    """

    uri: str
    filesystem: pafs.FileSystem
    root: str

    @property
    def delta_uri(self) -> str:
        """As deltalake takes it, which reads a local path as a URI too and would decode `%20` in a name; without the
        options, which are `delta_options`."""
        scheme = _SCHEME.match(self.uri)
        return f"{scheme[1]}://{quote(self.root, safe=_SAFE)}" if scheme else Path(self.uri).as_uri()

    @property
    def delta_options(self) -> dict[str, str]:
        """What a URI says of its server beside the place, as deltalake takes it: endpoint, region, name and password.
        What it does not say comes from the environment."""
        place, _, query = _split(self.uri)
        scheme, _, rest = place.partition("://")
        if scheme != "s3":
            return {}
        said, options = dict(parse_qsl(query)), {}
        if endpoint := said.get("endpoint_override"):
            protocol = said.get("scheme", "https")
            options["AWS_ENDPOINT_URL"] = endpoint if "://" in endpoint else f"{protocol}://{endpoint}"
            options["AWS_ALLOW_HTTP"] = str(options["AWS_ENDPOINT_URL"].startswith("http://")).lower()
        if region := said.get("region"):
            options["AWS_REGION"] = region
        account, at, _ = rest.split("/", 1)[0].rpartition("@")
        if at:
            name, _, password = account.partition(":")
            options |= {"AWS_ACCESS_KEY_ID": unquote(name), "AWS_SECRET_ACCESS_KEY": unquote(password)}
        return options

    def kind(self, below: str = "") -> pafs.FileType:
        """What lies there: a file, a directory, or nothing.

        Raises:
            InvalidFieldError: the filesystem does not answer.
        """
        try:
            return self.filesystem.get_file_info(f"{self.root}/{below}" if below else self.root).type
        except (pa.ArrowException, OSError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InvalidFieldError("path", self.uri, f"a place that can be reached ({reason})") from None

    def below(self, name: str) -> Location:
        """The place of this name beneath it."""
        place, question, options = _split(self.uri)
        shown = name if _SCHEME.match(self.uri) is None else name.replace("%", "%25").replace("?", "%3F")
        return Location(f"{place}/{shown}{question}{options}", self.filesystem, f"{self.root}/{name}")

    @property
    def above(self) -> Location:
        """The directory that it lies in."""
        place, question, options = _split(self.uri)
        return Location((place.rsplit("/", 1)[0] or "/") + question + options, self.filesystem,
                        self.root.rsplit("/", 1)[0])

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
    name, question, options = _split(text)
    # Reserved characters of a name must be escaped, or pyarrow cuts the path there.
    escaped = quote(name, safe=f"%{_SAFE}")
    try:
        filesystem, root = pafs.FileSystem.from_uri(escaped + question + options)
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidFieldError(field, text, f"a path, or a URI that pyarrow knows ({reason})") from None
    return Location(name.rstrip("/") + question + options, filesystem, root.rstrip("/"))


def _split(uri: str) -> tuple[str, str, str]:
    """A URI before its options, `?`, and them; of a path all is the first."""
    return uri.partition("?") if _SCHEME.match(uri) else (uri, "", "")
