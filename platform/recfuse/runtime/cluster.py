"""The Ray that a job runs on: the one it was submitted to, the one its process has already started, or a local one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.fs as pafs
import ray
import ray.data
from ray.exceptions import RayError

from recfuse.config import InvalidFieldError
from recfuse.runtime import ray_compat

logger = logging.getLogger("recfuse")
T = TypeVar("T")


@contextmanager
def cluster() -> Iterator[None]:
    """Inside, Ray is initialised. What was started here is shut down here, also on Ctrl-C."""
    ray_compat.no_progress_bars()
    with ray_compat.quiet():
        if ray.is_initialized():
            yield
            return
        # Set by `ray job submit` or by the user; without it a new local cluster on loopback, without dashboard.
        if address := os.environ.get("RAY_ADDRESS"):
            ray.init(address=address, logging_level=logging.WARNING)
        else:
            ray_compat.start_local()
        try:
            yield
        finally:
            ray.shutdown()


def read_parquet(
    files: Sequence[str], readers: int | None = None, filesystem: pafs.FileSystem | None = None,
    schema: pa.Schema | None = None, blocks: int | None = None, cpus: float | None = None,
) -> ray.data.Dataset:
    """The files as a dataset that streams. Their paths mean themselves: `a=1` in one is no column.

    Args:
        readers: tasks that read at a time; absent, as many as there are idle CPUs.
        filesystem: that the paths are of; absent, told by them.
        schema: columns that are read; one that a file lacks is null there.
        blocks: at least so many; absent, 200, to which a few files are cut into pieces of a megabyte.
        cpus: that each task takes; absent, a whole one.
    """
    options: dict[str, Any] = {} if schema is None else {"schema": schema}
    if cpus is not None:
        options["num_cpus"] = cpus
    with ray_compat.older_parquet_reader():
        return ray.data.read_parquet(list(files), concurrency=readers, filesystem=filesystem, partitioning=None,
                                     file_extensions=None, override_num_blocks=blocks, **options)


def resuming(call: Callable[[], T], attempts: int = 20) -> T:
    """Calls again what the death of a worker or a node has cut off.

    Args:
        call: takes up its own last checkpoint, so that nothing is done twice.
        attempts: calls in all. The peers of a dead worker fail with errors of their own, so every error that comes from
            another process counts; those of this process are raised at once.
    """
    for attempt in range(1, attempts):
        try:
            return call()
        except RayError as error:
            if isinstance(error, InvalidFieldError):  # Ray gives what a task raises both kinds
                raise
            logger.warning("attempt %d of %d was cut off, resuming: %s", attempt, attempts,
                           str(error).strip().splitlines()[-1][:200])
    return call()
