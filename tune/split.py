"""Samples by user: those that trials learn from, those that judge every trial, those that judge the winner alone."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recfuse.config import require
from recfuse.logs.files import parquet_options
from recfuse.logs.reading import open_samples, read_samples
from recfuse.logs.schema import VOCABULARY_FILE, sample_schema
from recfuse.logs.source import LogSource
from recfuse.runtime.outputs import claim
from recfuse.tune.settings import SplitConfig

LEARN, JUDGE, LAST = "learn", "judge", "last"
GROUPS = (LEARN, JUDGE, LAST)
_DONE = "split.json"
_PART = "part-00000.parquet"


def groups_of(users: NDArray[Any] | list[str], config: SplitConfig) -> NDArray[np.int64]:
    """The place in GROUPS of every user id, int64[n]: a hash, the same wherever and whenever it is asked."""
    distinct, codes = np.unique(np.asarray(users, object).astype(str), return_inverse=True)
    pattern = re.compile(config.person)
    names = [f"{config.seed}:{match[0] if (match := pattern.match(user)) else user}" for user in distinct]
    hashed = pd.util.hash_array(np.array(names, object), categorize=False).astype(np.float64) / 2.0**64
    edges = [1 - config.judge - config.last, 1 - config.last]
    return np.searchsorted(edges, hashed, side="right").astype(np.int64)[codes]


def split_samples(samples: str | Path, output: Path, config: SplitConfig) -> dict[str, Path]:
    """Reads the samples once and writes those of each group in a directory of samples of its own. A user's sessions
    are all in one group, so that each stays whole.

    What an earlier call wrote is kept where samples and config are the same.

    Raises:
        InvalidFieldError: no samples, a group without any, or a group's directory holds what no split wrote.
    """
    source = open_samples(str(samples))
    identity = {"files": [[file.path, file.size, file.mtime_ns] for file in source.files],
                "vocabulary": source.vocabulary.to_dict(), "config": config.to_dict()}
    targets = {name: output / name for name in GROUPS}
    done = output / _DONE
    if done.is_file() and json.loads(done.read_text())["identity"] == identity:
        return targets
    for path in targets.values():
        require(str(path.resolve()) != str(Path(source.location.root).resolve()), "output", str(output),
                "a directory that does not hold the samples")
    # Of a split by an earlier version, whose directories have no marker, this file is the proof.
    known = (VOCABULARY_FILE,) if done.is_file() else ()
    done.unlink(missing_ok=True)
    with ExitStack() as stack:
        outputs = [stack.enter_context(claim(str(path), "split", patterns=(_PART, VOCABULARY_FILE), known=known))
                   for path in targets.values()]
        for each in outputs:
            each.begin()
        rows = _write(source, targets, config)
        for each in outputs:
            each.finish()
    for name, count in rows.items():
        require(count > 0, f"split.{name}", count, "a share that gives at least one user")
    done.write_text(json.dumps({"identity": identity, "rows": rows}))
    return targets


def _write(source: LogSource, targets: dict[str, Path], config: SplitConfig) -> dict[str, int]:
    rows, schema = dict.fromkeys(targets, 0), sample_schema(source.vocabulary)
    with ExitStack() as stack:
        writers = {}
        for name, path in targets.items():
            source.vocabulary.save(path / VOCABULARY_FILE)
            writers[name] = stack.enter_context(pq.ParquetWriter(path / _PART, schema, **parquet_options(schema)))
        for table in read_samples(source):
            group = groups_of(table["user_id"].to_numpy(), config)
            for place, name in enumerate(targets):
                part = table.filter(pa.array(group == place))
                rows[name] += part.num_rows
                if part.num_rows:
                    writers[name].write_table(part)
    return rows
