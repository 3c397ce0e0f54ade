"""One local Ray for each module of integration tests that does not start its own: two at a time share fixed ports."""

from __future__ import annotations

import os

import pytest
import torch

# On small matrices two threads spend more time waiting for each other than they save.
torch.set_num_threads(1)
os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
# Workers import `recfuse` and unpickle functions of the test modules.
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
os.environ["PYTHONPATH"] = os.pathsep.join(os.path.join(ROOT, part) for part in ("platform", "tests", ""))


@pytest.fixture(scope="module")
def local_ray():
    import ray

    from recfuse.runtime import ray_compat

    if not ray.is_initialized():
        ray_compat.start_local(num_cpus=2, object_store_memory=512 << 20)
    yield
    ray.shutdown()
