"""The Ray that a job runs on: the one it was submitted to, the one its process has already started, or a local one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

import ray
import ray.data
from ray._private import ray_constants
from ray.exceptions import RayError

logger = logging.getLogger("recfuse")
T = TypeVar("T")
# They announce at every start what we chose on purpose.
_CHATTY = ("ray.rllib", "ray.data", "ray.tune", "ray.train", "ray._common.deprecation",
           "ray._private.authentication.authentication_token_setup")

LOOPBACK = "127.0.0.1"
# Its name says where Ray itself uses it: there the servers of a local Ray listen on loopback alone.
_LOCAL_ONLY = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


@contextmanager
def on_loopback() -> Iterator[None]:
    """Inside, a Ray that is started with `_node_ip_address=LOOPBACK` listens on loopback alone.

    On Linux Ray 2.60 takes the machine's own address where it is given loopback, and then its servers, which run the
    code that they are sent, listen on every interface.
    """
    before, enabled = os.environ.get(_LOCAL_ONLY), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[_LOCAL_ONLY], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = enabled
        if before is None:
            del os.environ[_LOCAL_ONLY]
        else:
            os.environ[_LOCAL_ONLY] = before


@contextmanager
def cluster() -> Iterator[None]:
    """Inside, Ray is initialised. What was started here is shut down here, also on Ctrl-C."""
    for name in _CHATTY:
        logging.getLogger(name).setLevel(logging.ERROR)
    if ray.is_initialized():
        yield
        return
    # Set by `ray job submit` or by the user; without it a new local cluster on loopback, without dashboard.
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, logging_level=logging.WARNING)
    else:
        with on_loopback():
            ray.init(address="local", _node_ip_address=LOOPBACK, include_dashboard=False, log_to_driver=False,
                     logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()


def read_parquet(files: Sequence[str], readers: int | None = None) -> ray.data.Dataset:
    """The files as a dataset that streams.

    Ray 2.60's newer reader gives its first batch when it has read everything; this takes the older one.

    Args:
        readers: tasks that read at a time; absent, as many as there are idle CPUs.
    """
    context = ray.data.DataContext.get_current()
    before, context.use_datasource_v2 = context.use_datasource_v2, False
    try:
        return ray.data.read_parquet(list(files), concurrency=readers)
    finally:
        context.use_datasource_v2 = before


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
            logger.warning("attempt %d of %d was cut off, resuming: %s", attempt, attempts,
                           str(error).strip().splitlines()[-1][:200])
    return call()
