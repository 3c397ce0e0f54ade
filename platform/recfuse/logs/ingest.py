"""Session logs → samples: read, check, drop duplicates, cut sessions, write (design 3.1, 3.2), with a full account."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow.fs as pafs
import yaml

from recfuse.behaviours import Vocabulary
from recfuse.config import require, without_secrets
from recfuse.logs.account import Account
from recfuse.logs.config import IngestConfig
from recfuse.logs.exchange import EXCHANGED, NOTES, PART, QUARANTINE, Exchange, run
from recfuse.logs.files import TEMPORARY, file_name, list_files
from recfuse.logs.schema import ACCOUNT_FILE, VOCABULARY_FILE
from recfuse.logs.source import LogSource, Piece, log_end, open_log, pieces
from recfuse.runtime.locations import locate
from recfuse.runtime.outputs import Output, claim

logger = logging.getLogger("recfuse")
# Of Parquet; in memory it is some three times as much.
_PARTITION_BYTES = 32 << 20
_MIN_PARTITIONS = 4
_NUMBER = "[0-9]" * 5
_WRITTEN = (f"{PART}{_NUMBER}.parquet", f"{TEMPORARY}{PART}{_NUMBER}.parquet.*", f"{QUARANTINE}/*", f"{NOTES}/*",
            f"{EXCHANGED}/*", VOCABULARY_FILE, ACCOUNT_FILE)


@dataclass(frozen=True)
class IngestResult:
    """What was written.

    Attributes:
        samples: the directory.
        account: in = kept + quarantined, in rows.
        sessions: sessions among the kept rows.
        fingerprint: SHA-256 over the sample files; the same rows give the same one, however they were split in files.
        resumed: the samples of the same input were there already.
    """

    samples: str
    account: Account
    sessions: int
    fingerprint: str
    resumed: bool = False


@dataclass(frozen=True)
class Prepared:
    """A log that is open, and an output that is this job's alone."""

    config: IngestConfig
    source: LogSource
    output: Output

    def write(self) -> IngestResult:
        """The ingest on the initialised Ray, whatever is kept; finished samples of the same input are taken up."""
        key = _input_key(self.source, self.config)
        return _finished(self.output, self.config.output, key) or _ingest(self.source, self.config, self.output, key)


@contextmanager
def prepared(config: IngestConfig) -> Iterator[Prepared]:
    """Opens the log and claims the output, without Ray: what is refused is refused at once.

    Raises:
        InvalidFieldError: the log or the output is none, or another job is writing to the output.
    """
    source = open_log(config.logs, config.vocabulary)
    require(source.kind == "session_log", "logs", config.logs, "session logs; these are samples")
    inside = f"{locate(config.output, 'output').root}/".startswith(f"{source.location.root}/")
    require(not inside, "output", config.output, "a directory that is not in the log")
    with claim(config.output, "ingest", patterns=_WRITTEN, known=(ACCOUNT_FILE,)) as output:
        if _finished(output, config.output, _input_key(source, config)) is None:
            output.require_own()
        yield Prepared(config, source, output)


def ingest(config: IngestConfig) -> IngestResult:
    """Runs on the initialised Ray; returns the account.

    Raises:
        InvalidFieldError: as `prepared`; or, after all is written, no row was kept or too many were quarantined.
    """
    with prepared(config) as work:
        result = work.write()
    result.account.require(config.quarantine_limit, "logs")
    return result


