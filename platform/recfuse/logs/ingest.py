"""Session logs → samples on Ray Data: read, check, drop duplicates, cut sessions, write (design 3.1, 3.2).

Every task's result is named by its input (row group or hash partition), so a task that Ray runs twice writes the same
file twice and nothing is counted twice. Two keyed exchanges, no global sort: by request for duplicates, by user for
sessions.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import ray
import ray.data
import yaml

from recfuse.behaviours import Vocabulary
from recfuse.config import InvalidFieldError, require
from recfuse.logs.account import Account
from recfuse.logs.schema import ACCOUNT_FILE, VOCABULARY_FILE, session_log_schema
from recfuse.logs.sessions import keep_first, to_samples
from recfuse.logs.validation import DUPLICATE, Checked, check, quarantine_rows
from recfuse.runtime.console import Progress

logger = logging.getLogger("recfuse")
_PARTITION_BYTES = 128 << 20
_MIN_PARTITIONS = 4
# What a broken Parquet file raises: names in a footer may be no UTF-8, so that ValueError is among it.
_BROKEN = (pa.ArrowException, OSError, ValueError)


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """What to ingest and where to put it.

    Attributes:
        logs: directory of native session logs, on any filesystem pyarrow knows (path, s3://, gs://, hdfs://).
        output: directory of the samples, likewise; `quarantine/` lies beneath it.
        vocabulary: YAML file; by default `vocabulary.yaml` beside the logs.
        gap_minutes: where `session_id` is absent, a pause longer than this ends a session.
        density: `required` quarantines rows whose action has no logged density and no Gaussian to compute it from;
            `optional` keeps them, and the learner estimates it.
    """

    logs: str = "runs/session_logs"
    output: str = "runs/samples"
    vocabulary: str = ""
    gap_minutes: float = 30.0
    density: Literal["required", "optional"] = "required"

    def __post_init__(self) -> None:
        require(bool(self.logs), "logs", self.logs, "a directory of session logs")
        require(bool(self.output) and self.output != self.logs, "output", self.output, "a directory other than logs")
        require(self.gap_minutes > 0, "gap_minutes", self.gap_minutes, "a number > 0")
        require(self.density in ("required", "optional"), "density", self.density, "required, optional")


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
class _Piece:
    """A row group of a log file, the unit of reading."""

    number: int
    path: str
    row_group: int
    rows: int


def read_vocabulary(directory: str, file: str = "") -> Vocabulary:
    """The vocabulary that travels with logs or samples, from any filesystem."""
    filesystem, root = pafs.FileSystem.from_uri(_absolute(file or directory))
    path = root if file else f"{root}/{VOCABULARY_FILE}"
    try:
        with filesystem.open_input_stream(path) as stream:
            mapping = yaml.safe_load(stream.read())
    except (OSError, yaml.YAMLError) as error:
        raise InvalidFieldError("vocabulary", path, f"a YAML file that travels with the log ({error})") from None
    return Vocabulary.from_dict(mapping, source=VOCABULARY_FILE)


def ingest(config: IngestConfig) -> IngestResult:
    """Runs on the initialised Ray; returns the account.

    Raises:
        InvalidFieldError: no readable row at all, or a bad vocabulary.
    """
    vocabulary = read_vocabulary(config.logs, config.vocabulary)
    filesystem, root = pafs.FileSystem.from_uri(_absolute(config.logs))
    out_filesystem, out = pafs.FileSystem.from_uri(_absolute(config.output))
    files = _list_files(filesystem, root, _absolute(config.logs))
    require(bool(files), "logs", config.logs, "a directory with at least one *.parquet file")
    key = _input_key(files, vocabulary, config)
    if (done := _finished(out_filesystem, out, config.output, key)) is not None:
        return done
    _clear(out_filesystem, out)
    pieces, unreadable = _list_pieces(filesystem, files)
    require(bool(pieces), "logs", config.logs, f"at least one readable row ({unreadable or 'the files are empty'})")
    _exchange(pieces, filesystem, out_filesystem, out, vocabulary, config,
              max(_MIN_PARTITIONS, sum(info.size for info in files) // _PARTITION_BYTES))
    return _close(pieces, unreadable, out_filesystem, out, vocabulary, config, key)


def _absolute(path: str) -> str:
    return path if "://" in path else str(Path(path).resolve())


def _list_files(filesystem: pafs.FileSystem, root: str, uri: str) -> list[pafs.FileInfo]:
    # Of a Delta table (serving writes one, `sessions`) the files of its present version and no others.
    for below in ("", "/sessions"):
        place = root + below
        if filesystem.get_file_info(f"{place}/_delta_log").type == pafs.FileType.Directory:
            from deltalake import DeltaTable

            names = DeltaTable(uri.rstrip("/") + below).get_add_actions(flatten=True).column("path").to_pylist()
            return sorted(filesystem.get_file_info([f"{place}/{unquote(name)}" for name in names]),
                          key=lambda i: i.path)
    try:
        found = filesystem.get_file_info(pafs.FileSelector(root, recursive=True))
    except OSError as error:
        raise InvalidFieldError("logs", root, f"a directory that exists ({error})") from None
    return sorted((info for info in found if info.is_file and info.path.endswith(".parquet")), key=lambda i: i.path)


def _list_pieces(filesystem: pafs.FileSystem, files: list[pafs.FileInfo]) -> tuple[list[_Piece], dict[str, str]]:
    """Row groups of the readable files, and why the others are not readable."""
    def footer(info: pafs.FileInfo) -> list[int] | str:
        try:
            metadata = pq.ParquetFile(info.path, filesystem=filesystem).metadata
            return [metadata.row_group(group).num_rows for group in range(metadata.num_row_groups)]
        except _BROKEN as error:
            return f"not a Parquet file ({str(error).splitlines()[0]}); allowed: Parquet"

    with ThreadPoolExecutor(16) as pool:
        footers = list(pool.map(footer, files))
    unreadable = {_tail(info.path): why for info, why in zip(files, footers, strict=True) if isinstance(why, str)}
    pieces: list[_Piece] = []
    for info, groups in zip(files, footers, strict=True):
        if isinstance(groups, list):
            pieces += [_Piece(len(pieces) + k, info.path, k, rows) for k, rows in enumerate(groups)]
    return [piece for piece in pieces if piece.rows], unreadable


def _tail(path: str) -> str:
    return path.rsplit("/", 1)[-1]


def _input_key(files: list[pafs.FileInfo], vocabulary: Vocabulary, config: IngestConfig) -> str:
    """What decides the result: the same key means that a finished output can be kept."""
    listing = [(info.path, info.size, info.mtime_ns or 0) for info in files]
    return hashlib.sha256(json.dumps(
        [listing, vocabulary.to_dict(), config.gap_minutes, config.density]).encode()).hexdigest()


def _finished(filesystem: pafs.FileSystem, out: str, output: str, key: str) -> IngestResult | None:
    if filesystem.get_file_info(f"{out}/{ACCOUNT_FILE}").type != pafs.FileType.File:
        return None
    with filesystem.open_input_stream(f"{out}/{ACCOUNT_FILE}") as stream:
        saved = json.loads(stream.read())
    if saved.get("input_key") != key:
        return None
    logger.info("ingest: the samples of this input are there already")
    return IngestResult(output, Account(**saved["account"]), saved["sessions"], saved["fingerprint"], resumed=True)


def _clear(filesystem: pafs.FileSystem, out: str) -> None:
    """Removes what an earlier or interrupted run left; refuses a directory that holds anything else."""
    filesystem.create_dir(out, recursive=True)
    ours = {"quarantine", VOCABULARY_FILE, ACCOUNT_FILE}
    for info in filesystem.get_file_info(pafs.FileSelector(out)):
        name = _tail(info.path)
        known = name in ours or name.startswith(("part-", "_part-"))
        require(known, "output", name, "an empty directory, or one that ingest wrote")
    filesystem.delete_dir_contents(out)
    filesystem.create_dir(f"{out}/quarantine")


def _exchange(
    pieces: list[_Piece],
    filesystem: pafs.FileSystem,
    out_filesystem: pafs.FileSystem,
    out: str,
    vocabulary: Vocabulary,
    config: IngestConfig,
    partitions: int,
) -> None:
    """The Ray Data pipeline; its results are files."""
    writer = _Writer(out_filesystem, out)
    counter = _Counter.options(max_restarts=-1).remote()  # type: ignore[attr-defined]

    def read(batch: pa.Table) -> pa.Table:
        [piece] = [_Piece(**row) for row in batch.to_pylist()]
        checked = _read_piece(piece, filesystem, vocabulary, config.density == "required")
        writer.quarantine(f"piece-{piece.number:06d}", checked.quarantine)
        counter.add.remote("read", piece.rows)
        return _with_partition(checked.rows, "request_id", partitions)

    def deduplicate(group: pa.Table) -> pa.Table:
        number = group["_partition"][0].as_py()
        first, others = keep_first(group.drop_columns("_partition"))
        writer.quarantine(f"duplicates-{number:05d}", quarantine_rows(others, "after reading", *DUPLICATE))
        return _with_partition(first, "user_id", partitions)

    def cut(group: pa.Table) -> pa.Table:
        number = group["_partition"][0].as_py()
        samples = to_samples(group.drop_columns("_partition"), vocabulary, config.gap_minutes * 60)
        writer.write(f"part-{number:05d}.parquet", samples)
        counter.add.remote("written", samples.num_rows)
        return pa.table({"rows": [samples.num_rows]})

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    listing = [asdict(piece) for piece in pieces]
    blocks = min(len(listing), 1000)
    dataset = (
        ray.data.from_items(listing, override_num_blocks=blocks)
        .map_batches(read, batch_size=1, batch_format="pyarrow")
        .groupby("_partition", num_partitions=partitions).map_groups(deduplicate, batch_format="pyarrow")
        .groupby("_partition", num_partitions=partitions).map_groups(cut, batch_format="pyarrow")
    )
    with _Watch(counter, sum(piece.rows for piece in pieces)):
        for _ in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            pass


def _read_piece(
    piece: _Piece, filesystem: pafs.FileSystem, vocabulary: Vocabulary, need_density: bool
) -> Checked:
    source = f"{_tail(piece.path)}[{piece.row_group}]"
    try:
        # Checksums of pages are looked at where the writer left some.
        file = pq.ParquetFile(piece.path, filesystem=filesystem, page_checksum_verification=True)
        table = file.read_row_group(piece.row_group)
        if table.num_rows != piece.rows:
            raise ValueError(f"{table.num_rows} rows where the footer says {piece.rows}")
    except _BROKEN as error:
        # The footer was fine and counts the rows, so they are accounted for although none can be shown.
        table = pa.table({"unreadable": pa.nulls(piece.rows, pa.string())})
        why = str(error).splitlines()[0]
        quarantine = quarantine_rows(table, source, "row group", "readable Parquet", value=why)
        return Checked(session_log_schema(vocabulary).empty_table(), quarantine)
    return check(table, vocabulary, source, need_density)


def _with_partition(rows: pa.Table, key: str, partitions: int) -> pa.Table:
    # pandas' string hash has a fixed key: the same on every worker and in every run.
    hashed = pd.util.hash_array(rows[key].to_numpy(zero_copy_only=False).astype(object), categorize=False)
    return rows.append_column("_partition", pa.array((hashed % np.uint64(partitions)).astype(np.int32)))


class _Writer:
    """Writes Parquet under the output directory: to a temporary name of its own, then renamed.

    A task that Ray believes dead may still be writing beside its successor; each renames a whole file.
    """

    def __init__(self, filesystem: pafs.FileSystem, out: str) -> None:
        self._filesystem, self._out = filesystem, out

    def quarantine(self, name: str, rows: pa.Table) -> None:
        if rows.num_rows:
            self.write(f"quarantine/{name}.parquet", rows)

    def write(self, name: str, table: pa.Table) -> None:
        target = f"{self._out}/{name}"
        directory, file = target.rsplit("/", 1)
        temporary = f"{directory}/_{file}.{uuid.uuid4().hex[:8]}"
        pq.write_table(table, temporary, filesystem=self._filesystem, compression="zstd")
        self._filesystem.move(temporary, target)


@ray.remote(num_cpus=0)
class _Counter:
    """Rows that the tasks have handled so far, for the progress line alone: it forgets them where its process dies."""

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter()

    def add(self, what: str, rows: int) -> None:
        self._rows[what] += rows

    def rows(self) -> dict[str, int]:
        return dict(self._rows)


class _Watch:
    """Prints a progress line every few seconds while the pipeline runs."""

    def __init__(self, counter: Any, total: int) -> None:
        self._counter, self._progress, self._seen = counter, Progress("ingest", total), 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._look()
        self._progress.finish()

    def _loop(self) -> None:
        while not self._stop.wait(1.0):
            self._look()

    def _look(self) -> None:
        try:
            rows = ray.get(self._counter.rows.remote())
        except ray.exceptions.RayActorError:  # its process or node has died; the rows themselves are safe
            return
        read = max(rows.get("read", 0), self._seen)
        self._progress.advance(read - self._seen, note=f"{rows.get('written', 0):,} samples written")
        self._seen = read


def _close(
    pieces: list[_Piece],
    unreadable: dict[str, str],
    filesystem: pafs.FileSystem,
    out: str,
    vocabulary: Vocabulary,
    config: IngestConfig,
    key: str,
) -> IngestResult:
    """Counts what lies on disk, asserts the account, and marks the output as finished by writing the account last."""
    digest, kept, sessions = hashlib.sha256(), 0, 0
    for directory in (out, f"{out}/quarantine"):
        for path in _paths(filesystem, directory, "_"):  # of tasks that died while they wrote
            filesystem.delete_file(path)
    for path in _paths(filesystem, out, "part-"):
        table = pq.read_table(path, filesystem=filesystem, columns=["done"])
        kept += table.num_rows
        sessions += int(pc.sum(table["done"]).as_py() or 0)
        with filesystem.open_input_stream(path) as stream:
            digest.update(hashlib.sha256(stream.read()).digest())
    quarantined: Counter[str] = Counter()
    for path in _paths(filesystem, f"{out}/quarantine", ""):
        table = pq.read_table(path, filesystem=filesystem, columns=["field", "allowed"])
        for group in table.group_by(["field", "allowed"]).aggregate([([], "count_all")]).to_pylist():
            quarantined[f"{group['field']} (allowed: {group['allowed']})"] += group["count_all"]
    account = Account(sum(piece.rows for piece in pieces), kept, dict(quarantined), unreadable)
    with filesystem.open_output_stream(f"{out}/{VOCABULARY_FILE}") as stream:
        stream.write(yaml.safe_dump(json.loads(json.dumps(vocabulary.to_dict())), sort_keys=False).encode())
    saved = {"input_key": key, "account": asdict(account), "sessions": sessions, "fingerprint": digest.hexdigest()}
    with filesystem.open_output_stream(f"{out}/{ACCOUNT_FILE}") as stream:
        stream.write(json.dumps(saved, indent=1).encode())
    logger.info("ingest: %s; %d sessions", account, sessions)
    return IngestResult(config.output, account, sessions, digest.hexdigest())


def _paths(filesystem: pafs.FileSystem, directory: str, prefix: str) -> list[str]:
    found = filesystem.get_file_info(pafs.FileSelector(directory))
    return sorted(info.path for info in found if info.is_file and _tail(info.path).startswith(prefix))

