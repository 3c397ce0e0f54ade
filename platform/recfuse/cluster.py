"""The Ray that a job runs on: the one it was submitted to, the one its process has already started, or a local one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")

import ray

# They announce at every start what we chose on purpose.
_CHATTY = ("ray.rllib", "ray.data", "ray.tune", "ray.train", "ray._common.deprecation",
           "ray._private.authentication.authentication_token_setup")


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
        # With another address Ray's own servers listen on every interface.
        ray.init(address="local", _node_ip_address="127.0.0.1", include_dashboard=False, log_to_driver=False,
                 logging_level=logging.WARNING)
    try:
        yield
    finally:
        ray.shutdown()
