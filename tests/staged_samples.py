"""The bandit of `samples` with a stage per request."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import samples

from recfuse.behaviours import Vocabulary
from recfuse.logs.schema import VOCABULARY_FILE


def write(directory: Path, rows: int, stages: Mapping[str, int], of: Vocabulary | None = None, seed: int = 0) -> Path:
    """Samples in one file, whose requests have the stages in turn, each as often as its number says."""
    of = of or samples.vocabulary()
    turn = [stage for stage, count in stages.items() for _ in range(count)]
    table = samples.table(samples.bandit(rows, seed), of)
    place = table.schema.get_field_index("stage")
    directory.mkdir(parents=True)
    of.save(directory / VOCABULARY_FILE)
    pq.write_table(table.set_column(place, "stage", pa.array([turn[row % len(turn)] for row in range(rows)])),
                   directory / "part-0.parquet")
    return directory
