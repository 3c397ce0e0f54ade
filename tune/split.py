"""Samples by user: those that trials learn from, those that judge every trial, those that judge the winner alone."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import Field, model_validator

from recfuse.behaviours import Vocabulary
from recfuse.config import Config, require
from recfuse.logs.files import parquet_options
from recfuse.logs.schema import VOCABULARY_FILE

LEARN, JUDGE, LAST = "learn", "judge", "last"
GROUPS = (LEARN, JUDGE, LAST)
_DONE = "split.json"
_BATCH = 65_536


class SplitConfig(Config):
    """Who is in which group."""

    judge: float = Field(0.2, description="This share of the users judges every trial.", gt=0, lt=1)
    last: float = Field(
        0.2, description="This share of the users judges the winner again; all others train.", gt=0, lt=1)
    person: str = Field(
        r"^[^.]+", description="Users whose ids share what this regular expression matches stay together; in the "
        "simulator `7` and `7.1` have the same tastes.")
    seed: int = Field(0, description="The seed of the hash that deals the users out.")

    @model_validator(mode="after")
    def _users_are_left(self) -> Self:
        require(self.last < 1 - self.judge, "last", self.last, "a share > 0 that leaves users to train")
        try:
            re.compile(self.person)
        except re.error as error:
            require(False, "person", self.person, f"a regular expression ({error})")
        return self


def groups_of(users: NDArray[Any] | list[str], config: SplitConfig) -> NDArray[np.int64]:
    """The place in GROUPS of every user id, int64[n]: a hash, the same wherever and whenever it is asked."""
    distinct, codes = np.unique(np.asarray(users, object).astype(str), return_inverse=True)
    pattern = re.compile(config.person)
    names = [f"{config.seed}:{match[0] if (match := pattern.match(user)) else user}" for user in distinct]
    hashed = pd.util.hash_array(np.array(names, object), categorize=False).astype(np.float64) / 2.0**64
    edges = [1 - config.judge - config.last, 1 - config.last]
    return np.searchsorted(edges, hashed, side="right").astype(np.int64)[codes]


def split_samples(samples: str | Path, output: Path, config: SplitConfig) -> dict[str, Path]:
    """Reads the samples once and writes those of each group in a directory of samples of its own.

    What an earlier call wrote is kept where samples and config are the same.

    Raises:
        InvalidFieldError: no samples, or a group without any.
    """
    source = Path(samples)
    require(source.is_dir(), "samples", str(source), "a directory of samples, as jobs/ingest.py writes them")
    vocabulary = Vocabulary.load(source / VOCABULARY_FILE)
    files = sorted(source.glob("*.parquet"))
    require(bool(files), "samples", str(source), "a directory with at least one .parquet file")
    identity = {"files": [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files],
                "config": config.to_dict()}
    targets = {name: output / name for name in GROUPS}
    done = output / _DONE
    if done.is_file() and json.loads(done.read_text())["identity"] == identity:
        return targets
    for path in targets.values():  # of other samples, or of a call that was cut off
        require(path.resolve() != source.resolve(), "output", str(output), "a directory that does not hold the samples")
        shutil.rmtree(path, ignore_errors=True)
    rows = _write(ds.dataset(files), targets, vocabulary, config)
    for name, count in rows.items():
        require(count > 0, f"split.{name}", count, "a share that gives at least one user")
    done.write_text(json.dumps({"identity": identity, "rows": rows}))
    return targets


def _write(source: ds.Dataset, targets: dict[str, Path], vocabulary: Vocabulary, config: SplitConfig) -> dict[str, int]:
    rows = dict.fromkeys(targets, 0)
    writers = []
    for path in targets.values():
        path.mkdir(parents=True)
        vocabulary.save(path / VOCABULARY_FILE)
        writers.append(pq.ParquetWriter(path / "part-00000.parquet", source.schema, **parquet_options(source.schema)))
    for batch in source.to_batches(batch_size=_BATCH):
        group = groups_of(batch.column("user_id").to_numpy(zero_copy_only=False), config)
        for place, name in enumerate(targets):
            part = batch.filter(pa.array(group == place))
            rows[name] += part.num_rows
            if part.num_rows:
                writers[place].write_batch(part)
    for writer in writers:
        writer.close()
    return rows