def _ingest(source: LogSource, config: IngestConfig, output: Output, key: str) -> IngestResult:
    output.begin()
    filesystem, root = output.location.filesystem, output.location.root
    for directory in (QUARANTINE, EXCHANGED):
        filesystem.create_dir(f"{root}/{directory}")
    listing, unreadable = pieces(source)
    require(bool(listing), "logs", config.logs, f"at least one readable row ({unreadable or 'the files are empty'})")
    run(Exchange(source=source, filesystem=filesystem, root=root, config=config,
                 log_end=log_end(source, listing),
                 partitions=max(_MIN_PARTITIONS, sum(file.size for file in source.files) // _PARTITION_BYTES)), listing)
    result = _close(filesystem, root, source.vocabulary, listing, unreadable, config, key)
    output.finish()
    return result


def _input_key(source: LogSource, config: IngestConfig) -> str:
    """What decides the result: the same key means that a finished output can be kept."""
    listing = [(file.path, file.size, file.mtime_ns, dict(file.partition),
                None if file.kept is None else hashlib.sha256(file.kept.tobytes()).hexdigest())
               for file in source.files]
    rules = {name: value for name, value in config.to_dict().items()
             if name not in ("output", "quarantine_limit", "wait_limit")}
    return hashlib.sha256(json.dumps([listing, source.vocabulary.to_dict(), rules]).encode()).hexdigest()


def _finished(output: Output, name: str, key: str) -> IngestResult | None:
    """The result of an earlier run over the same input, if there is one."""
    if not output.finished or output.location.kind(ACCOUNT_FILE) != pafs.FileType.File:
        return None
    with output.location.filesystem.open_input_stream(output.location.below(ACCOUNT_FILE).root) as stream:
        try:
            saved = json.loads(stream.read())
        except ValueError:  # somebody changed it, and the samples are made anew
            return None
    if not isinstance(saved, dict) or saved.get("input_key") != key:
        return None
    logger.info("ingest: the samples of this input are there already")
    return IngestResult(name, Account(**saved["account"]), saved["sessions"], saved["fingerprint"], resumed=True)


def _close(filesystem: pafs.FileSystem, root: str, vocabulary: Vocabulary, listing: Sequence[Piece],
           unreadable: dict[str, str], config: IngestConfig, key: str) -> IngestResult:
    """Sums what the tasks noted of their files, asserts the account, and writes it."""
    found = _noted(filesystem, f"{root}/{NOTES}")
    for directory in (root, f"{root}/{QUARANTINE}"):
        for path in list_files(filesystem, directory, TEMPORARY):  # of tasks that died while they wrote
            filesystem.delete_file(path)
    _require_noted(filesystem, root, found.files)
    counts = found.counts
    account = Account(sum(piece.kept for piece in listing), counts["kept"], dict(found.quarantined), unreadable,
                      left_out=counts["left_out"], truncated=counts["truncated"], not_drawn=counts["not_drawn"],
                      ties=counts["ties"], notes=sorted(found.notes))
    digests = b"".join(bytes.fromhex(digest) for _, digest in found.files.values())
    fingerprint, sessions = hashlib.sha256(digests).hexdigest(), counts["sessions"]
    _write(filesystem, f"{root}/{VOCABULARY_FILE}", yaml.safe_dump(vocabulary.to_dict(), sort_keys=False))
    _write(filesystem, f"{root}/{ACCOUNT_FILE}", json.dumps(
        {"input_key": key, "logs": without_secrets(config.logs), "account": asdict(account), "sessions": sessions,
         "fingerprint": fingerprint}, indent=1))
    for directory in (NOTES, EXCHANGED):
        if filesystem.get_file_info(f"{root}/{directory}").type == pafs.FileType.Directory:
            filesystem.delete_dir(f"{root}/{directory}")
    logger.info("ingest: %s; %d sessions", account, sessions)
    return IngestResult(config.output, account, sessions, fingerprint)


@dataclass(frozen=True)
class _Noted:
    """What the tasks noted of the files that they wrote.

    Attributes:
        counts: sums of what is counted; quarantined: reason → rows.
        notes: each once.
        files: name of a sample file → size and SHA-256, in the order of the names.
    """

    counts: Counter[str]
    quarantined: Counter[str]
    notes: set[str]
    files: dict[str, tuple[int, str]]


def _noted(filesystem: pafs.FileSystem, directory: str) -> _Noted:
    found = _Noted(Counter(), Counter(), set(), {})
    if filesystem.get_file_info(directory).type != pafs.FileType.Directory:
        return found
    for path in list_files(filesystem, directory):
        if not path.endswith(".json") or file_name(path).startswith(TEMPORARY):
            continue
        with filesystem.open_input_stream(path) as stream:
            note: dict[str, Any] = json.loads(stream.read())
        found.notes.update(note.pop("notes", ()))
        found.quarantined.update(note.pop("quarantined", {}))
        if "sha256" in note:
            name = file_name(path).removesuffix(".json") + ".parquet"
            found.files[name] = note.pop("size"), note.pop("sha256")
        found.counts.update(note)
    return found


def _require_noted(filesystem: pafs.FileSystem, root: str, files: dict[str, tuple[int, str]]) -> None:
    """Asserts that the sample files are those that were noted."""
    infos = filesystem.get_file_info(list_files(filesystem, root, PART))
    there = {file_name(info.path): info.size for info in infos}
    noted = {name: size for name, (size, _) in files.items()}
    if there != noted:
        raise AssertionError(f"files changed while they were written: {sorted(there.items() ^ noted.items())[:3]}")


def _write(filesystem: pafs.FileSystem, path: str, text: str) -> None:
    with filesystem.open_output_stream(path) as stream:
        stream.write(text.encode())
