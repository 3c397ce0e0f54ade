"""Session logs → samples: read, check, drop duplicates, cut sessions, write (design 3.1, 3.2), with a full account."""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Literal

import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import yaml
from pydantic import Field, model_validator

from recfuse.behaviours import Vocabulary
from recfuse.config import Config, require
from recfuse.logs.account import Account
from recfuse.logs.exchange import PART, QUARANTINE, Exchange, run
from recfuse.logs.files import TEMPORARY, DirectoryWriter, absolute, file_name, list_files, locate
from recfuse.logs.pieces import Piece, list_log_files, list_pieces, read_vocabulary
from recfuse.logs.schema import ACCOUNT_FILE, VOCABULARY_FILE

logger = logging.getLogger("recfuse")
_PARTITION_BYTES = 128 << 20
_MIN_PARTITIONS = 4


class IngestConfig(Config):
    """What to ingest and where to put it."""

    logs: str = Field(
        "runs/session_logs", description="Directory of the session logs, on any filesystem that pyarrow knows (a path, "
                                         "s3://, gs://, hdfs://).", min_length=1)
    output: str = Field(
        "runs/samples", description="Directory of the samples, on any filesystem that pyarrow knows; `quarantine` lies "
                                    "beneath it.", min_length=1)
    vocabulary: str = Field("", description="YAML file of the vocabulary; empty takes the one beside the logs.")
    gap_minutes: float = Field(
        30.0, description="Where `session_id` is absent, a pause of more minutes than this ends a session.", gt=0)
    density: Literal["required", "optional"] = Field(
        "required", description="`required` quarantines rows that have neither the density of their action nor a "
                                "Gaussian to compute it from; `optional` keeps them and the learner estimates it.")

    @model_validator(mode="after")
    def _check_output(self) -> IngestConfig:
        require(self.output != self.logs, "output", self.output, "a directory other than logs")
        return self


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


def ingest(config: IngestConfig) -> IngestResult:
    """Runs on the initialised Ray; returns the account.

    Raises:
        InvalidFieldError: no readable row at all, or a bad vocabulary.
    """
    vocabulary = read_vocabulary(config.logs, config.vocabulary)
    filesystem, root = locate(config.logs)
    output = _Output(*locate(config.output), config.output)
    files = list_log_files(filesystem, root, absolute(config.logs))
    require(bool(files), "logs", config.logs, "a directory with at least one *.parquet file")
    key = _input_key(files, vocabulary, config)
    if (finished := output.finished(key)) is not None:
        return finished
    output.clear()
    pieces, unreadable = list_pieces(filesystem, files)
    require(bool(pieces), "logs", config.logs, f"at least one readable row ({unreadable or 'the files are empty'})")
    run(Exchange(logs=filesystem, writer=DirectoryWriter(output.filesystem, output.root), vocabulary=vocabulary,
                 gap_seconds=config.gap_minutes * 60, need_density=config.density == "required",
                 partitions=max(_MIN_PARTITIONS, sum(info.size for info in files) // _PARTITION_BYTES)), pieces)
    return output.close(pieces, unreadable, vocabulary, key)


def _input_key(files: list[pafs.FileInfo], vocabulary: Vocabulary, config: IngestConfig) -> str:
    """What decides the result: the same key means that a finished output can be kept."""
    listing = [(info.path, info.size, info.mtime_ns or 0) for info in files]
    return hashlib.sha256(json.dumps(
        [listing, vocabulary.to_dict(), config.gap_minutes, config.density]).encode()).hexdigest()


@dataclass(frozen=True)
class _Output:
    """The directory of the samples; its account is written last and marks it as finished.

    Attributes:
        filesystem, root: where it lies.
        name: what the user calls it.
    """

    filesystem: pafs.FileSystem
    root: str
    name: str

    def finished(self, key: str) -> IngestResult | None:
        """The result of an earlier run over the same input, if there is one."""
        path = f"{self.root}/{ACCOUNT_FILE}"
        if self.filesystem.get_file_info(path).type != pafs.FileType.File:
            return None
        with self.filesystem.open_input_stream(path) as stream:
            saved = json.loads(stream.read())
        if saved.get("input_key") != key:
            return None
        logger.info("ingest: the samples of this input are there already")
        return IngestResult(self.name, Account(**saved["account"]), saved["sessions"], saved["fingerprint"],
                            resumed=True)

    def clear(self) -> None:
        """Removes what an earlier or interrupted run left; refuses a directory that holds anything else."""
        self.filesystem.create_dir(self.root, recursive=True)
        written = {QUARANTINE, VOCABULARY_FILE, ACCOUNT_FILE}
        for info in self.filesystem.get_file_info(pafs.FileSelector(self.root)):
            name = file_name(info.path)
            known = name in written or name.startswith((PART, TEMPORARY + PART))
            require(known, "output", name, "an empty directory, or one that ingest wrote")
        self.filesystem.delete_dir_contents(self.root)
        self.filesystem.create_dir(f"{self.root}/{QUARANTINE}")

    def close(self, pieces: list[Piece], unreadable: dict[str, str], vocabulary: Vocabulary,
              key: str) -> IngestResult:
        """Counts what lies on disk, asserts the account, and writes it."""
        for directory in (self.root, f"{self.root}/{QUARANTINE}"):
            for path in list_files(self.filesystem, directory, TEMPORARY):  # of tasks that died while they wrote
                self.filesystem.delete_file(path)
        kept, sessions, fingerprint = self._samples()
        account = Account(sum(piece.rows for piece in pieces), kept, self._quarantined(), unreadable)
        self._write(VOCABULARY_FILE, yaml.safe_dump(vocabulary.to_dict(), sort_keys=False))
        self._write(ACCOUNT_FILE, json.dumps({"input_key": key, "account": asdict(account), "sessions": sessions,
                                              "fingerprint": fingerprint}, indent=1))
        logger.info("ingest: %s; %d sessions", account, sessions)
        return IngestResult(self.name, account, sessions, fingerprint)

    def _samples(self) -> tuple[int, int, str]:
        """Rows, sessions and fingerprint of the sample files."""
        digest, rows, sessions = hashlib.sha256(), 0, 0
        for path in list_files(self.filesystem, self.root, PART):
            table = pq.read_table(path, filesystem=self.filesystem, columns=["done"])
            rows += table.num_rows
            sessions += int(pc.sum(table["done"]).as_py() or 0)
            with self.filesystem.open_input_stream(path) as stream:
                digest.update(hashlib.sha256(stream.read()).digest())
        return rows, sessions, digest.hexdigest()

    def _quarantined(self) -> dict[str, int]:
        """Reason → quarantined rows."""
        rows: Counter[str] = Counter()
        for path in list_files(self.filesystem, f"{self.root}/{QUARANTINE}"):
            table = pq.read_table(path, filesystem=self.filesystem, columns=["field", "allowed"])
            for group in table.group_by(["field", "allowed"]).aggregate([([], "count_all")]).to_pylist():
                rows[f"{group['field']} (allowed: {group['allowed']})"] += group["count_all"]
        return dict(rows)

    def _write(self, name: str, text: str) -> None:
        with self.filesystem.open_output_stream(f"{self.root}/{name}") as stream:
            stream.write(text.encode())
